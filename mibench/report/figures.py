"""Figures: attack accuracy against natural accuracy, every defense a line over its strengths."""

import math
from pathlib import Path
from typing import Any

from mibench.files import write_atomic
from mibench.report.tradeoff import ACCESSES, Curve, Point, curves, pareto

__all__ = ["draw", "write"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c564b", "#4d4d4d", "#b2a300")
"""Okabe and Ito's colours, which colour-blind readers tell apart, and a few more."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
TITLES = {"white_box": "white box", "black_box": "black box", "label_only": "label only"}
INK, GREY, RULE = "#1b1f24", "#6b7280", "#e5e7eb"


def draw(found: list[Point], title: str) -> Any:
    """One panel for each access that was measured; the undefended target is a star, the Pareto front a stair.

    Bars are 95% intervals, clustered by identity. Lines join the strengths of one defense in their order.
    """
    from matplotlib.figure import Figure

    shown = [access for access in ACCESSES if any(access in one.attacks for one in found)]
    names = list(dict.fromkeys(curve.defense for access in shown for curve in curves(found, access)))
    style = {
        name: (COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)])
        for place, name in enumerate(names)
    }
    rows = max(1, math.ceil(len(names) / 5))
    figure = Figure(figsize=(5.2 * max(len(shown), 1) + 0.6, 5.0 + 0.24 * rows), dpi=150, facecolor="white")
    panels = figure.subplots(1, max(len(shown), 1), squeeze=False, sharex=True, sharey=True)[0]
    handles: dict[str, Any] = {}
    for panel, access in zip(panels, shown, strict=False):
        _panel(panel, found, access, style, handles)
    panels[0].set_ylabel("attack accuracy, % (lower is more private)", color=INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False, fontsize=7.5, labelcolor=INK
    )
    figure.tight_layout(rect=(0, 0.055 * rows + 0.02, 1, 0.98))
    return figure


def _panel(
    panel: Any, found: list[Point], access: str, style: dict[str, tuple[str, str]], handles: dict[str, Any]
) -> None:
    for curve in curves(found, access):
        colour, marker = style[curve.defense]
        _line(panel, curve, colour, marker, handles)
    for one in found:
        if not one.defended and access in one.attacks:
            name = "no defense" if not one.base or one.base.count(" ") == 0 else f"no defense, {one.base}"
            handles[name] = _mark(panel, one, access, INK, "*", 13.0)
    front = sorted((one.natural.value, one.attacks[access].rate.value) for one in pareto(found, access))
    if len(front) > 1:
        # Between two points only the more accurate one is accurate enough: its attack accuracy holds to its left.
        x, y = ([100 * value for value in axis] for axis in zip(*front, strict=True))
        (handles["Pareto front"],) = panel.step(x, y, where="pre", color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
    panel.set_title(TITLES[access], loc="left", fontsize=9.5, color=INK)
    panel.text(0.99, 0.02, "better ↘", transform=panel.transAxes, ha="right", color=GREY, fontsize=8)
    panel.set_xlabel("natural accuracy, %", color=INK)
    panel.grid(color=RULE, lw=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(colors=GREY, labelsize=8)
    panel.set_ylim(-3, 103)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)


def _line(panel: Any, curve: Curve, colour: str, marker: str, handles: dict[str, Any]) -> None:
    own = [one for one in curve.points if one.defended]
    ordered = sorted(own, key=lambda one: (math.isnan(one.strength), one.strength))
    places = [curve.place(one) for one in ordered]
    if len(places) > 1:
        x, y = zip(*places, strict=True)
        panel.plot([100 * v for v in x], [100 * v for v in y], color=colour, lw=1.1, alpha=0.65, zorder=2)
    for one in ordered:
        handles[curve.defense] = _mark(panel, one, curve.access, colour, marker, 6.0)


def _mark(panel: Any, one: Point, access: str, colour: str, marker: str, size: float) -> Any:
    rate, natural = one.attacks[access].rate, one.natural
    bars = {}
    for axis, found in (("xerr", natural), ("yerr", rate)):
        if not math.isnan(found.low):
            bars[axis] = [[100 * (found.value - found.low)], [100 * (found.high - found.value)]]
    return panel.errorbar(
        100 * natural.value, 100 * rate.value, **bars, fmt=marker, color=colour, ms=size, mec="white", mew=0.8,
        elinewidth=0.6, ecolor=_pale(colour), capsize=0, zorder=4 if marker == "*" else 3,
    )  # fmt: skip


def _pale(colour: str) -> str:
    """The colour with a third of its strength, for error bars."""
    return f"{colour}55"


def write(folder: Path, found: list[Point], titles: dict[str, str]) -> list[Path]:
    """tradeoff.png, or one for each protocol that has a defended and an undefended target."""
    paths = []
    protocols = list(dict.fromkeys(one.protocol for one in found))
    for protocol in protocols:
        own = [one for one in found if one.protocol == protocol and one.attacks]
        if not any(one.defended for one in own):
            continue
        path = folder / ("tradeoff.png" if len(protocols) == 1 else f"tradeoff-{protocol}.png")
        figure = draw(own, titles[protocol])
        write_atomic(path, lambda scratch, figure=figure: figure.savefig(scratch, format="png"))  # type: ignore[misc]
        paths.append(path)
    return paths
