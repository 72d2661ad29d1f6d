"""Put a finished run into the zoo: round its weights to float16, measure it again, write its card; and verify the zoo.

Everything a score reads is of the rounded network: natural accuracy, the verdicts on held-out images, what an
evaluation model answers to private images, a prior's samples. What belongs to the training (recipe, log, convergence)
stays.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mibench.core import Prior
from mibench.models.base import Classifier
from mibench.plugins import registry
from mibench.runs import Run
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.pictures import tile
from mibench.stages import artifacts, train_prior, train_target
from mibench.training import predict
from mibench.zoo import Entry, Shelf

__all__ = ["TOLERANCE", "Verified", "add", "verify"]

WEIGHTS = ("model.safetensors", "memories.safetensors", "prior.safetensors")
"""Files that are rounded; each goes with its run where it has one."""

KEPT = ("log.jsonl", "data.json", "metrics.json")
"""Files that are taken over; the metrics until they are measured again."""

KINDS = ("backbones", "targets", "evaluators", "verifiers", "priors")

TOLERANCE = {"natural_accuracy": 0.01, "open_set_accuracy": 0.01, "bystander_accuracy": 0.01, "samples": 2.0}
"""How far a measurement may lie from its card on another machine: shares of images, and mean grey levels of samples."""


def add(run: Run, name: str, command: str, engine: Engine, shelf: Path | None = None) -> Entry:
    """Shelve a finished run, in the place of an older one of the same specification.

    Args:
        run: The run, in a results folder. What it builds on must be in the zoo already.
        name: What it will be called; with its seed it must be the only one of its kind.
        command: What makes it again.
        engine: Where it is measured; in float32, which is what a reader's machine has.
        shelf: Where; what ships with mibench if absent.

    Raises:
        UserError: If it is no network or not finished, the name is taken, a weight does not fit into float16, or what
            it builds on is not in the zoo.
    """
    if run.kind not in KINDS or not run.done:
        raise UserError(f"the zoo takes finished networks ({', '.join(KINDS)}); {run.label} is none")
    if run.rehearsed:
        raise UserError(f"{run.label} was made by a rehearsal, on stand-in data; the zoo takes networks of real runs")
    if not name or set(name) & set("@:/ "):
        raise UserError(f"a name in the zoo has no space and none of @ : /, got '{name}'")
    known = Shelf(shelf)
    for entry in known.entries:
        if entry.reference == f"{name}@{run.spec['seed']}" and entry.run.label != run.label:
            raise UserError(f"{entry.reference} in the zoo is {entry.run.label}; choose another name")
    for parent in run.ancestors():
        if parent.label not in known.labels:
            raise UserError(f"{run.label} builds on {parent.label}, which is not in the zoo; add that first")
    card, before = run.read("run.json"), run.read("metrics.json")
    with tempfile.TemporaryDirectory() as folder:
        rounded = replace(run, root=Path(folder))
        with rounded.writing() as place:
            _round(run.path, place)
        rounded.appear()  # without digests yet, so that the loaders take it for one that is worked on
        metrics = {**before, **_measured(rounded, engine, rounded.path)}
        write_json(rounded.path / "metrics.json", metrics)
        rounded.path.rename(rounded.work)
        origin = {
            "zoo": name,
            "rounded": {key: {"before": before[key], "after": metrics[key]} for key in _moved(before, metrics)},
        }
        rounded.finish({**card["provenance"], "command": command}, origin=origin)
        shelved = replace(run, root=known.root)
        shelved.path.parent.mkdir(parents=True, exist_ok=True)
        if shelved.path.exists():
            shutil.rmtree(shelved.path)
        shutil.copytree(rounded.path, shelved.path)
    return next(entry for entry in Shelf(known.root).entries if entry.run.label == run.label)


def _round(source: Path, goal: Path) -> None:
    for name in KEPT:
        if (source / name).exists():
            shutil.copyfile(source / name, goal / name)
    for name in WEIGHTS:
        if (source / name).exists():
            _halve(source / name, goal / name)


def _halve(source: Path, goal: Path) -> None:
    """The tensors of a file in float16; counts stay whole."""
    header = artifacts.read_header(source)
    tensors, _ = artifacts.read_tensors(source, header["role"])
    halves = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    for key, value in halves.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"{source}: {key} does not fit into float16")
    artifacts.write_tensors(goal, halves, header)


def _measured(run: Run, engine: Engine, folder: Path) -> dict[str, Any]:
    """The metrics of a run as it lies there; what measuring leaves (verdicts, features, samples) goes into a folder."""
    if run.kind in ("targets", "evaluators"):
        data = artifacts.dataset(run)
        model: Classifier = engine.place(artifacts.load_classifier(run, data))  # type: ignore[assignment]
        measure = train_target.measure_target if run.kind == "targets" else train_target.measure_evaluator
        measured = measure(model, data, engine, folder)
        if run.kind == "evaluators":
            _halve(folder / "features.safetensors", folder / "features.safetensors")
        return measured
    if run.kind == "verifiers":
        return {"bystander_accuracy": _bystander_accuracy(run, engine)}
    if run.kind == "priors":
        data = artifacts.open_dataset(run.inputs["dataset"])
        prior: Prior = engine.place(artifacts.load_prior(run, data))  # type: ignore[assignment]
        images = train_prior.samples(prior, run.spec["seed"], len(data.classes), engine)
        tile(images, folder / "samples.png", columns=8)
    return {}


def _bystander_accuracy(run: Run, engine: Engine) -> float:
    """The share of the images it was trained on whose person a verifier names: whether its weights are the ones that
    were trained. How well it matches others is measured anew by every score."""
    wanted = run.inputs["dataset"]
    people = registry.configure("data", wanted["name"], settings=wanted["settings"]).plugin.load_bystanders()
    some = people.take(torch.arange(0, len(people), 4))
    model: Classifier = engine.place(artifacts.load_verifier(run))  # type: ignore[assignment]
    logits, _ = predict(model, some.images, engine)
    return float((logits.argmax(1).cpu() == some.labels).double().mean())


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The accuracies that rounding may have moved."""
    return [key for key in ("natural_accuracy", "open_set_accuracy") if key in before and key in after]


@dataclass(frozen=True)
class Verified:
    """One measurement of an entry, made again.

    Args:
        entry: Whose.
        metric: One of `TOLERANCE`.
        card: What its card says; of samples 0, the distance of the picture from itself.
        here: What this machine measures.
    """

    entry: Entry
    metric: str
    card: float
    here: float

    @property
    def holds(self) -> bool:
        """Whether they agree within the tolerance."""
        return abs(self.here - self.card) <= TOLERANCE[self.metric]

    def to_json(self) -> dict[str, Any]:
        """By field."""
        return {
            "entry": self.entry.reference,
            "run": self.entry.run.label,
            "metric": self.metric,
            "card": self.card,
            "here": self.here,
            "tolerance": TOLERANCE[self.metric],
            "holds": self.holds,
        }


def verify(engine: Engine, shelf: Path | None = None, names: Sequence[str] = ()) -> Iterator[Verified]:
    """Check the digests of every entry and measure it again on the embedded data; each measurement when it is made.

    Args:
        engine: Where.
        shelf: Which; what ships with mibench if absent.
        names: Only these, as `Shelf.find` takes them; all if there are none.

    Raises:
        UserError: If a file is damaged, of another protocol, or the data set is not the one it was trained on.
    """
    known = Shelf(shelf)
    entries = [known.find(name) for name in names] or known.entries
    for entry in entries:
        entry.check()
    for entry in entries:
        with tempfile.TemporaryDirectory() as folder:
            here = _measured(entry.run, engine, Path(folder))
            if entry.run.kind == "priors":
                here["samples"] = _distance(Path(folder) / "samples.png", entry.run.path / "samples.png")
        for metric in TOLERANCE:
            if metric in here:
                yield Verified(entry, metric, _value(entry.metrics.get(metric, 0.0)), _value(here[metric]))


def _value(measured: Any) -> float:
    return float(measured["value"] if isinstance(measured, Mapping) else measured)


def _distance(one: Path, other: Path) -> float:
    """Mean absolute difference of two pictures, in grey levels."""
    a, b = (np.asarray(Image.open(path), dtype=np.float64) for path in (one, other))
    return float(np.abs(a - b).mean()) if a.shape == b.shape else 255.0
