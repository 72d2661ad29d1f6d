"""What an evaluation finds, as a type: every mean with its interval, n and the values of each image.

`to_json` and `per_image` give the files scores.json and per_image.csv; their keys and columns are the names under which
metrics declare themselves (`mibench.metrics`), `name@model` in the table of images.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from mibench.evaluation import protocol
from mibench.metrics import Field, Unavailable, Unit
from mibench.metrics.prdc import PRDC, K
from mibench.runtime.errors import UserError
from mibench.stats.intervals import Interval

__all__ = [
    "FIELDS",
    "Agreement",
    "Calibration",
    "Columns",
    "Distances",
    "EvaluatorFacts",
    "ImpostorClaims",
    "Judgement",
    "Score",
    "TargetAnswers",
    "Verification",
    "VerifierFacts",
    "Yardstick",
]

Columns = Mapping[str, Tensor]
"""Values of each image by the name of their metric."""


def interval_of(found: Mapping[str, Any]) -> Interval:
    """The inverse of `Interval.as_json`."""
    value, low, high = (math.nan if found[key] is None else found[key] for key in ("value", "low", "high"))
    return Interval(value, low, high, found["n"], found["clusters"])


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
    def from_json(cls, found: Mapping[str, Any]) -> "Distances":
        """The inverse of `to_json`; scores that were made before `prdc` have none."""
        known = found.get("prdc")
        prdc = PRDC(**{key: known[key] for key in PRDC._fields}) if known else None
        return cls(found["fid"], found["kid"], found["kid_error"], prdc, found["n"], found["n_real"])


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
        people: How many it was trained on; none is private, public or a distractor.
        thresholds: By metric: `verified` at a false-accept rate of 1%, `verified_strict` at .1%.
        impostors: Claims of strangers and of other private people; each threshold is the higher one of the two kinds'.
        genuine: By metric, the share of real held-out images that are accepted, each compared with the person's others.
        auc: Area under the ROC curve, genuine against all impostor claims.
        roc: (false-accept rate, share of genuine images accepted) at some rates.
    """

    people: int
    thresholds: Mapping[str, float]
    impostors: Mapping[str, ImpostorClaims]
    genuine: Mapping[str, Interval]
    auc: float
    roc: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """By field."""
        return {
            "people": self.people,
            "thresholds": dict(self.thresholds),
            "impostors": {name: one._asdict() for name, one in self.impostors.items()},
            "genuine": {name: one.as_json() for name, one in self.genuine.items()},
            "auc": self.auc,
            "roc": [list(point) for point in self.roc],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "VerifierFacts":
        """The inverse of `to_json`."""
        return cls(
            found["people"],
            found["thresholds"],
            {name: ImpostorClaims(**one) for name, one in found["impostors"].items()},
            {name: interval_of(one) for name, one in found["genuine"].items()},
            found["auc"],
            tuple((far, passing) for far, passing in found["roc"]),
        )


@dataclass(frozen=True)
class Verification:
    """What one verifier says of a set of images.

    Args:
        means: Means over the images with their intervals: verified, verified_strict, similarity.
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
    def from_json(cls, found: Mapping[str, Any]) -> "EvaluatorFacts":
        """The inverse of `to_json`."""
        return cls(
            interval_of(found["heldout_accuracy"]),
            interval_of(found["heldout_accuracy_open"]),
            found["distractors"],
            found["distractors_are_public"],
            found["knn_real_to_real"],
            Calibration(**found["calibration"]) if found["calibration"] else None,
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
    def from_json(cls, found: Mapping[str, Any]) -> "Judgement":
        """The inverse of `to_json`, without the values of each image; other keys are left alone."""
        means = {
            name: interval_of(value)
            for name, value in found.items()
            if isinstance(value, Mapping) and "clusters" in value and not name.startswith("heldout_accuracy")
        }
        known = found.get("yardstick")
        yardstick = None if known is None else Yardstick(**known)
        return cls(means, Distances.from_json(found), yardstick)


class Agreement(NamedTuple):
    """Of two evaluation models: the share of images that both name as the person."""

    both: Interval


class TargetAnswers(NamedTuple):
    """What the target itself says of the reconstructions.

    `answer_difference` is the largest difference between its scores of one image in two passes: 0 unless it answers at
    random. None in scores that were made before it was taken.
    """

    top1: Interval
    confidence: Interval
    passes: int = 1
    answer_difference: float | None = None


@dataclass(frozen=True)
class Score:
    """Everything that one evaluation found.

    Args:
        n: How many images.
        identities: How many people they claim to show.
        classes: How many people the target knows.
        natural_accuracy: Of the target, on unseen private images.
        target: What the target itself says.
        evaluators: What each evaluation model says, the headline first.
        facts: What is known of each evaluation model.
        ceiling: What each says of real held-out images of the same people.
        chance: What guessing gives, by column.
        agreement: Of every two evaluation models of different families, `resnet+ir`.
        likeness: The headline: named by the first evaluation model, open-set, and let through by the gate.
        likeness_ceiling: The same of real held-out images of the same people.
        gate: What has to agree with the evaluation model: `verified@name`, or `own_ball@name` without a verifier.
        verifiers: What each verifier says, the headline's first.
        verifier_facts: What is known of each verifier.
        both_verified: Accepted by the first two verifiers, of different families; None with fewer.
        perceptual: Means of metrics that judge with published networks.
        inception: Distances in Inception's features; None without its weights.
        unavailable: Metrics that could not be computed here.
        pixels: sha256 of the pixels that were judged.
        card: The protocol card.
        images: Values of each image that belong to no evaluation model, `label` first.
    """

    n: int
    identities: int
    classes: int
    natural_accuracy: Interval
    target: TargetAnswers
    evaluators: Mapping[str, Judgement]
    facts: Mapping[str, EvaluatorFacts]
    ceiling: Mapping[str, Judgement]
    chance: Mapping[str, float]
    agreement: Mapping[str, Agreement]
    likeness: Interval
    likeness_ceiling: Interval
    gate: str
    verifiers: Mapping[str, Verification]
    verifier_facts: Mapping[str, VerifierFacts]
    both_verified: Interval | None
    perceptual: Mapping[str, Interval]
    inception: Distances | None
    unavailable: tuple[Unavailable, ...]
    pixels: str
    card: Mapping[str, Any] = field(repr=False)
    images: Columns = field(default_factory=dict, repr=False, compare=False)

    @property
    def headline(self) -> Interval:
        """The likeness: agreement of an evaluation model *and* an independent gate."""
        return self.likeness

    def mean(self, column: str) -> Interval:
        """A mean with its interval by its column, such as `open_top1@resnet` or `lpips`.

        Raises:
            UserError: If this score has no such column.
        """
        name, _, at = column.partition("@")
        if not at:
            own = {"natural_accuracy": self.natural_accuracy, "target_top1": self.target.top1}
            own |= {"likeness": self.likeness} | ({"both_verified": self.both_verified} if self.both_verified else {})
            known = own | {"target_confidence": self.target.confidence, **self.perceptual}
        else:
            known = dict(self.evaluators[at].means) if at in self.evaluators else {}
            known |= self.verifiers[at].means if at in self.verifiers else {}
            known |= {"both": self.agreement[at].both} if at in self.agreement else {}
        if name not in known:
            columns = [*self.perceptual, *(f"{key}@{at}" for at, one in self.evaluators.items() for key in one.means)]
            raise UserError(f"this score has no mean '{column}'; it has, among others: {', '.join(columns)}")
        return known[name]

    def to_json(self) -> dict[str, Any]:
        """The content of scores.json."""
        perceptual: dict[str, Any] = {name: mean.as_json() for name, mean in self.perceptual.items()}
        if self.inception is not None:
            perceptual["inception"] = self.inception.to_json()
        return {
            "agreement": {name: {"both": one.both.as_json()} for name, one in self.agreement.items()},
            "card": dict(self.card),
            "card_hash": protocol.digest(self.card),
            "ceiling": {name: one.to_json() for name, one in self.ceiling.items()},
            "chance": dict(self.chance),
            "classes": self.classes,
            "evaluators": {name: one.to_json() | self.facts[name].to_json() for name, one in self.evaluators.items()},
            "gate": self.gate,
            "identities": self.identities,
            "likeness": self.likeness.as_json(),
            "likeness_ceiling": self.likeness_ceiling.as_json(),
            "both_verified": self.both_verified and self.both_verified.as_json(),
            "verifiers": {
                name: {metric: mean.as_json() for metric, mean in one.means.items()}
                | {"facts": self.verifier_facts[name].to_json()}
                for name, one in self.verifiers.items()
            },
            "n": self.n,
            "natural_accuracy": self.natural_accuracy.as_json(),
            "perceptual": perceptual,
            "pixels": self.pixels,
            "target": self.target._asdict()
            | {"top1": self.target.top1.as_json(), "confidence": self.target.confidence.as_json()},
            "unavailable": [vars(one) for one in self.unavailable],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Score":
        """The inverse of `to_json`, without the values of each image; evaluation models in the card's order.

        Raises:
            KeyError, TypeError: If it is no score.
        """
        card = found.get("card", {})
        order = [one["model"] for one in card.get("evaluators", [])] or sorted(found["evaluators"])
        judged, target = {name: found["evaluators"][name] for name in order}, found["target"]
        sets = dict(found["perceptual"])
        inception = sets.pop("inception", None)
        verifiers = found["verifiers"]
        checkers = [one["model"] for one in card.get("verifiers", [])] or sorted(verifiers)
        return cls(
            found["n"],
            found["identities"],
            found["classes"],
            interval_of(found["natural_accuracy"]),
            TargetAnswers(
                interval_of(target["top1"]),
                interval_of(target["confidence"]),
                target["passes"],
                target["answer_difference"],
            ),
            {name: Judgement.from_json(one) for name, one in judged.items()},
            {name: EvaluatorFacts.from_json(one) for name, one in judged.items()},
            {name: Judgement.from_json(found["ceiling"][name]) for name in order},
            found["chance"],
            {name: Agreement(interval_of(one["both"])) for name, one in found.get("agreement", {}).items()},
            interval_of(found["likeness"]),
            interval_of(found["likeness_ceiling"]),
            found["gate"],
            {
                name: Verification({key: interval_of(one) for key, one in verifiers[name].items() if key != "facts"})
                for name in checkers
            },
            {name: VerifierFacts.from_json(verifiers[name]["facts"]) for name in checkers},
            interval_of(found["both_verified"]) if found["both_verified"] else None,
            {name: interval_of(one) for name, one in sets.items()},
            None if inception is None else Distances.from_json(inception),
            tuple(Unavailable(**one) for one in found["unavailable"]),
            found.get("pixels", ""),
            card,
        )

    def per_image(self) -> dict[str, Tensor]:
        """Columns of per_image.csv: label, the target's answers, `name@model`, then the perceptual distances.

        Raises:
            UserError: If the score was read from a JSON file, which has no values of single images.
        """
        if not self.images:
            raise UserError("this score was read from scores.json, without its images; read per_image.csv beside it")
        own = {name: values for name, values in self.images.items() if name not in self.perceptual}
        for model, judged in self.evaluators.items():
            own |= {f"{name}@{model}": values for name, values in judged.images.items()}
        for model, verified in self.verifiers.items():
            own |= {f"{name}@{model}": values for name, values in verified.images.items()}
        return own | {name: self.images[name] for name in self.perceptual}

    def per_image_csv(self, classes: Sequence[str]) -> str:
        """The content of per_image.csv: one line per image; hits as 0 and 1, numbers with 6 digits.

        Args:
            classes: Names of the identities, by label.
        """
        table = self.per_image()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["identity", *table])
        for row in zip(*(values.tolist() for values in table.values()), strict=True):
            cells = [int(value) if isinstance(value, bool) else f"{value:.6g}" for value in row]
            writer.writerow([classes[int(row[0])], *cells])
        return text.getvalue()


FIELDS = (
    Field("identity", Unit.TEXT, "name of the person that the image claims to show", "the data set"),
    Field("label", Unit.COUNT, "number of that person: its place among the target's classes", "the data set"),
)
"""Columns of per_image.csv that are no metric's; `answer@model` is described by `fields`."""


def fields(evaluators: Sequence[str]) -> list[Field]:
    """What scores.json and per_image.csv hold besides metrics, for `mibench.metrics.dictionary`.

    Args:
        evaluators: Names of the evaluation models.
    """
    answers = [
        Field(
            f"answer@{name}",
            Unit.COUNT,
            f"the class that {name} names; from the number of classes on, another person",
            name,
        )
        for name in evaluators
    ]
    return [*FIELDS, *answers]
