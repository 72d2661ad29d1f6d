"""Does a stack of defenses do more than each of its parts alone, where both cost the same natural accuracy?

A stack costs what its parts cost together, so it is compared with each part at a strength that costs as much as the
whole stack does (`stats.matched`, the part as the rival), never with the part inside it.
"""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from mibench.core import Access
from mibench.report.curves import BELOW, NOT_CONVERGED, NOT_REACHED, Curve, curves, matched
from mibench.report.points import Point
from mibench.report.rows import bounds

__all__ = ["frame"]


def frame(points: list[Point]) -> pd.DataFrame:
    """One row per stack, part, access and natural accuracy: likeness of both and the difference, paired over people
    and seeds, or why there is none."""
    lines = []
    for access in Access.strongest_first():
        known = curves(points, access)
        for stack in known:
            for part in _parts(stack, known):
                lines += [_line(stack, part, below) for below in BELOW]
    return pd.DataFrame(lines)


def _parts(stack: Curve, among: list[Curve]) -> Iterator[Curve]:
    """The curves of the defenses that a stack is made of, measured alone over their own strengths."""
    names = stack.defense.split(" + ")
    if len(names) < 2:
        return
    first = stack.points[0]
    alone = {
        one.defense: one
        for one in among
        if (one.points[0].protocol, one.points[0].track, one.points[0].base)
        == (first.protocol, first.track, first.base)
    }
    for name in names:
        # Of all but the first defense the stack's name has the strength, which its own curve goes over: `nls`.
        part = alone.get(name) or alone.get(name.split()[0])
        if part is not None:
            yield part


def _line(stack: Curve, part: Curve, below: float) -> dict[str, Any]:
    first = stack.points[0]
    found, alone = matched(stack, below, rival=part), matched(part, below)
    leaning = [] if found is None else [stack.place_of(place) for place in found.leaning]
    leaning += [] if alone is None else [part.place_of(place) for place in alone.leaning]
    state = NOT_REACHED if found is None else "" if all(one.converged for one in leaning) else NOT_CONVERGED
    whole, rest = (None, None) if state else (found, alone)
    line: dict[str, Any] = {
        "protocol": first.protocol,
        "track": first.track,
        "base": first.base,
        "access": stack.access.key,
        "defense": stack.defense,
        "part": part.defense,
        "below": 100 * below,
        "state": state,
    }
    line |= bounds("with", whole.rate if whole else None) | bounds("without", rest.rate if rest else None)
    line |= bounds("difference", whole.difference if whole else None)
    return line | {"p": whole.p if whole else math.nan}
