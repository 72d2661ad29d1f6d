"""`mibench diff` in the terminal: nothing is cut, narrow terminals wrap."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mibench.report.diff import Folders, Scores
from mibench.report.diff_words import OF_FOLDERS, OF_SCORES, about, arithmetic, called, named, numbers, value

__all__ = ["render"]

MOST = 40
"""Scores of a list that a terminal is good for; all are in the JSON."""


def render(compared: Scores | Folders) -> RenderableType:
    """What changed: first in a sentence, then field by field and judge by judge, or score by score."""
    return _scores(compared) if isinstance(compared, Scores) else _folders(compared)


def _scores(pair: Scores) -> RenderableType:
    parts: list[RenderableType] = [Text(pair.sentence, style="bold"), Text()]
    for side, result in (("A", pair.a), ("B", pair.b)):
        parts.append(Text.assemble((f"{side}  ", "bold"), about(result)))
    parts += [Text(f"images: {'equal, byte for byte' if pair.same_images else 'not the same'}"), Text()]
    if pair.changed:
        table = _table("specification", "field", "A", "B", right=0)
        for one in pair.changed:
            table.add_row(one.part, one.field, value(one.a), value(one.b))
        parts += [table, Text()]
    else:
        parts += [Text("specification: the same in every field"), Text()]
    table = _table("%", "A", "B", "B - A, points", "p", "B is", right=4)
    for quantity in pair.quantities:
        table.add_row(called(quantity), *numbers(quantity))
    notes = [Text(line, style="dim") for line in (OF_SCORES, arithmetic(pair)) if line]
    return Group(*parts, table, Text(), *notes)


def _folders(both: Folders) -> RenderableType:
    parts: list[RenderableType] = [Text(both.sentence, style="bold"), Text()]
    if both.matches:
        table = _table("attack and target", "A %", "B %", "B - A, points", "p", "B is", "images", right=4)
        for match, quantity in list(zip(both.matches, both.quantities, strict=True))[:MOST]:
            table.add_row(named(match.a), *numbers(quantity), "equal" if match.same_images else "differ")
        parts += [table, *_more(len(both.matches)), Text()]
        parts += [Text(OF_FOLDERS, style="dim"), Text()]
    parts += [Text(line, style="dim") for line in both.arithmetic]
    for side, alone in (("A", both.only_a), ("B", both.only_b)):
        if alone:
            parts.append(Text(f"only in {side} ({len(alone)})", style="bold"))
            parts += [Text(f"  {named(one)}, score {one.run.id}, protocol {one.protocol}") for one in alone[:MOST]]
            parts += _more(len(alone))
    return Group(*parts, *(Text(line, style="dim") for line in both.apart))


def _more(count: int) -> list[RenderableType]:
    return [Text(f"  and {count - MOST} more: --json", style="dim")] if count > MOST else []


def _table(first: str, *others: str, right: int) -> Table:
    """Columns that fold; so many after the first to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for place, name in enumerate(others):
        table.add_column(name, justify="right" if place < right else "left", overflow="fold")
    return table
