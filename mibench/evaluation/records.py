"""What a score is made of: distances, thresholds, the facts and the judgement of an evaluation model, as types.

Each knows its JSON; keys are the names under which metrics declare themselves (`mibench.metrics`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from mibench.metrics.prdc import PRDC, K
from mibench.stats.intervals import Interval

__all__ = [
    "Agreement",
    "Calibration",
    "Columns",
    "Distances",
    "EvaluatorFacts",
    "Impostors",
    "Judgement",
    "TargetAnswers",
    "Yardstick",
    "interval_of",
]

Columns = Mapping[str, Tensor]
"""Values of each image by the name of their metric."""


def interval_of(saved: Mapping[str, Any]) -> Interval:
    """The inverse of `Interval.as_json`."""
    value, low, high = (math.nan if saved[key] is None else saved[key] for key in ("value", "low", "high"))
    return Interval(value, low, high, saved["n"], saved["clusters"])


class Distances(NamedTuple):
    """Two sets of images in one network's features; null, never 0, where there are too few images."""

    fid: float | None
    kid: float | None
    kid_error: float | None
    prdc: PRDC | None
    n: int
    n_real: int

    def to_json(self) -> dict[str, Any]:
        """By the metrics' names; the four of `prdc` together with their k."""
        return self._asdict() | {"prdc": self.prdc and self.prdc._asdict() | {"k": K}}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Distances":
        """The inverse of `to_json`; scores that were made before `prdc` have none."""
        known = saved.get("prdc")
        prdc = PRDC(**{key: known[key] for key in PRDC._fields}) if known else None
        return cls(saved["fid"], saved["kid"], saved["kid_error"], prdc, saved["n"], saved["n_real"])


class Impostors(NamedTuple):
    """Real images of others that claimed to be private people: the threshold they ask for, the share that passes."""

    images: int
    pairs: int
    threshold: float
    passing: float


class Calibration(NamedTuple):
    """The threshold of calibrated success: at most `rate` of any kind of impostors pass.

    `strangers_are` is 'public', or 'distractors' where the data are too few to keep these apart; None without any.
    """

    threshold: float
    rate: float
    impostors: Mapping[str, Impostors]
    strangers_are: str | None

    def to_json(self) -> dict[str, Any]:
        """Kinds of impostors by name, beside the threshold that counts."""
        shown: dict[str, Any] = {
            name: {"images": one.images, "pairs": one.pairs, "threshold": one.threshold, "pass": one.passing}
            for name, one in self.impostors.items()
        }
        shown |= {"rate": self.rate, "threshold": self.threshold}
        return shown | ({} if self.strangers_are is None else {"strangers_are": self.strangers_are})

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Calibration":
        """The inverse of `to_json`."""
        impostors = {
            name: Impostors(one["images"], one["pairs"], one["threshold"], one["pass"])
            for name, one in saved.items()
            if isinstance(one, Mapping)
        }
        return cls(saved["threshold"], saved["rate"], impostors, saved.get("strangers_are"))


class Yardstick(NamedTuple):
    """Mean L2 distance of a real photograph of an attacked person to the nearest held-out one; None where it is 0.

    `source` says from which images: heldout, or train where nobody has two held-out ones.
    """

    distance: float | None
    source: str


@dataclass(frozen=True)
class EvaluatorFacts:
    """What is known of an evaluation model before it sees a reconstruction.

    Args:
        heldout_accuracy: On unseen private images, among the private people.
        heldout_accuracy_open: The same, other people included.
        distractors: How many people it knows besides the private ones.
        distractors_are_public: Whether these are the attacker's public people.
        knn_real_to_real: Mean squared L2 distance of a private training image to the nearest other one of its person.
        calibration: Its threshold; None in scores that were made before there was one.
    """

    heldout_accuracy: Interval
    heldout_accuracy_open: Interval
    distractors: int
    distractors_are_public: bool
    knn_real_to_real: float | None
    calibration: Calibration | None

    def to_json(self) -> dict[str, Any]:
        """By field."""
        return {
            "heldout_accuracy": self.heldout_accuracy.as_json(),
            "heldout_accuracy_open": self.heldout_accuracy_open.as_json(),
            "distractors": self.distractors,
            "distractors_are_public": self.distractors_are_public,
            "knn_real_to_real": self.knn_real_to_real,
        } | ({} if self.calibration is None else {"calibration": self.calibration.to_json()})

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "EvaluatorFacts":
        """The inverse of `to_json`."""
        return cls(
            interval_of(saved["heldout_accuracy"]),
            interval_of(saved["heldout_accuracy_open"]),
            saved["distractors"],
            saved["distractors_are_public"],
            saved["knn_real_to_real"],
            Calibration.from_json(saved["calibration"]) if "calibration" in saved else None,
        )


@dataclass(frozen=True)
class Judgement:
    """What one evaluation model says of a set of images.

    Args:
        means: Means over the images with their intervals, by metric.
        distances: All images together, beside the private images of the attacked people.
        yardstick: What `times_real` is in units of; None for real images.
        images: Values of each image by metric, and `answer`: the class that the model names.
    """

    means: Mapping[str, Interval]
    distances: Distances
    yardstick: Yardstick | None = None
    images: Columns = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Means by metric, then the distances, then the yardstick."""
        shown = {name: mean.as_json() for name, mean in self.means.items()} | self.distances.to_json()
        if self.yardstick is not None:
            shown["yardstick"] = {"distance": self.yardstick.distance, "from": self.yardstick.source}
        return shown

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Judgement":
        """The inverse of `to_json`, without the values of each image; other keys are left alone."""
        means = {
            name: interval_of(value)
            for name, value in saved.items()
            if isinstance(value, Mapping) and "clusters" in value and not name.startswith("heldout_accuracy")
        }
        known = saved.get("yardstick")
        yardstick = None if known is None else Yardstick(known["distance"], known["from"])
        return cls(means, Distances.from_json(saved), yardstick)


class Agreement(NamedTuple):
    """Of two evaluation models: the share of images that both name as the person, and Cohen's kappa of their hits."""

    both: Interval
    kappa: float | None


class TargetAnswers(NamedTuple):
    """What the target itself says of the reconstructions.

    `answer_difference` is the largest difference between its scores of one image in two passes: 0 unless it answers at
    random. None in scores that were made before it was taken.
    """

    top1: Interval
    confidence: Interval
    passes: int = 1
    answer_difference: float | None = None
