"""What changed from one score, or one results folder, to another, and what the statistics support of it.

Every difference is B minus A. Two scores of one protocol attack the same people and are paired over them by
`pairing.compare`. Each is of one trained network: two training seeds are no reason not to pair, and the difference
holds for these networks. Scores of two protocols are shown beside each other and never subtracted.

`lower` and `higher` are said below p = .05 of the sign-flip test over people: of the headline by its own p, of the
other judges by Holm's over them, of the scores of two folders by Holm's over all that were tested. `identical` is said
where one specification gave the same pixels and the same verdicts (or `pairing.identical` holds): there is nothing to
estimate.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
import torch

from mibench.report import machines, protocol
from mibench.report.naming import defense_label
from mibench.report.pairing import IDENTICAL, Attacked, Comparison, compare, holm
from mibench.report.result import Result
from mibench.report.tables import CLEAR
from mibench.runs import Run, canonical
from mibench.stages import artifacts
from mibench.stats.intervals import Interval
from mibench.stats.pairing import Hits

__all__ = ["Changed", "Folders", "Person", "Quantity", "Scores", "folders"]

UNCLEAR = "no clear difference"
UNTESTED = "not tested"


class Changed(NamedTuple):
    """A field of a specification that differs; None where a side does not have it."""

    part: str
    field: str
    a: Any
    b: Any


class Person(NamedTuple):
    """What both scores say of one person: hits among images."""

    label: int
    name: str
    hits_a: int
    images_a: int
    hits_b: int
    images_b: int

    @property
    def difference(self) -> float:
        """Share of hits of B minus A's."""
        return self.hits_b / self.images_b - self.hits_a / self.images_a


@dataclass(frozen=True)
class Quantity:
    """A rate of both scores and what it changed by.

    Args:
        name: Its column.
        a: Of the first score.
        b: Of the second.
        comparison: B minus A over the same people; None where it cannot be paired.
        p: The p-value that the words follow, corrected where several were tested; NaN where none was.
    """

    name: str
    a: Interval
    b: Interval
    comparison: Comparison | None
    p: float

    @property
    def difference(self) -> Interval | None:
        """B minus A with its 95% interval; without bounds where both are identical."""
        return None if self.comparison is None else self.comparison.interval

    @property
    def words(self) -> str:
        """What the test supports: lower, higher, no clear difference or identical; or that there was none."""
        if self.comparison is None:
            return UNTESTED
        if self.comparison.identical:
            return IDENTICAL
        value = self.comparison.interval.value
        return ("lower" if value < 0 else "higher") if self.p < CLEAR and value != 0 else UNCLEAR

    def to_json(self) -> dict[str, Any]:
        """Rates and difference with their bounds, p as the words follow it, and the words."""
        difference = self.difference
        return {
            "name": self.name,
            "a": self.a.as_json(),
            "b": self.b.as_json(),
            "difference": None if difference is None else difference.as_json(),
            "p": None if math.isnan(self.p) else self.p,
            "words": self.words,
        }


@dataclass(frozen=True)
class Scores:
    """Two scores, field by field and judge by judge.

    Args:
        a: The first.
        b: The second; every difference is its rate minus the first's.
    """

    a: Result
    b: Result

    @cached_property
    def apart(self) -> str:
        """Why they are not comparable; empty where they are."""
        pair = [self.a, self.b]
        lines = protocol.apart(pair, [one.protocol for one in pair])
        return lines[0] if lines else ""

    @cached_property
    def changed(self) -> list[Changed]:
        """What the specifications differ in, from the target to its judges."""
        one, other = specification(self.a), specification(self.b)
        return [
            Changed(part, field, one[part].get(field), other[part].get(field))
            for part in one
            for field in dict.fromkeys([*one[part], *other[part]])
            if one[part].get(field) != other[part].get(field)
        ]

    @cached_property
    def same_images(self) -> bool:
        """Whether both attacks returned the same pixels of the same people, byte for byte."""
        if self.a.score.pixels and self.b.score.pixels and self.a.score.pixels != self.b.score.pixels:
            return False
        ours, theirs = (_images(one.inversion) for one in (self.a, self.b))
        return all(torch.equal(ours[key], theirs[key]) for key in ("images", "labels"))

    @cached_property
    def arithmetic(self) -> list[str]:
        """In what the machines that made both differ, run for run, where that decides bits."""
        pairs = [(getattr(self.a, role), getattr(self.b, role)) for role in machines.COMPARED]
        return list(dict.fromkeys(line for one, other in pairs for line in machines.between(one, other)))

    @cached_property
    def people(self) -> list[Person]:
        """Hits of each person that both attacked, those that changed most first; no test is made of one person."""
        if self.apart:
            return []
        sides = [one.verdicts["likeness"] for one in (self.a, self.b)]
        counts = [
            dict(zip(names[:, 1].tolist(), zip(hits.tolist(), images.tolist(), strict=True), strict=True))
            for names, hits, images in (side.cells for side in sides)
        ]
        told = self.a.per_image.drop_duplicates("label")
        names = dict(zip(told["label"].tolist(), told["identity"].tolist(), strict=True))
        both = [
            Person(label, str(names[label]), *map(int, (*counts[0][label], *counts[1][label])))
            for label in sorted(counts[0].keys() & counts[1].keys())
        ]
        return sorted(both, key=lambda one: -abs(one.difference))

    def _compared(self, column: str) -> Comparison | None:
        """B minus A as one judge sees them."""
        if self.apart:
            return None
        a, b = self.a.verdicts[column], self.b.verdicts[column]
        comparison = compare(_alone(self.b, b), _alone(self.a, a))
        if comparison is None or comparison.identical:
            return comparison
        again = self.a.inversion.digest == self.b.inversion.digest and torch.equal(a.hits, b.hits)
        return Comparison(comparison.pairs, again and torch.equal(a.people, b.people) and self.same_images)

    @cached_property
    def headline(self) -> Quantity:
        """Likeness: one comparison, tested by its own p."""
        comparison = self._compared("likeness")
        p = math.nan if comparison is None else comparison.p
        return Quantity("likeness", self.a.score.likeness, self.b.score.likeness, comparison, p)

    @cached_property
    def judges(self) -> list[Quantity]:
        """What each judge of the headline says of the same images; Holm's correction over them."""
        columns = [column for column in self.a.judges if column in self.b.judges]
        compared = [self._compared(column) for column in columns]
        p = holm(pd.Series([math.nan if one is None else one.p for one in compared], dtype="float64"))
        return [
            Quantity(column, self.a.verdicts[column].rate, self.b.verdicts[column].rate, comparison, value)
            for column, comparison, value in zip(columns, compared, p, strict=True)
        ]

    @cached_property
    def natural(self) -> Quantity:
        """Natural accuracy of the targets: no run keeps it image by image, so nothing is tested."""
        a, b = self.a.score.natural_accuracy, self.b.score.natural_accuracy
        return Quantity("natural_accuracy", a, b, None, math.nan)

    @property
    def quantities(self) -> list[Quantity]:
        """Headline, judges, natural accuracy."""
        return [self.headline, *self.judges, self.natural]

    @property
    def sentence(self) -> str:
        """What the test of the headline supports, and no more."""
        if self.apart:
            return f"Not comparable. {self.apart}"
        if self.headline.words == UNTESTED:
            return "Not tested: they share no attacked person."
        if self.headline.words == IDENTICAL:
            return "Identical: the same images, byte for byte, and the same verdicts."
        if self.headline.words == UNCLEAR:
            return "No clear difference in likeness; that is not evidence that they are equal."
        seeds = [one.target.spec["seed"] for one in (self.a, self.b)]
        told = f"Likeness of B is {self.headline.words} than that of A, for these trained networks"
        return f"{told}; their training seeds differ too." if seeds[0] != seeds[1] else f"{told}."

    def to_json(self) -> dict[str, Any]:
        """Everything above as JSON values."""
        return {
            "kind": "scores",
            "a": about(self.a),
            "b": about(self.b),
            "comparable": not self.apart,
            "apart": self.apart,
            "changed": [one._asdict() for one in self.changed],
            "same_images": self.same_images,
            "arithmetic": self.arithmetic,
            "quantities": [one.to_json() for one in self.quantities],
            "says": self.sentence,
        }


def _alone(result: Result, hits: Hits) -> Attacked:
    """One score of one trained network: people are paired whatever its training seed."""
    return Attacked(result.attack, Hits(hits.people, hits.hits), (result,))


def _images(run: Run) -> dict[str, Any]:
    return artifacts.read_tensors(run.path / "images.safetensors", "reconstructions")[0]


def about(result: Result) -> dict[str, Any]:
    """Which score it is."""
    return {
        "score": result.run.id,
        "path": str(result.run.path),
        "protocol": result.protocol,
        "attack": result.attack,
        "defense": defense_label(result.target.spec),
    }


def specification(result: Result) -> dict[str, dict[str, Any]]:
    """What made a score: part -> field -> value."""
    target = dict(result.target.spec)
    stack = target.pop("defenses", [])
    training = target.pop("training", None) or {}
    defenses: dict[str, Any] = {"stack": " + ".join(item["name"] for item in stack) or "none"}
    for place, item in enumerate(stack):
        twice = sum(other["name"] == item["name"] for other in stack) > 1
        defenses[f"{item['name']}#{place + 1}" if twice else item["name"]] = item["settings"]
    parts: dict[str, Mapping[str, Any]] = {
        "target": target,
        "defense": defenses,
        "training": training,
        "prior": {} if result.prior is None else result.prior.spec,
        "attack": result.inversion.spec,
        "evaluation models": {run.spec["model"]: {"id": run.id, **run.spec} for run in result.evaluators},
        "verifiers": {run.spec["model"]: {"id": run.id, **run.spec} for run in result.verifiers},
        "score": result.run.spec,
    }
    return {part: dict(_flat(spec)) for part, spec in parts.items()}


def _flat(spec: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """`{"attack": {"settings": {"steps": 3}}}` -> `attack.settings.steps`: 3."""
    for key, value in spec.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


@dataclass(frozen=True)
class Folders:
    """Two results folders, their scores matched by specification.

    Args:
        matches: Scores of one attack on one target in one protocol, of both folders.
        only_a: Scores without such a twin in B.
        only_b: And in A.
        left_out: A line for each score that cannot be read.
    """

    matches: Sequence[Scores]
    only_a: Sequence[Result]
    only_b: Sequence[Result]
    left_out: Sequence[str]

    @cached_property
    def quantities(self) -> list[Quantity]:
        """Likeness of each match; Holm's correction over all that were tested."""
        headlines = [match.headline for match in self.matches]
        p = holm(pd.Series([one.p for one in headlines], dtype="float64"))
        return [
            Quantity(one.name, one.a, one.b, one.comparison, value) for one, value in zip(headlines, p, strict=True)
        ]

    @cached_property
    def apart(self) -> list[str]:
        """Why the protocols of scores that only one folder has are not those of the other."""
        alone = [*self.only_a, *self.only_b]
        mine, theirs = ({one.protocol for one in side} for side in (self.only_a, self.only_b))
        return protocol.apart(alone, [one.protocol for one in alone]) if mine and theirs and mine != theirs else []

    @cached_property
    def arithmetic(self) -> list[str]:
        """A line, if runs of a match were not computed alike."""
        unlike = [match for match in self.matches if match.arithmetic]
        if not unlike:
            return []
        what = "; ".join(dict.fromkeys(line for match in unlike for line in match.arithmetic))
        many = f"{len(unlike)} of {len(self.matches)} matches were"
        return [f"A and B of {many} not computed alike ({what}): a part of the difference may be theirs."]

    @property
    def sentence(self) -> str:
        """How many matched, and what was said of them."""
        if not self.matches:
            return "No score of one folder has the specification of a score of the other: nothing is compared."
        words = [one.words for one in self.quantities]
        counted = [
            f"{words.count(word)} {word}" for word in dict.fromkeys([IDENTICAL, UNCLEAR, *words]) if word in words
        ]
        equal = sum(match.same_images for match in self.matches)
        return (
            f"{len(words)} {'score' if len(words) == 1 else 'scores'} in both, likeness of B against A: "
            f"{', '.join(counted)}. Images equal byte for byte: {equal} of {len(words)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Everything above as JSON values."""
        return {
            "kind": "folders",
            "matches": [
                {"a": about(one.a), "b": about(one.b), "same_images": one.same_images} | quantity.to_json()
                for one, quantity in zip(self.matches, self.quantities, strict=True)
            ],
            "only_a": [about(one) for one in self.only_a],
            "only_b": [about(one) for one in self.only_b],
            "apart": self.apart,
            "arithmetic": self.arithmetic,
            "left_out": list(self.left_out),
            "says": self.sentence,
        }


def folders(a: Sequence[Result], b: Sequence[Result], left_out: Sequence[str] = ()) -> Folders:
    """Scores of two folders, matched by protocol and by what made them: target, prior, attack, scoring.

    Args:
        a: Scores of the first folder.
        b: Of the second.
        left_out: What could not be read of either.
    """
    ours, theirs = ({_key(one): one for one in side} for side in (a, b))
    return Folders(
        [Scores(one, theirs[key]) for key, one in ours.items() if key in theirs],
        [one for key, one in ours.items() if key not in theirs],
        [one for key, one in theirs.items() if key not in ours],
        left_out,
    )


def _key(result: Result) -> str:
    return canonical([result.protocol, result.target.spec, *result.made_by, result.run.spec])
