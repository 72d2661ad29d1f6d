"""How a comparison of two scores or folders is told: the same words and cells in the terminal and on the page."""

import json
from typing import Any, NamedTuple

from mibench.metrics import Unit
from mibench.report import judges
from mibench.report.diff import Quantity, Scores
from mibench.report.format import probability
from mibench.report.headline import points, share
from mibench.report.naming import defense_label
from mibench.report.pairing import IDENTICAL
from mibench.report.result import Result
from mibench.stats.intervals import Interval

__all__ = ["OF_FOLDERS", "OF_SCORES", "Numbers", "about", "arithmetic", "called", "lead", "named", "numbers", "value"]

OF_SCORES = (
    "[95% interval, over people]. B minus A is paired over the same people; p: sign-flip test, Holm's correction over "
    "the judges below the headline. Natural accuracy is not kept image by image, so it is not tested."
)

OF_FOLDERS = "[95% interval, over people]. B minus A, paired over people; Holm's correction over the scores tested."


class Numbers(NamedTuple):
    """The cells of a quantity: both rates in %, B minus A in points, p, and the words that the test supports."""

    a: str
    b: str
    difference: str
    p: str
    words: str


def numbers(quantity: Quantity) -> Numbers:
    """A quantity's cells."""
    difference = quantity.difference
    if quantity.words == IDENTICAL:
        shown = IDENTICAL
    else:
        shown = "" if difference is None else Unit.POINTS.interval(*difference[:3], 0)
    return Numbers(_share(quantity.a), _share(quantity.b), shown, probability(quantity.p), quantity.words)


def _share(known: Interval) -> str:
    return Unit.SHARE.interval(*known[:3], 0)


def called(quantity: Quantity) -> str:
    """What a quantity is in words: its judge's, or its own."""
    return quantity.name.replace("_", " ") if "@" not in quantity.name else judges.words(quantity.name)


def lead(pair: Scores) -> str:
    """The headline's numbers in a line."""
    quantity = pair.headline
    rates = f"Likeness: A {share(quantity.a)}, B {share(quantity.b)}"
    if quantity.difference is None or quantity.words == IDENTICAL:
        return f"{rates}."
    return f"{rates}; B minus A {points(quantity.difference)}, p {_equals(probability(quantity.p))}."


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def value(of_field: Any) -> str:
    """A value of a specification; `-` where a side has none."""
    return "-" if of_field is None else of_field if isinstance(of_field, str) else json.dumps(of_field)


def named(result: Result) -> str:
    """`ppa, re a_e=0.4, seed 0`."""
    return f"{result.attack}, {_defense(result)}, seed {result.target.spec['seed']}"


def about(result: Result) -> str:
    """Which score it is, in a line."""
    return f"{named(result)}: score {result.run.id}, protocol {result.protocol}"


def _defense(result: Result) -> str:
    label = defense_label(result.target.spec)
    return "no defense" if label == "none" else label


def arithmetic(pair: Scores) -> str:
    """In what the machines that made both differ, where that decides bits; else ''."""
    if not pair.arithmetic:
        return ""
    return f"A and B were not computed alike ({'; '.join(pair.arithmetic)}): a part of the difference may be theirs."
