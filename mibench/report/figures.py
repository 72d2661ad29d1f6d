"""Figures: attack accuracy against natural accuracy, every defense a line over its strengths."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mibench.core import Access
from mibench.report.curves import Curve, curves, pareto
from mibench.report.points import Point
from mibench.runtime import escape
from mibench.runtime.files import write_atomic

__all__ = ["draw", "scatter", "style", "write"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c564b", "#4d4d4d", "#b2a300")
"""Okabe and Ito's colours, which colour-blind readers tell apart, and a few more."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
INK, GREY, RULE = "#1b1f24", "#6b7280", "#e5e7eb"

FEW = 3
"""So many defenses are named beside their marks; more are numbered."""


class Style(NamedTuple):
    """How one defense is drawn; its number in the legend, empty where its marks are named instead."""

    colour: str
    marker: str
    number: str


@contextmanager
def style() -> Iterator[None]:
    """Draw within: no TeX, whatever the user's matplotlibrc says; a letter that the font lacks is a box, no warning."""
    import matplotlib

    with matplotlib.rc_context({"text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def draw(points: list[Point], title: str) -> Any:
    """One panel for each access that was measured; the undefended target is a star, the Pareto front a stair.

    Bars are 95% intervals, clustered by identity. Lines join the strengths of one defense in their order. Beside a mark
    stands the defense with its strength, or, where there are many, its number in the legend.
    """
    from matplotlib.figure import Figure

    shown = [access for access in Access.strongest_first() if any(access in point.attacks for point in points)]
    names = list(dict.fromkeys(curve.defense for access in shown for curve in curves(points, access)))
    styles = {
        name: Style(
            COLOURS[place % len(COLOURS)],
            MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
            str(place + 1) if len(names) > FEW else "",
        )
        for place, name in enumerate(names)
    }
    width = 5.2 * max(len(shown), 1) + 0.6
    entries = max(1, int(width / 2.2))
    below = 0.65 + 0.19 * math.ceil((len(names) + 3) / entries)
    height = 5.2 + below
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    panels = figure.subplots(1, max(len(shown), 1), squeeze=False, sharex=True)[0]
    figure.subplots_adjust(0.75 / width, below / height, 1 - 0.15 / width, 1 - 0.75 / height, wspace=0.14)
    handles: dict[str, Any] = {}
    for panel, access in zip(panels, shown, strict=False):
        scatter(panel, points, access, styles, handles)
    panels[0].set_ylabel("likeness, % (lower is more private)", color=INK)
    figure.suptitle(
        escape.figure(title), x=0.15 / width, y=1 - 0.15 / height, ha="left", fontsize=11, color=INK, fontweight="bold"
    )
    numbers = {name: f"{own.number}  {name}".strip() for name, own in styles.items()}
    first = sorted(handles, key=lambda name: names.index(name) if name in names else -1)
    figure.legend(
        [handles[name] for name in first],
        [escape.figure(numbers.get(name, name)) for name in first],
        loc="lower left",
        ncols=entries,
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
        columnspacing=1.2,
        handletextpad=0.4,
    )
    return figure


def scatter(panel: Any, points: list[Point], access: Access, style: dict[str, Style], handles: dict[str, Any]) -> None:
    """Draw one panel: likeness over natural accuracy.

    Args:
        panel: Axes.
        points: Of one protocol and track.
        access: Of the attacks.
        style: Of each defense.
        handles: What a legend shows; added to.
    """
    for curve in curves(points, access):
        _line(panel, curve, style[curve.defense], handles)
    for one in points:
        if not one.defended and access in one.attacks:
            name = "no defense" if not one.base or one.base.count(" ") == 0 else f"no defense, {one.base}"
            handles[name] = _mark(panel, one, access, INK if name == "no defense" else GREY, "*", 13.0)
    front = sorted((one.natural.value, one.attacks[access].rate.value) for one in pareto(points, access))
    if len(front) > 1:
        # Between two points only the more accurate one is accurate enough: its attack accuracy holds to its left.
        x, y = ([100 * value for value in axis] for axis in zip(*front, strict=True))
        (handles["Pareto front"],) = panel.step(x, y, where="pre", color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
    panel.set_title(access.words, loc="left", fontsize=9.5, color=INK)
    _focus(panel, points, access)
    panel.text(0.99, 0.02, "better ↘", transform=panel.transAxes, ha="right", color=GREY, fontsize=8)
    panel.set_xlabel("natural accuracy, %", color=INK)
    panel.grid(color=RULE, lw=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(colors=GREY, labelsize=8)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)


FOCUS = 0.65
"""Targets with less than this share of the undefended natural accuracy would squeeze all others into a corner."""


def _focus(panel: Any, points: list[Point], access: Access) -> None:
    """Axes around the useful targets; who lies beyond them is named."""
    known = [one for one in points if access in one.attacks]
    least = FOCUS * max((one.natural.value for one in known if not one.defended), default=0.0)
    useful = [one for one in known if one.natural.value >= least]
    for limit, values in (
        (panel.set_xlim, [one.natural for one in useful]),
        (panel.set_ylim, [one.attacks[access].rate for one in useful]),
    ):
        low = min(min(one.value, one.low) if not math.isnan(one.low) else one.value for one in values)
        high = max(max(one.value, one.high) if not math.isnan(one.high) else one.value for one in values)
        margin = 0.04 * max(high - low, 0.05)
        limit(100 * (low - margin), 100 * (high + margin))
    beyond = [
        f"{escape.figure(one.label)}: {100 * one.natural.value:.0f} natural, "
        f"{100 * one.attacks[access].rate.value:.0f} likeness"
        for one in known
        if one not in useful
    ]
    if beyond:
        panel.text(
            0.01, 0.02, "\n".join(["← beyond the axis", *beyond]), transform=panel.transAxes, color=GREY, fontsize=6.5
        )


def _line(panel: Any, curve: Curve, style: Style, handles: dict[str, Any]) -> None:
    own = [point for point in curve.points if point.defended]
    ordered = sorted(own, key=lambda point: (math.isnan(point.strength), point.strength))
    places = [curve.place(point) for point in ordered]
    if len(places) > 1:
        across, up = zip(*places, strict=True)
        panel.plot([100 * v for v in across], [100 * v for v in up], color=style.colour, lw=1.1, alpha=0.65, zorder=2)
    for point, (x, y) in zip(ordered, places, strict=True):
        handles[curve.defense] = _mark(panel, point, curve.access, style.colour, style.marker, 5.5)
        panel.annotate(
            style.number or escape.figure(point.label),
            (100 * x, 100 * y),
            xytext=(3.5, 2.5),
            textcoords="offset points",
            fontsize=6.5 if style.number else 7.5,
            color=style.colour,
        )


def _mark(panel: Any, one: Point, access: Access, colour: str, marker: str, size: float) -> Any:
    rate, natural = one.attacks[access].rate, one.natural
    bars = {}
    for axis, known in (("xerr", natural), ("yerr", rate)):
        if not math.isnan(known.low):
            bars[axis] = [[100 * (known.value - known.low)], [100 * (known.high - known.value)]]
    return panel.errorbar(
        100 * natural.value,
        100 * rate.value,
        **bars,
        fmt=marker,
        color=colour,
        ms=size,
        mec="white",
        mew=0.8,
        elinewidth=0.6,
        ecolor=_pale(colour),
        capsize=0,
        zorder=4 if marker == "*" else 3,
    )


def _pale(colour: str) -> str:
    """The colour with a third of its strength, for error bars."""
    return f"{colour}55"


def write(folder: Path, points: list[Point], titles: dict[str, str]) -> list[Path]:
    """tradeoff.png, or one for each protocol and track that has a defended and an undefended target."""
    paths = []
    groups = list(dict.fromkeys((one.protocol, one.track) for one in points))
    for protocol, track in groups:
        own = [one for one in points if (one.protocol, one.track) == (protocol, track) and one.attacks]
        if not any(one.defended for one in own):
            continue
        name = "-".join(["tradeoff", protocol, *track.split()]) if len(groups) > 1 else "tradeoff"
        path = folder / f"{name}.png"
        with style():
            figure = draw(own, f"{titles[protocol]}{f', {track}' if track else ''}")
            write_atomic(path, partial(figure.savefig, format="png"))
        paths.append(path)
    return paths
