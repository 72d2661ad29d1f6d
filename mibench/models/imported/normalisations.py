"""What a model makes of pixels, by name: mean and std in units of [0, 1]."""

import math
from collections.abc import Mapping

from mibench.runtime.errors import UserError

__all__ = ["IMAGENET", "NORMALISATIONS", "WORDS", "Means", "normalisation", "usual", "wide"]

Means = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Means = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

NORMALISATIONS: dict[str, Means] = {
    "imagenet": IMAGENET,
    "half": ((0.5,), (0.5,)),
    "unit": ((0.0,), (1.0,)),
    "bytes": ((0.0,), (1 / 255,)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "caffe": (IMAGENET[0], (1 / 255,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion": ((0.2860,), (0.3530,)),
}
"""Mean and std by the names that --normalise takes; `unit` is [0, 1], `half` [-1, 1], `bytes` 0 to 255 and `caffe` 0 to
255 less ImageNet's mean. Those of data sets are the published ones."""

WORDS = {
    "imagenet": "normalised by ImageNet's mean and std",
    "half": "range -1 to 1",
    "unit": "range 0 to 1",
    "bytes": "range 0 to 255",
    "clip": "normalised by CLIP's mean and std",
    "caffe": "range 0 to 255 less ImageNet's mean",
    "cifar10": "normalised by CIFAR-10's mean and std",
    "mnist": "normalised by MNIST's mean and std",
    "fashion": "normalised by Fashion-MNIST's mean and std",
}
"""What each is called in a sentence."""

GREY, COLOUR = {"mnist", "fashion"}, {"clip", "cifar10", "caffe"}
"""Those of grey and of colour pictures only."""


def wide(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value a channel: one repeated, or the mean of several for grey."""
    if len(values) == channels:
        return values
    return (values[0],) * channels if len(values) == 1 else (sum(values) / len(values),) * channels


def usual(channels: int, declared: Mapping[str, Means]) -> dict[str, Means]:
    """Mean and std by what they are called: those that come with the model, then those for as many channels."""
    ways = {
        f"normalised by {name}": (wide(mean, channels), wide(std, channels)) for name, (mean, std) in declared.items()
    }
    for key, (mean, std) in NORMALISATIONS.items():
        known = wide(mean, channels), wide(std, channels)
        if key not in (GREY if channels == 3 else COLOUR) and known not in ways.values():
            ways[WORDS[key]] = known
    return ways


def normalisation(text: str) -> Means:
    """A key of NORMALISATIONS, or `mean/std` in units of [0, 1]: `0.5/0.5`, `0.48,0.46,0.41/0.23,0.22,0.23`.

    Raises:
        UserError: Neither.
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (tuple(float(one) for one in part.split(",")) for part in text.split("/"))
        if len(mean) == len(std) in (1, 3) and all(math.isfinite(one) for one in mean) and min(std) > 0:
            return mean, std
    except ValueError:
        pass
    raise UserError(
        f"--normalise {text}: give one of {', '.join(NORMALISATIONS)}, or mean/std in units of [0, 1] such as 0.5/0.5 "
        "or 0.485,0.456,0.406/0.229,0.224,0.225"
    )
