"""What is reached when: curves of a race, and how many times sooner one of them is as high, with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

__all__ = ["ENOUGH", "MEASURES", "Curve", "Equal", "reached"]

ENOUGH = 0.9
"""The share of what theirs ends at that has to be reached."""

MEASURES = ("accuracy", "likeness")
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Curve:
    """Who was hit at which step of one run.

    Args:
        steps: Looked at, from the start.
        seconds: Until there, what looking took not counted.
        hits: By measure, whether the image of each person is a hit at each of these steps.
    """

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    hits: Mapping[str, Bool[Tensor, "m p"]]

    def rates(self, measure: str) -> list[float]:
        """The share of people who are hit, at each step."""
        rates: list[float] = self.hits[measure].double().mean(dim=1).tolist()
        return rates

    def to_json(self) -> dict[str, Any]:
        """Steps, seconds and rates."""
        return {"steps": self.steps, "seconds": self.seconds} | {name: self.rates(name) for name in self.hits}


def reached(seconds: Sequence[float], rates: Sequence[float], least: float) -> float | None:
    """Seconds of the first step looked at from which on the rate is never below `least`; None if there is none."""
    since: float | None = None
    for when, rate in zip(seconds, rates, strict=True):
        if rate < least:
            since = None
        elif since is None:
            since = when
    return since


@dataclass(frozen=True, eq=False)
class Equal:
    """How long both take to be as good.

    Args:
        attack: Its name and the preset whose rates ours has.
        target: In the zoo.
        precision: Of ours; theirs is float32.
        theirs: The authors' loop.
        ours: Of the same people.
    """

    attack: str
    target: str
    precision: str
    theirs: Curve
    ours: Curve

    def seconds(self, measure: str) -> tuple[float | None, float | None]:
        """Theirs and ours until 90% of what theirs ends at is reached and kept; None: never."""
        return self._seconds(measure, torch.arange(self.theirs.hits[measure].shape[1]))

    def _seconds(self, measure: str, people: Tensor) -> tuple[float | None, float | None]:
        rates = [one.hits[measure][:, people].double().mean(dim=1).tolist() for one in (self.theirs, self.ours)]
        least = ENOUGH * rates[0][-1]
        theirs, ours = (
            reached(one.seconds, own, least - 1e-9) for one, own in zip((self.theirs, self.ours), rates, strict=True)
        )
        return theirs, ours

    def ratio(self, measure: str) -> float | None:
        """How many times sooner ours is there; None if it never is, or both are there at once."""
        return _ratio(self.seconds(measure))

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """By measure, 95% of the ratios over people drawn anew (percentiles of 2,000 bootstrap samples of seed 0).

        A sample in which ours is never there counts 0. Of other starts, another prior or target it says nothing.
        """
        drawn = torch.Generator().manual_seed(0)
        found = {}
        for measure in self.theirs.hits:
            count = self.theirs.hits[measure].shape[1]
            people = torch.randint(count, (RESAMPLES, count), generator=drawn)
            ratios = torch.tensor([_ratio(self._seconds(measure, one)) or 0.0 for one in people])
            low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
            found[measure] = (low, high)
        return found

    def to_json(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "attack": self.attack,
            "target": self.target,
            "precision": self.precision,
            "theirs": self.theirs.to_json(),
            "ours": self.ours.to_json(),
            "ratio": {one: self.ratio(one) for one in self.theirs.hits},
            "interval": self.intervals,
        }


def _ratio(seconds: tuple[float | None, float | None]) -> float | None:
    first, second = seconds
    return first / second if first is not None and second else None
