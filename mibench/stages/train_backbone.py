"""Train a network on the attacker's own public images, for targets that start from it (`--pretrained public`).

Where public people are named, it learns to tell them apart. Where they are not, every image is a class of its own, told
from the others under augmentation (exemplar learning): that needs no label.

References:
    | Discriminative Unsupervised Feature Learning with Exemplar CNNs (Dosovitskiy et al., 2014)
    | https://arxiv.org/abs/1406.6909
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mibench import models
from mibench.core import Split
from mibench.plugins.registry import Choice
from mibench.plugins.settings import resolve_settings
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import seed_of
from mibench.stages import artifacts
from mibench.training import Training, fit

__all__ = ["BACKBONE_SEED", "plan", "work"]

BACKBONE_SEED = 2000
"""One backbone for all targets, whatever their seeds, as published weights would be."""

RECIPE = {"epochs": 20, "batch": 50, "least_steps": 800}


def plan(root: Path, data: Choice, architecture: str, precision: str) -> Run:
    """The run that trains a backbone.

    Raises:
        UserError: For an unknown architecture.
    """
    models.family(architecture)
    spec, inputs = artifacts.dataset_spec(data)
    return Run(
        root,
        "backbones",
        f"{data.name}-{architecture}",
        {
            "dataset": spec,
            "model": architecture,
            "precision": precision,
            "pretrained": False,
            "seed": BACKBONE_SEED,
            "training": resolve_settings(Training, "backbone", dict(RECIPE)).spec(),
        },
        inputs={"dataset": inputs},
    )


def exemplars(public: Split) -> Split:
    """Known people keep their classes; every image of nobody known becomes a class of its own. Labels count from 0."""
    unknown = public.labels < 0
    labels = public.labels.clone()
    first = int(labels.max()) + 1 if len(labels) else 0
    labels[unknown] = max(first, 0) + torch.arange(int(unknown.sum()))
    return Split(public.images, labels.unique(return_inverse=True)[1])


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Train and write."""
    started = clock()
    data = artifacts.open_dataset(run.inputs["dataset"])
    split = exemplars(data.public)
    classes = int(split.labels.max()) + 1 if len(split) else 0
    if classes < 2:
        raise UserError(f"data set '{data.name}' has no public images to train a backbone on; add some to public/")
    chosen = resolve_settings(Training, "backbone", dict(run.spec["training"])).for_images(len(split))
    with run.writing(describe(engine), reporter.say) as folder:
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(run.spec["seed"], "init"))
            model = models.build(run.spec["model"], classes, data.image_shape)
        log = fit(
            model,
            split,
            classes,
            chosen,
            engine,
            run.spec["seed"],
            reporter,
            f"train backbone {run.name}",
            mirror=data.flip,
            checkpoint=folder / "checkpoint.pt",
        ).log
        header = {"role": "backbone", "architecture": run.spec["model"], "dataset": data.name, "classes_count": classes}
        artifacts.write_tensors(folder / "model.safetensors", dict(model.state_dict()), header)
        metrics: dict[str, Any] = {
            "classes": classes,
            "named_people": bool((data.public.labels >= 0).all()),
            "dataset_fingerprint": data.fingerprint(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training": asdict(chosen),
        }
        write_json(folder / "metrics.json", metrics)
        artifacts.write_log(folder / "log.jsonl", log)
        write_json(folder / "data.json", dict(data.card))
        run.finish(provenance(started, describe(engine)))
