"""Train a verifier: a matcher of faces or objects that has seen nobody who plays another part.

It learns to tell bystanders apart (people who are neither private nor public nor distractors) and is used by its
features alone; see `mibench.metrics.verification`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mibench import models
from mibench.core import Source
from mibench.evaluation.verifier import FEWEST
from mibench.plugins import registry
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

__all__ = ["VERIFIER_SEED", "missing", "plan", "work"]

VERIFIER_SEED = 3000
"""One seed for all verifiers, and it is neither a target's nor an evaluation model's."""

RECIPE = {"epochs": 20, "batch": 50, "least_steps": 1600}


def plan(
    root: Path, data: Choice, architecture: str, precision: str, training: dict[str, Any] | None = None
) -> Run | None:
    """The run that trains a verifier; None where no verifier can judge (`missing` says why).

    Raises:
        UserError: For an unknown architecture or a setting out of range.
    """
    models.family(architecture)
    source: Source = data.plugin
    if missing(data):
        return None
    spec, inputs = artifacts.dataset_spec(data)
    given = training or {}
    recipe = {**RECIPE, **({"least_steps": 0} if "epochs" in given else {}), **given}
    return Run(
        root,
        "verifiers",
        f"{data.name}-{architecture}",
        {
            "bystanders": source.bystander_count,
            "dataset": spec,
            "model": architecture,
            "precision": precision,
            "pretrained": False,
            "seed": VERIFIER_SEED,
            "training": resolve_settings(Training, "verifier", recipe).spec(),
        },
        inputs={"dataset": inputs},
    )


def missing(data: Choice) -> str:
    """Why no verifier can judge on these data, told without reading an image; empty where one can."""
    source: Source = data.plugin
    if source.bystander_count < FEWEST:
        has = source.bystander_count or "none"
        return f"a verifier learns from at least {FEWEST} people who play no other part; '{data.name}' has {has}"
    if data.shape.classes < FEWEST:
        return f"a verifier judges at least {FEWEST} private people; '{data.name}' has {data.shape.classes}"
    if source.heldout_count is not None and source.heldout_count < 2:
        return (
            f"a verifier compares a person's held-out images with one another; people of '{data.name}' have "
            f"{source.heldout_count}: hold at least 2 out"
        )
    return ""


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Train and write."""
    started = clock()
    wanted = run.inputs["dataset"]
    source: Source = registry.configure("data", wanted["name"], settings=wanted["settings"]).plugin
    people = source.load_bystanders(reporter)
    count = int(people.labels.max()) + 1
    if count < FEWEST:
        raise UserError(f"a verifier needs at least {FEWEST} people to learn from; '{wanted['name']}' has {count}")
    chosen = resolve_settings(Training, "verifier", dict(run.spec["training"])).for_images(len(people))
    channels, height, width = people.images.shape[1:]
    with run.writing(describe(engine), reporter.say) as folder:
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(run.spec["seed"], "init"))
            model = models.build(run.spec["model"], count, (channels, height, width))
        log = fit(
            model,
            people,
            count,
            chosen,
            engine,
            run.spec["seed"],
            reporter,
            f"train verifier {run.name}",
            checkpoint=folder / "checkpoint.pt",
        ).log
        header = {
            "role": "verifier",
            "architecture": run.spec["model"],
            "dataset": wanted["name"],
            "image_shape": [channels, height, width],
            "people": count,
        }
        artifacts.write_tensors(folder / "model.safetensors", dict(model.state_dict()), header)
        write_json(
            folder / "metrics.json",
            {
                "bystanders": people.fingerprint(),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "people": count,
                "training": asdict(chosen),
            },
        )
        artifacts.write_log(folder / "log.jsonl", log)
        run.finish(provenance(started, describe(engine)))
