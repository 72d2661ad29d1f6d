"""The page's figures: attacks between floor and ceiling, privacy against utility, people, queries.

Shares are always drawn from 0 to 100%. Each number is also in a table of the page; each mark says its number when it is
pointed at.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from mibench.core import Access
from mibench.metrics import Unit
from mibench.report.curves import curves
from mibench.report.format import missing
from mibench.report.page.svg import Scale, drawing, el, mark, path, text
from mibench.report.points import Point
from mibench.report.result import TRACKS
from mibench.report.tables import HEADLINE, Row, queries, rows
from mibench.stats.intervals import Interval

__all__ = ["Figure", "attacks", "bought", "people", "tradeoff"]

WIDTH = 420.0
"""Of every drawing, in its own units: about as wide as a telephone."""

MOST = 12
"""Drawings of one kind, and lines in one drawing; the tables have all."""

CROWD = 7
"""So many marks of a panel are named beside themselves; more are numbered, and named below."""

LONG = 38
"""Letters of a name that fit into a drawing beside a number."""


@dataclass(frozen=True)
class Figure:
    """A drawing and what stands below it.

    Args:
        name: The file's name when it is saved.
        title: What it shows.
        drawing: The SVG.
        key: What the numbers in the drawing stand for.
    """

    name: str
    title: str
    drawing: Markup
    key: tuple[str, ...] = ()


def called(label: str) -> str:
    """A target's label as a figure has it."""
    return "no defense" if label == "none" else label


def _percent(known: Row, column: str) -> str:
    return Unit.SHARE.interval(known[column], known[f"{column}_low"], known[f"{column}_high"], 0)


def _bounds(low: float, high: float, value: float) -> tuple[float, float]:
    return (value, value) if missing(low) or missing(high) else (low, high)


def attacks(group: pd.DataFrame) -> list[Figure]:
    """Of each target its attacks and floors, the likeliest first, beside real photographs."""
    real = group[group["role"] == "ceiling"]
    ceiling = None if real.empty or missing(real[HEADLINE].iloc[0]) else rows(real)[0]
    return [
        _between(str(label), rows(own.sort_values(HEADLINE, ascending=False, kind="stable")), ceiling)
        for label, own in list(group[group["target"].notna()].groupby("target_label", sort=False))[:MOST]
    ]


def _between(label: str, lines: list[Row], ceiling: Row | None) -> Figure:
    shown = [line for line in lines if not missing(line[HEADLINE])][:14]
    x, top = Scale(0.0, 1.0, 8.0, WIDTH - 8), 26.0
    named = [textwrap.wrap(line["attack_label"], LONG, max_lines=3, placeholder="…") for line in shown]
    bottom = top + sum(22.0 + 16.0 * len(words) for words in named)
    parts = [
        el("line", x1=x(value), x2=x(value), y1=top - 6, y2=bottom, class_="rule")
        for value in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    parts += [
        text(
            x(value),
            bottom + 15,
            f"{100 * value:g}",
            "tick",
            "middle" if 0 < value < 1 else "start" if not value else "end",
        )
        for value in (0.0, 0.25, 0.5, 0.75)
    ]
    parts.append(text(x(1.0), bottom + 15, "100%", "tick", "end"))
    if ceiling is not None:
        at = ceiling[HEADLINE]
        words = f"real photographs {_percent(ceiling, HEADLINE)}%"
        parts.append(el("line", el("title", words), x1=x(at), x2=x(at), y1=top - 10, y2=bottom, class_="ceiling"))
        parts.append(text(min(x(at), WIDTH - 8), top - 14, words, "note", "end" if at > 0.5 else "start"))
    y = top
    for line, name in zip(shown, named, strict=True):
        kind = "floor" if line["role"] == "floor" else "attack"
        value, words = line[HEADLINE], _percent(line, HEADLINE)
        low, high = _bounds(line[f"{HEADLINE}_low"], line[f"{HEADLINE}_high"], value)
        about = f"{line['attack_label']}: {words}%, {line['n']:.0f} images"
        parts.append(
            el(
                "g",
                el("title", about),
                *(text(8.0, y + 13 + 16 * place, part, f"name {kind}") for place, part in enumerate(name)),
                text(WIDTH - 8, y + 13, words, f"number {kind}", "end"),
                el("line", x1=x(low), x2=x(high), y1=(at := y + 9 + 16 * len(name)), y2=at, class_=f"bar {kind}"),
                mark(x(value), at, f"dot {kind}"),
            )
        )
        y += 22.0 + 16.0 * len(name)
    target = called(label)
    title = f"{target}: likeness of each attack (filled) and floor (hollow), %"
    return Figure(f"attacks-{label}", target, drawing(WIDTH, bottom + 22, title, *parts))


def tradeoff(points: Sequence[Point]) -> list[Figure]:
    """A panel for each track and access: likeness of its strongest attack against natural accuracy, with both
    intervals; none where no target is defended."""
    if not any(point.defended for point in points):
        return []
    natural = [_span(point.natural)[0] for point in points]
    least = max(0.0, math.floor(10 * min(natural) - 0.2) / 10)
    tracks = [track for track in (*TRACKS, "") if any(point.track == track for point in points)]
    made = []
    for track in tracks:
        own = [point for point in points if point.track == track]
        about = f", {track}" if len(tracks) > 1 and track else ""
        shown = [access for access in Access.strongest_first() if any(access in point.attacks for point in own)]
        made += [_panel(own, access, least, about) for access in shown]
    return made


def _span(known: Interval) -> tuple[float, float]:
    return _bounds(known.low, known.high, known.value)


def axes(
    x: Scale, y: Scale, across: str, up: str, show: Callable[[float], str], show_x: Callable[[float], str]
) -> list[Markup]:
    parts = []
    for value in y.ticks:
        parts.append(el("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="rule"))
        parts.append(text(x.start - 6, y(value) + 4, show(value), "tick", "end"))
    for value in x.ticks:
        parts.append(el("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4, class_="rule"))
        parts.append(text(x(value), y.start + 17, show_x(value), "tick", "middle"))
    parts.append(text((x.start + x.end) / 2, y.start + 34, across, "axis", "middle"))
    parts.append(text(x.start - 28, y.end - 10, up, "axis"))
    return parts


def titled(y: Scale, words: str) -> tuple[float, float, float, float]:
    """The box of an upright axis' title, for `lettered` to keep away from."""
    return (0.0, y.end - 24, 12 + LETTER * len(words), y.end - 6)


def thousands(value: float) -> str:
    """`300`, `10k`: a power of ten on an axis."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def hundred(value: float) -> str:
    return f"{100 * value:g}"


def _panel(points: Sequence[Point], access: Access, least: float, track: str) -> Figure:
    known = [point for point in points if access in point.attacks]
    x, y = Scale(least, 1.0, 40.0, WIDTH - 14), Scale(0.0, 1.0, 320.0, 30.0)
    parts = axes(x, y, "natural accuracy, %", "likeness, % (lower is more private)", hundred, hundred)
    parts.append(text(x.end, y.start - 8, "better ↘", "note", "end"))
    families = list(dict.fromkeys(point.defense for point in known if point.defended))
    for curve in curves(list(points), access):
        own = [point for point in curve.points if point.defended]
        own.sort(key=lambda point: (math.isnan(point.strength), point.strength))
        if len(own) > 1:
            places = [(x(across), y(up)) for across, up in map(curve.place, own)]
            parts.append(el("polyline", points=path(places), class_="join"))
    numbered, key = len(known) > CROWD, []
    marks = [(x(point.natural.value), y(point.attacks[access].rate.value)) for point in known]
    taken = [(across - 7, up - 7, across + 7, up + 7) for across, up in marks]
    taken.append((x.end - 66, y.start - 22, x.end, y.start - 4))  # better
    several = len({point.base for point in known}) > 1
    for place, (point, (across, up)) in enumerate(zip(known, marks, strict=True)):
        rate, natural = point.attacks[access].rate, point.natural
        name = point.label if point.defended else "no defense"
        name = f"{point.base}, {name}" if several else name
        about = (
            f"{name}: likeness {Unit.SHARE.interval(*rate[:3], 0)}% by {point.attacks[access].attack}, natural "
            f"accuracy {Unit.SHARE.interval(*natural[:3], 0)}%"
        )
        (left, right), (down, high) = _span(natural), _span(rate)
        kind = "attack" if point.defended else "none"
        shape = families.index(point.defense) + 1 if point.defended else 0
        words = str(place + 1) if numbered else name
        key += [f"{place + 1} {name}"] if numbered else []
        parts.append(
            el(
                "g",
                el("title", about),
                el("line", x1=x(left), x2=x(right), y1=up, y2=up, class_=f"whisker {kind}"),
                el("line", x1=across, x2=across, y1=y(down), y2=y(high), class_=f"whisker {kind}"),
                mark(across, up, f"dot {kind}", shape, 5.5),
                lettered(across, up, words, kind, taken),
                tabindex="0",
                role="img",
                aria_label=about,
            )
        )
    title = f"{access.words}{track}: likeness of the strongest attack against natural accuracy"
    made = drawing(WIDTH, 362.0, title, *parts)
    return Figure(f"privacy-utility-{access.key}{track}", f"{access.words}{track}", made, tuple(key))


LETTER = 7.6
"""How wide a letter of a label is, about."""


def lettered(x: float, y: float, words: str, kind: str, taken: list[tuple[float, float, float, float]]) -> Markup:
    """A mark's name at the first of its four corners where nothing is drawn yet; `taken` grows by its box."""
    wide = LETTER * len(words)
    corners = [(x + 9, y - 8), (x - 9 - wide, y - 8), (x + 9, y + 18), (x - 9 - wide, y + 18)]

    def cost(corner: tuple[float, float]) -> float:
        left, base = corner
        outside = max(0.0, 44 - left) + max(0.0, left + wide - WIDTH)
        own = (left, base - 12, left + wide, base + 3)
        return 100 * outside + sum(_shared(own, other) for other in taken)

    left, base = min(corners, key=cost)
    taken.append((left, base - 12, left + wide, base + 3))
    flipped = left < x
    return text(left + wide if flipped else left, base, words, f"label {kind}", "end" if flipped else None)


def _shared(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """The area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def people(leaks: pd.DataFrame) -> list[Figure]:
    """Of each target the hit rate of every person, the most exposed first."""
    made = []
    for label, own in list(leaks.groupby("defense", sort=False))[:MOST] if len(leaks) else []:
        lines = rows(own.sort_values("rank"))
        x, y = Scale(0.0, float(len(lines)), 40.0, WIDTH - 10), Scale(0.0, 1.0, 130.0, 24.0)
        wide = (x.end - x.start) / len(lines)
        parts = axes(x, y, "people, the most exposed first", "hit, %", hundred, lambda value: f"{value:g}")
        for place, line in enumerate(lines):
            about = f"{line['identity']}: {line['hits']} of {line['n']} by {line['attack']}"
            parts.append(
                el(
                    "rect",
                    el("title", about),
                    x=x(float(place)) + min(1.0, wide / 8),
                    y=min(y(line["rate"]), y.start - 1.5),
                    width=max(wide - min(2.0, wide / 4), 0.4),
                    height=max(y.start - y(line["rate"]), 1.5),
                    class_="column attack",
                )
            )
        name = called(str(label))
        title = f"{name}: hit rate of each of {len(lines)} people under {lines[0]['attack']}"
        made.append(Figure(f"people-{label}", name, drawing(WIDTH, 172.0, title, *parts)))
    return made


def bought(group: pd.DataFrame) -> list[Figure]:
    """Of each target likeness against queries for one person; attacks that ask nothing have no place there."""
    made = []
    known = group[group["target"].notna()]
    lines = [line for line in rows(known) if (queries(line) or 0) > 0 and not missing(line[HEADLINE])]
    if len(lines) < 2:
        return []
    asked = [float(queries(line) or 0) for line in lines]
    low, high = 10.0 ** math.floor(math.log10(min(asked))), 10.0 ** math.ceil(math.log10(max(asked) * 1.01))
    for label in list(dict.fromkeys(line["target_label"] for line in lines))[:MOST]:
        x, y = Scale(low, high, 40.0, WIDTH - 16, log=True), Scale(0.0, 1.0, 250.0, 30.0)
        parts = axes(x, y, "queries for one person", "likeness, %", hundred, thousands)
        own = [line for line in lines if line["target_label"] == label]
        marks = [(x(float(queries(line) or 0)), y(line[HEADLINE])) for line in own]
        taken = [(across - 6, up - 6, across + 6, up + 6) for across, up in marks]
        taken.append(titled(y, "likeness, %"))
        for line, (across, up) in zip(own, marks, strict=True):
            value, number = line[HEADLINE], float(queries(line) or 0)
            bottom, top = _bounds(line[f"{HEADLINE}_low"], line[f"{HEADLINE}_high"], value)
            kind = "floor" if line["role"] == "floor" else "attack"
            about = f"{line['attack_label']}: {Unit.COUNT.show(number)} queries, likeness {_percent(line, HEADLINE)}%"
            parts.append(
                el(
                    "g",
                    el("title", about),
                    el("line", x1=across, x2=across, y1=y(bottom), y2=y(top), class_=f"whisker {kind}"),
                    mark(across, up, f"dot {kind}"),
                    lettered(across, up, textwrap.shorten(line["attack_label"], LONG, placeholder="…"), kind, taken),
                )
            )
        name = called(str(label))
        made.append(
            Figure(f"queries-{label}", name, drawing(WIDTH, 292.0, f"{name}: likeness against queries", *parts))
        )
    return made
