"""The laws of a data set: the same fields, the same bytes; everybody can be learnt and judged; the roles stay apart."""

import json
from dataclasses import fields, replace
from functools import cached_property

import torch

from mibench.core import Dataset, Shape, Source, Split
from mibench.plugins import contract, registry
from mibench.testing.laws import Broken, DoesNotApply, Law, Trial, law
from mibench.testing.state import changed

__all__ = ["LAWS", "DataTrial"]

LAWS: list[Law["DataTrial"]] = []
"""Every law of a data set, in the order in which they build on one another."""

ROLES = ("train", "heldout", "public", "distractors")


class DataTrial(Trial):
    """A data set on trial.

    Args:
        name: The plug-in's.
        settings: Over its defaults and the card's `toy` settings.
    """

    kind = "data"

    @cached_property
    def source(self) -> Source:
        """With the short settings."""
        made: Source = registry.configure("data", self.name, settings=self.settings).plugin
        return made

    @cached_property
    def data(self) -> Dataset:
        """Loaded once, for all laws that only look at it."""
        data = self.source.load()
        if not isinstance(data, Dataset):
            raise Broken(f"load returned {type(data).__name__}", "return a mibench.core.Dataset")
        return data

    def splits(self) -> dict[str, Split]:
        """By role."""
        return {role: getattr(self.data, role) for role in ROLES}


@law(LAWS)
def card(trial: DataTrial) -> None:
    """The card says what the images are, how many, and under which licence"""
    contract.check_card("data", trial.name)


@law(LAWS)
def splits(trial: DataTrial) -> None:
    """Images are uint8 of one shape, with a label each; everybody has images to learn and images held out"""
    data, classes = trial.data, len(trial.data.classes)
    for role, split in trial.splits().items():
        if split.images.dtype != torch.uint8 or tuple(split.images.shape[1:]) != data.image_shape:
            raise Broken(
                f"{role} are {split.images.dtype} of {tuple(split.images.shape[1:])}, the training images of "
                f"{data.image_shape}",
                "bring all to uint8 of one shape (to_uint8)",
            )
        if split.labels.dtype != torch.int64 or len(split.labels) != len(split.images):
            raise Broken(
                f"{role} have {len(split.images)} images and {len(split.labels)} labels", "give an int64 to each"
            )
    for role in ("train", "heldout"):
        labels = trial.splits()[role].labels
        counts = torch.bincount(labels.clamp(min=0), minlength=classes) if len(labels) else torch.zeros(classes)
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
            raise Broken(
                f"labels of {role} go from {int(labels.min())} to {int(labels.max())}",
                f"there are {classes} classes: 0 to {classes - 1}",
            )
        if without := (counts == 0).nonzero()[:, 0].tolist():
            raise Broken(
                f"{len(without)} of {classes} people have no {role} images, the first is '{data.classes[without[0]]}'",
                "give everybody at least one of both",
            )
    if len(set(data.classes)) < classes or classes < 2:
        raise Broken(f"its {classes} class names are not two or more distinct ones", "name everybody, each once")


@law(LAWS, "splits")
def same_bytes(trial: DataTrial) -> None:
    """The same fields give the same bytes, whatever the process drew before"""
    torch.rand(3)
    if trial.source.load().fingerprint() != trial.data.fingerprint():
        raise Broken(
            "loaded twice it has other pixels or another order", "sort what is listed, draw from Noise(seed, ...)"
        )


@law(LAWS, "splits")
def apart(trial: DataTrial) -> None:
    """No image plays two roles"""
    seen: dict[str, str] = {}
    for role, split in trial.splits().items():
        if role == "distractors" and trial.data.distractors_are_public:
            continue
        for digest in split.hashes():
            if seen.setdefault(digest, role) != role:
                raise Broken(
                    f"an image lies in {seen[digest]} and in {role}",
                    "keep the held-out images from the training, and the attacker's from the private ones",
                )


@law(LAWS, "splits")
def shape(trial: DataTrial) -> None:
    """shape() counts what load() loads"""
    data, said = trial.data, trial.source.shape()
    loaded = Shape(len(data.classes), data.image_shape, len(data.public))
    if said != loaded:
        raise Broken(f"shape() says {tuple(said)}, load() gives {tuple(loaded)}", "count what is loaded")


@law(LAWS, "same bytes")
def identity(trial: DataTrial) -> None:
    """identity() is JSON, and other fields that give other bytes give another one"""
    source = trial.source
    try:
        first = json.dumps(source.identity(), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Broken(f"identity() is no JSON: {error}", "give numbers, texts, lists; a digest for a folder") from None
    if "seed" not in {item.name for item in fields(source)}:
        raise DoesNotApply("it has no seed to change")
    other = replace(source, seed=source.seed + 1)  # type: ignore[attr-defined, call-arg]
    same = json.dumps(other.identity(), sort_keys=True) == first
    if same and other.load().fingerprint() != trial.data.fingerprint():
        raise Broken(
            "another seed gives other bytes under the same identity()", "name every field that changes the bytes"
        )


@law(LAWS, "splits")
def global_state(trial: DataTrial) -> None:
    """It leaves the process as it was: generators, modes, folder, environment"""
    if others := changed(trial.source.load):
        raise Broken(f"it changed {', '.join(others)}", "draw from Noise, and undo what you must set")
