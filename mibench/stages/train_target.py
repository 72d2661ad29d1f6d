"""Train a target model (with its defenses) or an evaluation model, and measure its natural accuracy.

An evaluation model is trained on the same private images with another architecture family and another seed, and also
learns distractor people, so that it can answer 'this is someone else'.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mibench import models
from mibench.core import Dataset, Defense, Split
from mibench.core.losses import IDENTITY
from mibench.metrics import gradients
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.calibration import calibration
from mibench.metrics.knn import leave_one_out
from mibench.metrics.robustness import adversarial_accuracy, spread
from mibench.models.served import Served
from mibench.plugins import capabilities
from mibench.plugins.registry import Choice
from mibench.plugins.settings import resolve_settings
from mibench.runs import Run, canonical, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.pixels import concatenate
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise
from mibench.stages import artifacts, train_backbone
from mibench.stats.intervals import proportion
from mibench.training import Training, fit, predict

__all__ = [
    "EVALUATOR_SEED",
    "Pretrained",
    "changed_from_recipe",
    "evaluator_families",
    "plan",
    "plan_evaluator",
    "rehearse_surgery",
    "require_other_family",
    "work",
]

Pretrained = Literal["none", "imagenet", "public"]

EVALUATOR_SEED = 1000
"""Evaluation models have one seed for all targets, and it is not a target's."""

TARGET = {"epochs": 15, "least_steps": 600}
EVALUATOR = {"epochs": 10, "batch": 50, "least_steps": 800}
"""The recipes' defaults, chosen for digiface on two CPU cores; part of every run's specification."""


def recipe(owner: str, given: dict[str, Any]) -> dict[str, Any]:
    """The whole recipe for a specification; who gives the epochs gets exactly those."""
    defaults: dict[str, Any] = TARGET if owner == "training" else EVALUATOR
    if "epochs" in given:
        defaults = {**defaults, "least_steps": 0}
    return asdict(resolve_settings(Training, owner, {**defaults, **given}))


def changed_from_recipe(run: Run) -> dict[str, Any]:
    """What a run's recipe does not have from the defaults."""
    given = run.spec.get("training") or {}
    usual = recipe("training" if run.kind == "targets" else "evaluator", {})
    return {key: value for key, value in given.items() if canonical(value) != canonical(usual.get(key))}


def titled(name: str, choices: list[Choice]) -> str:
    """`digiface-cnn-re+bido`."""
    return "-".join([name, "+".join(choice.name for choice in choices)])


def plan(
    root: Path,
    data: Choice,
    architecture: str,
    defenses: list[Choice],
    seed: int,
    precision: str,
    training: dict[str, Any] | None = None,
    pretrained: Pretrained = "none",
) -> Run:
    """The run that trains a target model.

    Args:
        pretrained: What its trunk starts from: noise, ImageNet weights, or a backbone trained on the public images.

    Raises:
        UserError: For an unknown architecture or a setting out of range, or a defense that cannot change this
            architecture or does not start from such a network.
    """
    models.family(architecture)
    spec, inputs = artifacts.dataset_spec(data)
    real = [choice for choice in defenses if choice.name != "none"]
    require_compatible(architecture, real, pretrained)
    backbone = train_backbone.plan(root, data, architecture, precision) if pretrained == "public" else None
    return Run(
        root,
        "targets",
        titled(f"{data.name}-{architecture}", real or defenses),
        {
            "dataset": spec,
            "defenses": [choice.spec() for choice in real],
            "model": architecture,
            "precision": precision,
            "pretrained": {"none": False, "imagenet": True, "public": "public"}[pretrained],
            "seed": seed,
            "training": recipe("training", training or {}),
        },
        {"backbone": backbone} if backbone else {},
        inputs={"dataset": inputs},
    )


def require_compatible(architecture: str, defenses: list[Choice], pretrained: str) -> None:
    """Refuse a defense that this architecture cannot take, as far as cards tell; see also `rehearse_surgery`.

    Raises:
        UserError: What the architecture or the machine lacks, or what the network should start from.
    """
    for choice in defenses:
        if choice.plugin.start == "public" and pretrained == "none":
            raise UserError(
                f"{choice.name} protects what public images have not taught the network already, so it must start "
                "from such a network: --pretrained public, or imagenet for torchvision's architectures"
            )
        capabilities.require_of_architecture(choice.name, models.family(architecture))


def rehearse_surgery(run: Run) -> None:
    """Let a target's defenses change a network without weights, so that settings which do not fit it are told before
    anything is trained.

    Raises:
        UserError: What the architecture lacks.
    """
    stack = artifacts.defenses(run)
    if any(type(defense).surgery is not Defense.surgery for defense in stack):
        with capabilities.naming_others(), torch.device("meta"):  # sizes only
            model: nn.Module = models.build(run.spec["model"], 10, (3, 64, 64))
            for defense in stack:
                model = defense.surgery(model)


def evaluator_families(architecture: str) -> list[str]:
    """Two small architectures of other families than the target's."""
    taken = models.family(architecture)
    return [name for name in ("resnet", "ir", "cnn") if models.family(name) != taken][:2]


def require_other_family(evaluator: str, target: str) -> None:
    """An evaluation model must not be of the target's family.

    Raises:
        UserError: If it is; names families that are not.
    """
    if models.family(evaluator) == models.family(target):
        raise UserError(
            f"the evaluation model {evaluator} is of the target's own family ({models.family(target)}); it would "
            f"reward images made for the target: choose others, for example {','.join(evaluator_families(target))}"
        )


def plan_evaluator(
    root: Path, data: Choice, architecture: str, precision: str, training: dict[str, Any] | None = None
) -> Run:
    """The run that trains an evaluation model."""
    models.family(architecture)
    spec, inputs = artifacts.dataset_spec(data)
    return Run(
        root,
        "evaluators",
        f"{data.name}-{architecture}",
        {
            "dataset": spec,
            "model": architecture,
            "precision": precision,
            "pretrained": False,
            "seed": EVALUATOR_SEED,
            "training": recipe("evaluator", training or {}),
        },
        inputs={"dataset": inputs},
    )


def with_distractors(data: Dataset) -> Split:
    """The private training images, and the distractor people as further classes."""
    people = data.distractors
    return Split(
        concatenate([data.train.images, people.images]),
        torch.cat([data.train.labels, people.labels + len(data.classes)]),
    )


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Train, measure on the held-out images, write."""
    started = clock()
    evaluator = run.kind == "evaluators"
    data = artifacts.open_dataset(run.inputs["dataset"])
    split = with_distractors(data) if evaluator else data.train
    classes = len(data.classes) + (data.distractor_count if evaluator else 0)
    if len(data.heldout) == 0:
        raise UserError(f"data set '{data.name}' has no held-out images; natural accuracy cannot be measured")
    defenses = artifacts.defenses(run)
    chosen = resolve_settings(Training, "training", dict(run.spec["training"])).for_images(len(split))
    with run.writing() as folder:
        model = artifacts.classifier(run, classes, data.image_shape)
        label = f"train {'evaluation model' if evaluator else 'target'} {run.name}"
        resumed, before = (folder / "checkpoint.pt").exists(), time.process_time()
        fitted = fit(
            model,
            split,
            classes,
            chosen,
            engine,
            run.spec["seed"],
            reporter,
            label,
            defenses,
            data.flip,
            checkpoint=folder / "checkpoint.pt",
        )
        # Unknown after a killed process, which took part of it with it.
        trained = None if resumed else round(time.process_time() - before, 2)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        artifacts.write_memories(folder / "memories.safetensors", fitted.memories)
        for defense, memory in zip(defenses, fitted.memories, strict=True):
            model = defense.deploy(model, memory)
        model = engine.place(model)
        logits, features = predict(model, data.heldout.images, engine)
        metrics: dict[str, Any] = {
            "classes": len(data.classes),
            "dataset_fingerprint": data.fingerprint(),
            "natural_accuracy": accuracy(logits, data.heldout, len(data.classes)),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training": asdict(chosen),
        }
        if not evaluator:  # image by image, so that the accuracies of two targets can be compared in pairs
            hits = top_k(closed_set(logits, classes), data.heldout.labels.to(logits.device), 1)
            kept = {"hits": hits.to(torch.uint8), "labels": data.heldout.labels}
            artifacts.write_tensors(folder / "heldout.safetensors", kept, {"role": "held-out verdicts"})
        if evaluator:
            metrics |= {
                "distractors": data.distractor_count,
                "distractors_are_public": data.distractors_are_public,
                "open_set_accuracy": accuracy(logits, data.heldout, classes),
            }
            train_logits, train_features = predict(model, data.train.images, engine)
            artifacts.write_tensors(
                folder / "features.safetensors",
                {
                    "heldout_features": features,
                    "heldout_logits": logits,
                    "heldout_labels": data.heldout.labels,
                    "train_features": train_features,
                    "train_logits": train_logits,
                    "train_labels": data.train.labels,
                },
                {"role": "private features"},
            )
            metrics["knn_real_to_real"] = real_to_real(train_features, data.train.labels)
        else:
            metrics["side_effects"] = side_effects(model, logits, data.heldout.on(engine))
            metrics["defense_reports"] = fitted.reports
        header = {
            "role": "evaluation model" if evaluator else "target model",
            "architecture": run.spec["model"],
            "classes": list(data.classes),
            "classes_count": len(data.classes),
            "dataset": data.name,
        }
        artifacts.write_tensors(folder / "model.safetensors", state, header)
        write_json(folder / "metrics.json", metrics)
        artifacts.write_log(folder / "log.jsonl", fitted.log)
        write_json(folder / "data.json", dict(data.card))
        run.finish(provenance(started, describe(engine)) | {"training_cpu_seconds": trained})


PROBED = 200
"""How many held-out images the attacks of `side_effects` try."""


def side_effects(model: nn.Module, logits: torch.Tensor, heldout: Split) -> dict[str, Any]:
    """What a defense changes besides natural accuracy: robustness, calibration, the gradients an attacker sees.

    Scores are what is served; gradients are those of the network itself, which a white-box attacker holds, in float32.

    Args:
        model: Deployed, in eval mode, on the device of the labels.
        logits: Of the held-out images, as served.
        heldout: Private images that the model has not seen.
    """
    # A shaper's scores are judged before a softmax makes them sum to 1.
    scores = logits.exp() if isinstance(model, Served) else logits.softmax(dim=1)
    confidence = calibration(logits.softmax(dim=1), heldout.labels)
    place = spread(heldout.labels, PROBED)
    x, y = heldout.at(place), heldout.labels[place]
    other = gradients.others(y, logits.shape[1], Noise(0, place).of("other class"))

    def white_box(images: torch.Tensor) -> torch.Tensor:
        return model.head(model.features(images)).float()  # type: ignore[operator]

    robust = adversarial_accuracy(white_box, x, y)
    norms = {
        name: gradients.gradient_norms(white_box, x, other, IDENTITY[name]) for name in ("cross_entropy", "max_margin")
    }
    return {
        "adversarial_accuracy": {str(eps): found._asdict() for eps, found in robust.items()},
        "confidence": confidence.confidence,
        "ece": confidence.ece,
        "gradient_norm": {name: gradients.summary(found)._asdict() for name, found in norms.items()},
        "served_sum_error": float((scores.double().sum(dim=1) - 1.0).abs().max()),
    }


def real_to_real(features: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Mean squared distance of a private image to the nearest other one of its person; null if nobody has two."""
    several = torch.bincount(labels)[labels] > 1
    if not several.any():
        return None
    labels = labels[several].to(features.device)
    return float(leave_one_out(features[several.to(features.device)], labels).mean())


def accuracy(logits: torch.Tensor, split: Split, classes: int) -> dict[str, float]:
    """Top-1 on a split among the first `classes` logits, with its 95% interval clustered by identity."""
    labels = split.labels.to(logits.device)
    return proportion(top_k(closed_set(logits, classes), labels, 1), labels)._asdict()
