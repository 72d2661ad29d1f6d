"""The report's tables as the page shows them: the cells of tables.md, and what each is sorted by."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from mibench.metrics import Unit
from mibench.report import leakage_tables
from mibench.report.format import missing
from mibench.report.page.charts import called
from mibench.report.summary import of_score
from mibench.report.tables import HEADLINE, Section, queries, rows

__all__ = ["Cell", "Head", "Heat", "Line", "Table", "heat", "plain", "table"]

NUMBER = re.compile(r"(<?)([+-]?[\d,]*\.?\d+)")


class Head(NamedTuple):
    """A column's header and whether its cells are text."""

    words: str
    left: bool


class Cell(NamedTuple):
    """What is shown, and the number that it is sorted by; None for text."""

    words: str
    key: float | None


class Line(NamedTuple):
    """A row: its cells, its role (attack, floor, ceiling), and the score that it shows, if it is one's."""

    cells: list[Cell]
    role: str
    score: str


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Args:
        name: Its place in the page.
        title: What it shows.
        heads: Of its columns.
        lines: Its rows.
        notes: What the numbers mean.
    """

    name: str
    title: str
    heads: list[Head]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def key(words: str) -> float | None:
    """The number that a cell begins with; what is below a bound sorts below it."""
    told = NUMBER.match(words)
    if told is None:
        return None
    value = float(told[2].replace(",", ""))
    return value / 2 if told[1] else value


def table(name: str, section: Section) -> Table:
    """A section of the report; every cell says all, so that rows can be sorted."""
    lines = rows(section.rows)
    heads = [Head(column.header, column.left) for column in section.columns]
    made = []
    for line in lines:
        words = [column.cell(line, 1) for column in section.columns]
        cells = [
            Cell(one, None if column.left else key(one)) for one, column in zip(words, section.columns, strict=True)
        ]
        made.append(Line(cells, str(line.get("role", "")), str(line["score"]) if of_score(line) else ""))
    return Table(name, section.title, heads, made, section.notes)


def plain(
    name: str, title: str, heads: Sequence[str], lines: Iterable[Sequence[str]], notes: Sequence[str] = ()
) -> Table:
    """A table of words."""
    made = [
        Line([Cell(one, key(one) if one.lstrip("+-")[:1].isdigit() else None) for one in line], "", "")
        for line in lines
    ]
    return Table(name, title, [Head(head, True) for head in heads], made, list(notes))


MOST = 1500
"""Rows of people that a page is good for; leakage.csv has all."""


def people(leaks: pd.DataFrame) -> Table | None:
    """Every person under every target, worst first within each; as many of each target as fit."""
    if leaks.empty:
        return None
    each = max(1, MOST // leaks.groupby(["protocol", "defense"]).ngroups)
    shown = leaks[leaks["rank"] <= each].reset_index(drop=True)
    notes = [] if len(shown) == len(leaks) else [f"The {each} most exposed people of each target; leakage.csv has all."]
    section = Section("Every person, worst first", shown, leakage_tables.columns(shown), notes)
    return table("people-table", section)


class Shade(NamedTuple):
    """A cell of the heat map: its number, its interval, its likeness in twentieths, and all about it."""

    words: str
    bounds: str
    step: int
    about: str


class Heat(NamedTuple):
    """Likeness of every attack (rows) on every target (columns)."""

    targets: list[str]
    lines: list[tuple[str, str, list[Shade | None]]]
    natural: list[str]


STEPS = 20


def heat(group: pd.DataFrame) -> Heat:
    """The heat map of a protocol; None where an attack was not run on a target."""
    known = rows(group[group["target"].notna()])
    targets = list(dict.fromkeys(line["target_label"] for line in known))
    attacks = dict.fromkeys((line["attack_label"], line["role"]) for line in known)
    cells: dict[tuple[str, str], Shade] = {}
    natural: dict[str, str] = {}
    for line in known:
        natural[line["target_label"]] = Unit.SHARE.show(line["natural_accuracy"])
        value = line[HEADLINE]
        if missing(value):
            continue
        bounds = Unit.SHARE.interval(value, line[f"{HEADLINE}_low"], line[f"{HEADLINE}_high"], 0)
        asked = queries(line)
        about = f"{line['attack_label']} on {line['target_label']}: {bounds}%, {line['n']:.0f} images"
        about += f", {Unit.COUNT.show(asked)} queries for one person" if asked is not None else ""
        step = 0 if math.isnan(value) else round(STEPS * value)
        inside = bounds.partition(" ")[2]
        cells[line["attack_label"], line["target_label"]] = Shade(Unit.SHARE.show(value), inside, step, about)
    order = sorted(attacks, key=lambda one: one[1] == "floor")
    lines = [(name, role, [cells.get((name, target)) for target in targets]) for name, role in order]
    return Heat([called(target) for target in targets], lines, [natural[target] for target in targets])


def json_text(value: Any) -> str:
    """JSON that no parser of HTML can take for markup."""
    import json

    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for one in "<>&\u2028\u2029":
        text = text.replace(one, f"\\u{ord(one):04x}")
    return text
