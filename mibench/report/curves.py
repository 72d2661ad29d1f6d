"""Curves: one defense over its strengths, with no defense as strength zero.

References:
    | Multiobjective evolutionary algorithms: a comparative case study (Zitzler and Thiele, 1999), the hypervolume
    | https://doi.org/10.1109/4235.797969
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from mibench.core import Access
from mibench.report.pairing import Attacked
from mibench.report.points import Point, undefended
from mibench.report.rows import bounds
from mibench.stats.intervals import Interval, drawn, expanded
from mibench.stats.pairing import Hits, between

__all__ = ["BELOW", "Curve", "curves", "frame", "hypervolume", "matched", "pareto"]

BELOW = (0.02, 0.05, 0.1)
"""At how much less natural accuracy than the undefended target's attack accuracies are compared."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Curve:
    """One defense over its strengths under one access; the undefended point is part of it, if it was measured."""

    defense: str
    access: Access
    points: tuple[Point, ...]

    def place(self, point: Point) -> tuple[float, float]:
        """(natural accuracy, attack accuracy) of a point."""
        return point.natural.value, point.attacks[self.access].rate.value

    def ordered(self) -> list[Point]:
        """Every point, by rising natural accuracy."""
        return sorted(self.points, key=self.place)

    def xy(self) -> list[tuple[float, float]]:
        """Every point's place, by rising natural accuracy."""
        return [self.place(point) for point in self.ordered()]


def curves(points: list[Point], access: Access) -> list[Curve]:
    """Every defense's curve, in the order of the points."""
    groups: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for point in points:
        if access in point.attacks:
            groups[point.protocol, point.base, point.defense].append(point)
    lines = []
    for (_, _, defense), own in groups.items():
        if defense == "none":
            continue
        none = undefended(own[0], [point for point in points if access in point.attacks])
        lines.append(Curve(defense, access, tuple([none, *own] if none else own)))
    return lines


def pareto(points: list[Point], access: Access) -> list[Point]:
    """The points that no other beats in both: natural accuracy at least as high, attack accuracy at least as low."""
    known = [point for point in points if access in point.attacks]
    place = {id(point): (point.natural.value, point.attacks[access].rate.value) for point in known}

    def beaten(point: Point) -> bool:
        x, y = place[id(point)]
        others = [place[id(other)] for other in known if other.protocol == point.protocol]
        return any(a >= x and b <= y and (a, b) != (x, y) for a, b in others)

    return [point for point in known if not beaten(point)]


def hypervolume(xy: Iterable[tuple[float, float]]) -> float:
    """Area of {(u, p)} that some point reaches: u <= its natural accuracy, p <= 1 - its attack accuracy; in [0, 1].

    The reference point is (0, 0): no utility, everything leaks.
    """
    area, best = 0.0, 0.0
    # From the most useful down: each adds a strip as wide as its utility for the privacy that is new.
    for natural, attack in sorted(xy, key=lambda pair: (-pair[0], pair[1])):
        if 1 - attack > best:
            area += natural * (1 - attack - best)
            best = 1 - attack
    return area


def matched(curve: Curve, natural: float) -> Interval | None:
    """Attack accuracy at a given natural accuracy, linear between the two nearest points; None beyond the curve's ends.

    Identities are resampled for all points together; the natural accuracies move with them where both are of the same
    identities. The interval also spans that of the rate between the two points (`stats.pairing.between`), so that it
    has a width where every resample gives the same number.
    """
    order = curve.ordered()
    xy = [curve.place(point) for point in order]
    if len(xy) < 2 or not xy[0][0] <= natural <= xy[-1][0]:
        return None
    x, y = torch.tensor(xy, dtype=torch.float64).T.contiguous()
    right, share = _between(x[None], natural)
    value = float((y[right - 1] + share * (y[right] - y[right - 1]))[0, 0])
    n = sum(len(point.attacks[curve.access].hits.hits) for point in curve.points)
    served = [point.heldout for point in order if point.heldout is not None]
    attacked = [point.attacks[curve.access] for point in order]
    people = len(attacked[0].hits.people.unique())
    if len(served) < len(order) or people < 2:
        return Interval(value, math.nan, math.nan, 0, 0)
    low, high = expanded(_resampled(attacked, served, natural), people)
    here = int(right)
    rate = between(attacked[here - 1].hits, attacked[here].hits, float(share))
    if rate is not None:
        low, high = min(low, rate.low), max(high, rate.high)
    return Interval(value, min(low, value), max(high, value), n, people)


def _between(x: Float64[Tensor, "r p"], at: float) -> tuple[Tensor, Float64[Tensor, "r 1"]]:
    """The point right of `at` in each row of rising x, and how far `at` lies from the one to its left, in [0, 1].

    A row that ends before `at` (a resampled curve) is continued by its end.
    """
    right = torch.searchsorted(x, torch.full((len(x), 1), at, dtype=torch.float64)).clamp(1, x.shape[1] - 1)
    x0, x1 = x.gather(1, right - 1), x.gather(1, right)
    return right, ((at - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)


def _resampled(attacked: list[Attacked], served: list[Hits], natural: float) -> Float64[Tensor, " r"]:
    """Attack accuracy at a natural accuracy, over resampled identities."""
    people = attacked[0].hits.people.unique()
    weight = drawn(len(people), RESAMPLES)

    def means(one: Hits) -> Tensor:
        index = torch.searchsorted(people, one.people)
        inside = (index < len(people)) & (people[index.clamp(max=len(people) - 1)] == one.people)
        zero = torch.zeros(len(people), dtype=torch.float64)
        total = zero.index_add(0, index[inside], one.hits[inside].double())
        count = zero.index_add(0, index[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
        rest = one.hits[~inside].double()  # held-out images of people who were not attacked stay as they are
        return (weight @ total + rest.sum()) / (weight @ count + len(rest))

    attack = torch.stack([means(one.hits) for one in attacked], dim=1)
    own = torch.stack([means(one) for one in served], dim=1)
    order = own.argsort(dim=1)
    x, y = own.gather(1, order), attack.gather(1, order)
    right, share = _between(x, natural)
    y0, y1 = y.gather(1, right - 1), y.gather(1, right)
    return (y0 + share * (y1 - y0))[:, 0]


def frame(points: list[Point]) -> pd.DataFrame:
    """One row per defense and access: hypervolume, and attack accuracy at natural accuracies that no defense chose."""
    lines = []
    for access in Access.strongest_first():
        for curve in curves(points, access):
            first = curve.points[0]
            line: dict[str, Any] = {
                "protocol": first.protocol,
                "base": first.base,
                "defense": curve.defense,
                "access": access.key,
                "points": len(curve.points),
                "hypervolume": hypervolume(curve.xy()),
                "hypervolume_none": math.nan if first.defended else hypervolume([curve.place(first)]),
            }
            for below in BELOW:
                at = math.nan if first.defended else first.natural.value - below
                line |= bounds(f"at_minus_{100 * below:g}", None if math.isnan(at) else matched(curve, at))
            lines.append(line)
    return pd.DataFrame(lines)
