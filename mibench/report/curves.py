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

from mibench.core import Access
from mibench.report.pairing import holm
from mibench.report.points import Point, undefended
from mibench.report.rows import bounds
from mibench.stats.matched import Matched, Measured
from mibench.stats.matched import matched as matching

__all__ = ["BELOW", "Curve", "curves", "frame", "hypervolume", "matched", "pareto", "state"]

BELOW = (0.02, 0.05, 0.1)
"""At how much less natural accuracy than the undefended target's attack accuracies are compared."""

NOT_REACHED, NOT_CONVERGED, NO_TWIN, UNKNOWN = "not reached", "not converged", "no twin", "unknown"
"""Why there is no number: no measured strength costs so much; a strength that the number leans on had not converged; no
undefended target was attacked alike; a target's verdicts on single held-out images are missing."""


@dataclass(frozen=True)
class Curve:
    """One defense over its strengths under one access; the undefended point is part of it, if it was measured."""

    defense: str
    access: Access
    points: tuple[Point, ...]

    def place(self, point: Point) -> tuple[float, float]:
        """(natural accuracy, attack accuracy) of a point."""
        return point.natural.value, point.attacks[self.access].rate.value

    @property
    def strengths(self) -> tuple[Point, ...]:
        """The defended points."""
        return tuple(point for point in self.points if point.defended)

    def place_of(self, place: int) -> Point:
        """The point that `stats.matched` counts by this number: 0 is no defense, then the strengths."""
        none = tuple(point for point in self.points if not point.defended)
        return (*none, *self.strengths)[place]

    def xy(self) -> list[tuple[float, float]]:
        """Every point's place, by rising natural accuracy."""
        return sorted(self.place(point) for point in self.points)


def curves(points: list[Point], access: Access) -> list[Curve]:
    """Every defense's curve, in the order of the points."""
    groups: dict[tuple[str, str, str, str], list[Point]] = defaultdict(list)
    for point in points:
        if access in point.attacks:
            groups[point.protocol, point.track, point.base, point.defense].append(point)
    lines = []
    for (*_, defense), own in groups.items():
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
        rivals = [other for other in known if (other.protocol, other.track) == (point.protocol, point.track)]
        others = [place[id(other)] for other in rivals]
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


def _measured(point: Point, access: Access, column: str = "") -> Measured | None:
    """What a point says at matched natural accuracy, by the headline or another judge; None where it does not."""
    attacked = point.attacks[access]
    judged = attacked.judged_by(column) if column else attacked
    return None if judged is None or point.heldout is None else Measured(judged.hits, point.heldout)


def matched(curve: Curve, below: float, column: str = "", rival: Curve | None = None) -> Matched | None:
    """Attack accuracy where the defense costs `below` of natural accuracy, beside no defense (`stats.matched`).

    Args:
        curve: With the undefended point.
        below: How much lower than the undefended target's natural accuracy, in [0, 1].
        column: The judge's column of verdicts; empty is the headline.
        rival: Another defense on the same undefended target, to whose attack accuracy there the difference is taken.

    Returns:
        None where no strength costs that much, or where single verdicts are missing.
    """
    none = [point for point in curve.points if not point.defended]
    others = rival.strengths if rival else ()
    known = [_measured(point, curve.access, column) for point in (*none, *curve.strengths, *others)]
    whole = [one for one in known if one is not None]
    if len(none) != 1 or len(whole) < len(known):
        return None
    first = len(curve.strengths) + 1
    return matching(whole[0], whole[1:first], below, whole[first:])


def state(curve: Curve, below: float, found: Matched | None) -> str:
    """Why a defense has no attack accuracy at a natural accuracy: NOT_REACHED, NOT_CONVERGED or NO_TWIN; empty where it
    has one."""
    none = next((point for point in curve.points if not point.defended), None)
    if none is None:
        return NO_TWIN
    if found is None:
        reached = min(point.natural.value for point in curve.points) <= none.natural.value - below
        return UNKNOWN if reached else NOT_REACHED
    return "" if all(curve.place_of(place).converged for place in found.leaning) else NOT_CONVERGED


def _between(curve: Curve, found: Matched) -> str:
    """Between which two points: `none | re a_e=0.4`, or the only one."""
    ends = sorted(map(curve.place_of, found.leaning), key=lambda point: -point.natural.value)
    return " | ".join(point.label for point in ends)


def frame(points: list[Point]) -> pd.DataFrame:
    """One row per defense and access: hypervolume, and attack accuracy at natural accuracies that no defense chose."""
    lines = []
    for access in Access.strongest_first():
        for curve in curves(points, access):
            first = curve.points[0]
            line: dict[str, Any] = {
                "protocol": first.protocol,
                "track": first.track,
                "base": first.base,
                "defense": curve.defense,
                "access": access.key,
                "points": len(curve.points),
                "hypervolume": hypervolume(curve.xy()),
                "hypervolume_none": math.nan if first.defended else hypervolume([curve.place(first)]),
            }
            judge = _judge(curve)
            for below in BELOW:
                line |= _at(curve, below, judge)
            lines.append(line)
    table = pd.DataFrame(lines)
    for below in BELOW if lines else ():
        key = f"at_minus_{100 * below:g}"
        for _, own in table.groupby(["protocol", "track", "access"], sort=False):
            table.loc[own.index, f"{key}_p_adjusted"] = holm(own[f"{key}_p"])
    return table


def _judge(curve: Curve) -> str:
    """The open-set column of the headline's evaluation model, by which papers compare; empty where none has it."""
    names = [
        column
        for result in curve.points[0].attacks[curve.access].results
        for column in result.verdicts
        if column.startswith("open_top1@")
    ]
    return next(iter(names), "")


def _at(curve: Curve, below: float, judge: str) -> dict[str, Any]:
    """The columns of one natural accuracy; no number stands where a neighbour had not converged."""
    key, found = f"at_minus_{100 * below:g}", matched(curve, below)
    why = state(curve, below, found)
    open_set = matched(curve, below, judge) if judge and found is not None and not why else None
    known = None if why else found
    line: dict[str, Any] = {f"{key}_state": why, f"{key}_between": _between(curve, found) if found else ""}
    line |= bounds(key, known.rate if known else None) | bounds(
        f"{key}_difference", known.difference if known else None
    )
    line[f"{key}_p"] = known.p if known else math.nan
    line |= bounds(f"{key}_open", open_set.rate if open_set else None)
    return line | bounds(f"{key}_open_difference", open_set.difference if open_set else None)
