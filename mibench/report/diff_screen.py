"""`mibench diff` in the terminal: nothing is cut, narrow terminals wrap."""

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mibench.metrics import Unit
from mibench.report.diff import Folders, Quantity, Scores, about
from mibench.report.format import probability
from mibench.report.pairing import IDENTICAL
from mibench.report.result import Result
from mibench.stats.intervals import Interval

__all__ = ["render"]

MOST = 40
"""Scores of a list that a terminal is good for; all are in the JSON."""


def render(compared: Scores | Folders) -> RenderableType:
    """What changed: first in a sentence, then field by field and judge by judge, or score by score."""
    return _scores(compared) if isinstance(compared, Scores) else _folders(compared)


def _scores(pair: Scores) -> RenderableType:
    parts: list[RenderableType] = [Text(pair.sentence, style="bold"), Text()]
    for side, result in (("A", pair.a), ("B", pair.b)):
        known = about(result)
        where = f"{known['attack']} on {known['defense']}, score {known['score']}, protocol {known['protocol']}"
        parts.append(Text.assemble((f"{side}  ", "bold"), where))
    parts += [Text(f"images: {'equal, byte for byte' if pair.same_images else 'not the same'}"), Text()]
    if pair.changed:
        table = _table("specification", "field", "A", "B", right=0)
        for one in pair.changed:
            table.add_row(one.part, one.field, _value(one.a), _value(one.b))
        parts += [table, Text()]
    else:
        parts += [Text("specification: the same in every field"), Text()]
    table = _table("%", "A", "B", "B - A, points", "p", "B is", right=4)
    for quantity in pair.quantities:
        table.add_row(quantity.name, *_numbers(quantity))
    note = (
        "[95% interval, over people]. B minus A is paired over the same people; p: sign-flip test, Holm's correction "
        "over the judges below the headline. Natural accuracy is not kept image by image, so it is not tested."
    )
    return Group(*parts, table, Text(), Text(note, style="dim"))


def _folders(both: Folders) -> RenderableType:
    parts: list[RenderableType] = [Text(both.sentence, style="bold"), Text()]
    if both.matches:
        table = _table("attack on target", "A %", "B %", "B - A, points", "p", "B is", "images", right=4)
        for match, quantity in list(zip(both.matches, both.quantities, strict=True))[:MOST]:
            table.add_row(_named(match.a), *_numbers(quantity), "equal" if match.same_images else "differ")
        parts += [table, *_more(len(both.matches)), Text()]
        note = "[95% interval, over people]. B minus A, paired over people; Holm's correction over the scores tested."
        parts += [Text(note, style="dim"), Text()]
    for side, alone in (("A", both.only_a), ("B", both.only_b)):
        if alone:
            parts.append(Text(f"only in {side} ({len(alone)})", style="bold"))
            parts += [Text(f"  {_named(one)}, score {one.run.id}, protocol {one.protocol}") for one in alone[:MOST]]
            parts += _more(len(alone))
    return Group(*parts, *(Text(line, style="dim") for line in both.apart))


def _more(count: int) -> list[RenderableType]:
    return [Text(f"  and {count - MOST} more: --json", style="dim")] if count > MOST else []


def _named(result: Result) -> str:
    known = about(result)
    return f"{known['attack']} on {known['defense']}, seed {result.target.spec['seed']}"


def _table(first: str, *others: str, right: int) -> Table:
    """Columns that fold; so many after the first to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for place, name in enumerate(others):
        table.add_column(name, justify="right" if place < right else "left", overflow="fold")
    return table


def _numbers(quantity: Quantity) -> Sequence[str]:
    difference = quantity.difference
    if quantity.words == IDENTICAL:
        shown = IDENTICAL
    else:
        shown = "" if difference is None else Unit.POINTS.interval(*difference[:3], 0)
    return _share(quantity.a), _share(quantity.b), shown, probability(quantity.p), quantity.words


def _share(known: Interval) -> str:
    return Unit.SHARE.interval(*known[:3], 0)


def _value(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
