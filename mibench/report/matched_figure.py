"""The trade-off on one page: every track's attack accuracy against natural accuracy, and each defense's difference to
no defense where it costs the same natural accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mibench.core import Access
from mibench.report.curves import BELOW, curves
from mibench.report.figures import COLOURS, GREY, INK, MARKERS, RULE, Style, scatter
from mibench.report.format import missing
from mibench.report.points import Point
from mibench.report.result import TRACKS
from mibench.report.tables import rows
from mibench.runtime.files import write_atomic

__all__ = ["draw", "write"]

WAYS = (("difference", "o", "likeness"), ("open_difference", "s", "open-set alone"))
"""Differences drawn for each defense: column, marker, name."""


def draw(points: Sequence[Point], table: pd.DataFrame, access: Access, title: str) -> Any:
    """A row for each track, realistic first: the trade-off, then the differences at each natural accuracy.

    Args:
        points: Of one protocol.
        table: `curves.frame` of them.
        access: Of the attacks that are shown.
        title: What it is about.
    """
    from matplotlib.figure import Figure

    tracks = [
        track
        for track in TRACKS
        if any(one.track == track and one.defended and access in one.attacks for one in points)
    ]
    names = list(dict.fromkeys(curve.defense for curve in curves(list(points), access)))
    style = {
        name: Style(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], str(place + 1))
        for place, name in enumerate(names)
    }
    lines = [_reached(table, track, access) for track in tracks]
    heights = [max(3.4, 0.34 * len(own) + 1.2) for own in lines]
    figure = Figure(figsize=(11.0, sum(heights) + 1.1), dpi=150, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    places = figure.subplots(
        len(tracks), 1 + len(BELOW[:2]), squeeze=False, height_ratios=heights, width_ratios=[2.0, 1.2, 1.2]
    )
    handles: dict[str, Any] = {}
    for axes, track, own in zip(places, tracks, lines, strict=True):
        here = [one for one in points if one.track == track]
        scatter(axes[0], here, access, style, handles)
        axes[0].set_title(f"{track}: {TRACKS[track]}", loc="left", fontsize=9, color=INK)
        axes[0].set_ylabel("likeness, % (lower is more private)", color=INK, fontsize=8)
        for place, (axis, below) in enumerate(zip(axes[1:], BELOW, strict=False)):
            _differences(axis, own, below, style, labelled=place == 0)
    numbers = {name: f"{own.number}  {name}" for name, own in style.items()}
    first = sorted(handles, key=lambda name: names.index(name) if name in names else -1)
    figure.legend(
        [handles[name] for name in first],
        [numbers.get(name, name) for name in first],
        loc="outside lower left",
        ncols=6,
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
    )
    return figure


def _reached(table: pd.DataFrame, track: str, access: Access) -> list[Any]:
    own = table[(table["track"] == track) & (table["access"] == access.key)]
    return rows(own.reset_index(drop=True))


def _differences(axis: Any, lines: list[Any], below: float, style: dict[str, Style], labelled: bool) -> None:
    key = f"at_minus_{100 * below:g}"
    for place, line in enumerate(lines):
        y = len(lines) - 1 - place
        colour = style[line["defense"]].colour
        if line[f"{key}_state"]:
            axis.text(0, y, f" {line[f'{key}_state']}", va="center", fontsize=7, color=GREY)
            continue
        for offset, (column, marker, _) in zip((0.13, -0.13), WAYS, strict=True):
            name = f"{key}_{column}"
            if missing(line[name]):
                continue
            value, low, high = (100 * line[f"{name}{end}"] for end in ("", "_low", "_high"))
            axis.errorbar(
                value,
                y + offset,
                xerr=[[value - low], [high - value]],
                fmt=marker,
                ms=4.5 if marker == "o" else 3.2,
                color=colour,
                mfc=colour if marker == "o" else "white",
                elinewidth=1.0 if marker == "o" else 0.6,
            )
    axis.axvline(0, color=GREY, lw=0.8)
    axis.set_ylim(-0.6, len(lines) - 0.4)
    axis.set_yticks(range(len(lines)), [line["defense"] for line in lines[::-1]] if labelled else [""] * len(lines))
    axis.tick_params(colors=INK, labelsize=7, length=0)
    axis.set_title(f"where it costs {100 * below:g} points", loc="left", fontsize=9, color=INK)
    axis.set_xlabel("difference to no defense, points\n● likeness  □ open-set alone", color=INK, fontsize=7.5)
    axis.grid(axis="x", color=RULE, lw=0.7)
    axis.set_axisbelow(True)
    for spine in axis.spines.values():
        spine.set_visible(False)


def write(folder: Path, points: Sequence[Point], table: pd.DataFrame, titles: dict[str, str]) -> list[Path]:
    """matched.png, or one for each protocol: of the strongest access under which any defense has a difference."""
    paths = []
    protocols = list(dict.fromkeys(one.protocol for one in points))
    for protocol in protocols:
        own = [one for one in points if one.protocol == protocol]
        known = table[table["protocol"] == protocol] if len(table) else table
        columns = [f"at_minus_{100 * below:g}_difference" for below in BELOW]
        told = known[known[columns].notna().any(axis=1)] if len(known) else known
        if not len(told):
            continue
        access = max(Access.of(key) for key in told["access"])
        path = folder / ("matched.png" if len(protocols) == 1 else f"matched-{protocol}.png")
        figure = draw(own, known, access, f"Attack accuracy at matched natural accuracy: {titles[protocol]}")
        write_atomic(path, lambda scratch, figure=figure: figure.savefig(scratch, format="png"))  # type: ignore[misc]
        paths.append(path)
    return paths
