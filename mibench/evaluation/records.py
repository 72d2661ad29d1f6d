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
    "ImpostorClaims",
    "Judgement",
    "TargetAnswers",
    "Verification",
    "VerifierFacts",
    "Yardstick",
    "interval_of",
]

Columns = Mapping[str, Tensor]
"""Values of each image by the name of their metric."""


def interval_of(saved: Mapping[str, Any]) -> Interval:
    """The inverse of `Interval.as_json`."""
    value, low, high = saved["value"], saved["low"], saved["high"]
    return Interval(
        math.nan if value is None else value,
        math.nan if low is None else low,
        math.nan if high is None else high,
        saved["n"],
        saved["clusters"],
    )


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


class Calibration(NamedTuple):
    """The threshold of identification (`tpir`): at most `rate` of the images of strangers pass it.

    `strangers` is how many images were shown, `passing` the share that passes, `named` the share that the model names
    as a private person without any threshold; `strangers_are` is 'public', or 'distractors' where the data are too few
    to keep these apart.
    """

    threshold: float
    rate: float
    strangers: int
    passing: float
    named: float
    strangers_are: str


class Yardstick(NamedTuple):
    """The scale of `closeness`: mean L2 distances to the nearest held-out image of an attacked person, of another real
    photograph and of a stranger; None where there is no such scale.

    `source` says which photographs: heldout, or train where nobody has two held-out ones.
    """

    photograph: float | None
    stranger: float | None
    source: str


class ImpostorClaims(NamedTuple):
    """Real images of others that claimed to be private people: how many, and the share that each threshold passes."""

    images: int
    claims: int
    passing: Mapping[str, float]


@dataclass(frozen=True)
class VerifierFacts:
    """What is known of a verifier before it sees a reconstruction.

    Args:
        people: How many it was trained on.
        trained_on: Who they are, in words. Of a published network it is not known that nobody plays another part.
        thresholds: By metric: `verified` at a false-accept rate of 1%, `verified_strict` at .1%.
        impostors: Claims of strangers and of other private people; each threshold is the higher one of the two kinds'.
        genuine: By metric, the share of real held-out images that are accepted, each compared with the person's others.
        auc: Area under the ROC curve, genuine against all impostor claims.
        roc: (false-accept rate, share of genuine images accepted) at some rates.
    """

    people: int
    trained_on: str
    thresholds: Mapping[str, float]
    impostors: Mapping[str, ImpostorClaims]
    genuine: Mapping[str, Interval]
    auc: float
    roc: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """By field."""
        return {
            "people": self.people,
            "trained_on": self.trained_on,
            "thresholds": dict(self.thresholds),
            "impostors": {name: one._asdict() for name, one in self.impostors.items()},
            "genuine": {name: one.as_json() for name, one in self.genuine.items()},
            "auc": self.auc,
            "roc": [list(point) for point in self.roc],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "VerifierFacts":
        """The inverse of `to_json`; before there were published recognisers nobody said on whom they were trained."""
        return cls(
            saved["people"],
            saved.get("trained_on", f"{saved['people']} people who play no other part"),
            saved["thresholds"],
            {name: ImpostorClaims(**one) for name, one in saved["impostors"].items()},
            {name: interval_of(one) for name, one in saved["genuine"].items()},
            saved["auc"],
            tuple((far, passing) for far, passing in saved["roc"]),
        )


@dataclass(frozen=True)
class Verification:
    """What one verifier says of a set of images.

    Args:
        means: Means over the images with their intervals: verified, verified_strict, similarity; face_found where
            faces are aligned.
        images: Values of each image by metric.
    """

    means: Mapping[str, Interval]
    images: Columns = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class EvaluatorFacts:
    """What is known of an evaluation model before it sees a reconstruction.

    Args:
        heldout_accuracy: On unseen private images, among the private people.
        heldout_accuracy_open: The same, other people included.
        distractors: How many people it knows besides the private ones.
        distractors_are_public: Whether these are the attacker's public people.
        knn_real_to_real: Mean squared L2 distance of a private training image to the nearest other one of its person.
        calibration: Its threshold of identification; None without images of strangers.
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
            "calibration": self.calibration and self.calibration._asdict(),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "EvaluatorFacts":
        """The inverse of `to_json`."""
        return cls(
            interval_of(saved["heldout_accuracy"]),
            interval_of(saved["heldout_accuracy_open"]),
            saved["distractors"],
            saved["distractors_are_public"],
            saved["knn_real_to_real"],
            Calibration(**saved["calibration"]) if saved["calibration"] else None,
        )


@dataclass(frozen=True)
class Judgement:
    """What one evaluation model says of a set of images.

    Args:
        means: Means over the images with their intervals, by metric.
        distances: All images together, beside the private images of the attacked people.
        yardstick: The scale of `closeness`; None for real images.
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
            shown["yardstick"] = self.yardstick._asdict()
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
        yardstick = None if known is None else Yardstick(**known)
        return cls(means, Distances.from_json(saved), yardstick)


class Agreement(NamedTuple):
    """Of two evaluation models: the share of images that both name as the person."""

    both: Interval


class TargetAnswers(NamedTuple):
    """What the target itself says of the reconstructions.

    `answer_difference` is the largest difference between its scores of one image in two passes: 0 unless it answers at
    random.
    """

    top1: Interval
    confidence: Interval
    passes: int = 1
    answer_difference: float = 0.0
