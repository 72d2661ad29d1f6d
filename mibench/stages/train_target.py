"""Train a target model (with its defenses) or an evaluation model, and measure its natural accuracy.

An evaluation model is trained on the same private images with another architecture family and another seed, and also
learns distractor people, so that it can answer 'this is someone else'.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from mibench import models
from mibench.core import Dataset, Defense, Split
from mibench.evaluation.model import accuracy, private_answers, real_to_real
from mibench.evaluation.side_effects import PROBED, STEPS, side_effects
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.ood import detection
from mibench.models.base import Classifier
from mibench.plugins import capabilities
from mibench.plugins.registry import Choice
from mibench.plugins.settings import resolve_settings
from mibench.runs import Run, canonical, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.pixels import concatenate
from mibench.runtime.progress import Reporter
from mibench.stages import artifacts, train_backbone
from mibench.training import Training, converge, predict, recipes

__all__ = [
    "EVALUATOR_SEED",
    "Pretrained",
    "changed_from_recipe",
    "evaluator_families",
    "measure_evaluator",
    "plan",
    "plan_evaluator",
    "preflight",
    "require_other_family",
    "work",
]

Pretrained = Literal["none", "imagenet", "public"]

EVALUATOR_SEED = 1000
"""Evaluation models have one seed for all targets, and it is not a target's."""

REHEARSED = (2, 2)
"""Held-out images and steps of the attacks on them in a rehearsal: in full they take longer than its trainings."""

ADAMW = {"epochs": 30, "least_steps": 600, "doublings": 2}
TARGET = {**ADAMW, "batch": 96, "lr": 0.1, "optimizer": "muon", "schedule": "linear"}
EVALUATOR = {"epochs": 10, "batch": 50, "least_steps": 800}
"""The recipes' defaults, chosen for digiface on two CPU cores; part of every run's specification. Where a target is
given another optimiser than muon, whose rate suits no other, the others' rate and schedule come with it."""


def recipe(owner: str, given: dict[str, Any], published: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole recipe for a specification; who gives the epochs gets exactly those.

    Args:
        owner: `training` of a target, `evaluator` or `verifier`.
        given: What the user sets.
        published: The settings of a recipe by name, in the place of the defaults.
    """
    given = {**(published or {}), **given}
    defaults: dict[str, Any] = TARGET if owner == "training" else EVALUATOR
    if given.get("optimizer", "muon") != "muon" and owner == "training":
        defaults = ADAMW
    if "epochs" in given:
        defaults = {**defaults, "least_steps": 0, "doublings": 0}
    return resolve_settings(Training, owner, {**defaults, **given}).spec()


def changed_from_recipe(run: Run) -> dict[str, Any]:
    """What a run's recipe does not have from the defaults, or from the published recipe that it names."""
    given, name = run.spec.get("training") or {}, run.spec.get("recipe")
    published = recipes.find(name).settings(run.spec["model"], run.spec["dataset"]["name"]) if name else None
    usual = recipe("training" if run.kind == "targets" else "evaluator", {}, published)
    changed = {key: value for key, value in given.items() if canonical(value) != canonical(usual.get(key))}
    return {"recipe": name, **changed} if name else changed


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
    published: str | None = None,
) -> Run:
    """The run that trains a target model.

    Args:
        precision: fp32 or bf16; a defense that bf16 would round away is trained in fp32.
        pretrained: What its trunk starts from: noise, ImageNet weights, or a backbone trained on the public images.
        published: The recipe by name that `training` differs from; mibench's own if absent.

    Raises:
        UserError: For an unknown architecture or a setting out of range, or a defense that cannot change this
            architecture or does not start from such a network.
    """
    models.family(architecture)
    spec, inputs = artifacts.dataset_spec(data)
    real = [choice for choice in defenses if choice.name != "none"]
    require_compatible(architecture, real, pretrained)
    backbone = train_backbone.plan(root, data, architecture, precision) if pretrained == "public" else None
    theirs = recipes.find(published, architecture).settings(architecture, data.name) if published else None
    exact = any(choice.plugin.fp32() for choice in real)
    return Run(
        root,
        "targets",
        titled(f"{data.name}-{architecture}", real or defenses),
        {
            "dataset": spec,
            "defenses": [choice.spec() for choice in real],
            "model": architecture,
            "precision": "fp32" if exact else precision,
            "pretrained": {"none": False, "imagenet": True, "public": "public"}[pretrained],
            "seed": seed,
            "training": recipe("training", training or {}, theirs),
            **({"recipe": published} if published else {}),
        },
        {"backbone": backbone} if backbone else {},
        inputs={"dataset": inputs},
    )


def require_compatible(architecture: str, defenses: list[Choice], pretrained: str) -> None:
    """Refuse a defense that this architecture cannot take, as far as cards tell; see also `preflight`.

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


def preflight(run: Run) -> None:
    """Let a target's defenses change a network without weights, so that settings which do not fit it are told before
    anything is trained.

    Raises:
        UserError: What the architecture lacks.
    """
    stack = artifacts.defenses(run)
    if any(type(defense).surgery is not Defense.surgery for defense in stack):
        with capabilities.naming_others(), torch.device("meta"):  # sizes only
            model = models.build(run.spec["model"], 10, (3, 64, 64))
            for defense in stack:
                model = defense.surgery(model)  # type: ignore[assignment]


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
    root: Path,
    data: Choice,
    architecture: str,
    precision: str,
    training: dict[str, Any] | None = None,
    published: str | None = None,
) -> Run:
    """The run that trains an evaluation model.

    Args:
        published: The recipe by name that `training` differs from, where it was published for this architecture; it
            also says what the network starts from. mibench's own elsewhere.
    """
    models.family(architecture)
    spec, inputs = artifacts.dataset_spec(data)
    known = recipes.find(published) if published else None
    theirs = known if known is not None and known.fits(architecture) else None
    return Run(
        root,
        "evaluators",
        f"{data.name}-{architecture}",
        {
            "dataset": spec,
            "model": architecture,
            "precision": precision,
            "pretrained": theirs is not None and theirs.starts_from(architecture).value == "imagenet",
            "seed": EVALUATOR_SEED,
            "training": recipe(
                "evaluator", training or {}, theirs.settings(architecture, data.name) if theirs else None
            ),
            **({"recipe": published} if theirs else {}),
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
    if len(data.heldout) == 0:
        raise UserError(f"data set '{data.name}' has no held-out images; natural accuracy cannot be measured")
    split = with_distractors(data) if evaluator else data.train
    classes = len(data.classes) + (data.distractor_count if evaluator else 0)
    chosen = resolve_settings(Training, "training", dict(run.spec["training"])).for_images(len(split))
    role = "evaluation model" if evaluator else "target model"
    with run.writing(describe(engine), reporter.say) as folder:
        checkpoint = folder / "checkpoint.pt"
        resumed, before = checkpoint.exists(), time.process_time()
        defenses = artifacts.defenses(run)
        label = f"train {'evaluation model' if evaluator else 'target'} {run.name}"
        trained = converge(
            lambda: artifacts.classifier(run, classes, data.image_shape),
            split,
            classes,
            chosen,
            engine,
            run.spec["seed"],
            reporter,
            label,
            defenses,
            data.flip,
            checkpoint=checkpoint,
            public=None if evaluator else data.public,
        )
        # Unknown after a killed process, which took part of it with it.
        seconds = None if resumed else round(time.process_time() - before, 2)
        model, fitted = trained.model, trained.fitted
        assert isinstance(model, Classifier)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        artifacts.write_memories(folder / "memories.safetensors", fitted.memories)
        for defense, memory in zip(defenses, fitted.memories, strict=True):
            model = defense.deploy(model, memory)
        engine.place(model)
        assert isinstance(model, Classifier)
        metrics = {
            "classes": len(data.classes),
            "dataset_fingerprint": data.fingerprint(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training": asdict(trained.recipe),
        } | trained.record()
        if evaluator:
            metrics |= measure_evaluator(model, data, engine, folder)
        else:
            metrics |= measure_target(model, data, engine, folder, *(REHEARSED if run.rehearsed else (PROBED, STEPS)))
            metrics["defense_reports"] = [
                report | defense.report(memory, data, lambda images: predict(model, images, engine)[0])
                for defense, memory, report in zip(defenses, fitted.memories, fitted.reports, strict=True)
            ]
        header = {
            "role": role,
            "architecture": run.spec["model"],
            "classes": list(data.classes),
            "classes_count": len(data.classes),
            "dataset": data.name,
        }
        artifacts.write_tensors(folder / "model.safetensors", state, header)
        write_json(folder / "metrics.json", metrics)
        artifacts.write_log(folder / "log.jsonl", fitted.log)
        write_json(folder / "data.json", dict(data.card))
        run.finish(provenance(started, describe(engine)) | {"training_cpu_seconds": seconds})


def measure_target(
    model: Classifier, data: Dataset, engine: Engine, folder: Path, probed: int = PROBED, steps: int = STEPS
) -> dict[str, Any]:
    """A target's natural accuracy and what its defenses change besides; heldout.safetensors keeps each image's verdict,
    so that the accuracies of two targets can be compared in pairs."""
    classes = len(data.classes)
    logits, _ = predict(model, data.heldout.images, engine)
    hits = top_k(closed_set(logits, classes), data.heldout.labels.to(logits.device), 1)
    kept = {"hits": hits.to(torch.uint8), "labels": data.heldout.labels}
    artifacts.write_tensors(folder / "heldout.safetensors", kept, {"role": "held-out verdicts"})
    effects = side_effects(model, logits, data.heldout.on(engine), probed, steps)
    if len(data.public):
        strangers, _ = predict(model, data.public.images, engine)
        effects["ood"] = detection(logits.softmax(1), strangers.softmax(1))._asdict()
    return {"natural_accuracy": accuracy(logits, data.heldout.labels, classes)._asdict(), "side_effects": effects}


def measure_evaluator(model: Classifier, data: Dataset, engine: Engine, folder: Path) -> dict[str, Any]:
    """An evaluation model's accuracy; features.safetensors keeps what it answers to the private images."""
    train, heldout = private_answers(model, data, engine)
    kept = {
        f"{part}_{name}": values
        for part, answers in (("heldout", heldout), ("train", train))
        for name, values in answers._asdict().items()
    }
    artifacts.write_tensors(folder / "features.safetensors", kept, {"role": "private features"})
    return {
        "distractors": data.distractor_count,
        "distractors_are_public": data.distractors_are_public,
        "knn_real_to_real": real_to_real(train.features, train.labels),
        "natural_accuracy": accuracy(heldout.logits, heldout.labels, len(data.classes))._asdict(),
        "open_set_accuracy": accuracy(heldout.logits, heldout.labels, heldout.logits.shape[1])._asdict(),
    }
