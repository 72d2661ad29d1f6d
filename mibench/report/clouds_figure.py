"""The picture of `clouds`: private, erased and reconstructed images of some people in the target's features."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from mibench.metrics import feature_space as space
from mibench.report.clouds import Clouds
from mibench.report.figures import COLOURS, GREY, INK
from mibench.runtime import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

PALE = "#d1d5db"
PRIVATE, ERASED, RECONSTRUCTED = "private", "erased", "reconstructed"
LINES: Mapping[str, Any] = {PRIVATE: "-", ERASED: (0, (5, 2.5)), RECONSTRUCTED: (0, (1, 1.3))}


def _cloud(axes: "Axes", kind: str, points: Float64[Tensor, "n 2"], colour: str, size: int) -> None:
    """One identity's images of one kind: markers and their hull; two points are joined, one stands alone."""
    x, y = points.T.tolist()
    if kind == PRIVATE:
        axes.scatter(x, y, size, colour, marker="o", alpha=0.75, linewidths=0, zorder=3)
    elif kind == ERASED:
        axes.scatter(x, y, size, facecolors="none", edgecolors=colour, marker="s", linewidths=0.7, alpha=0.8, zorder=3)
    else:
        axes.scatter(x, y, 9 * size, colour, marker="*", edgecolors=INK, linewidths=0.8, zorder=6)
    outline = space.hull(points)
    if outline is None:
        outline = points if kind == RECONSTRUCTED and len(points) == 2 else points[:0]
    corners = torch.cat([outline, outline[:1]]).T.tolist()
    if kind == PRIVATE:
        axes.fill(*corners, color=colour, alpha=0.13, linewidth=0, zorder=1)
    if kind == RECONSTRUCTED:
        axes.plot(*corners, color=INK, linestyle=LINES[kind], linewidth=1.6, zorder=5)
    else:
        axes.plot(*corners, color=colour, linestyle=LINES[kind], linewidth=1.5, zorder=4)


def _frame(axes: "Axes", everything: Float64[Tensor, "n 2"], title: str, colour: str) -> None:
    """A square with equal units on both axes and no ticks: only nearness means something."""
    low, high = everything.amin(dim=0), everything.amax(dim=0)
    half = 0.54 * float((high - low).max())
    x, y = ((low + high) / 2).tolist()
    axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half), xticks=[], yticks=[])
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set_color(PALE)
    axes.set_title(
        escape.figure(title, 30),
        color=colour,
        fontsize=10,
        fontweight="normal" if colour == GREY else "bold",
        loc="left",
    )


def draw(clouds: Clouds, labels: Sequence[int], names: Sequence[str], title: str, erased: str) -> "Figure":
    """All shown identities in one plane, and each of them enlarged, on the others' private images in grey.

    Of the erased versions the first is shown: as many hollow squares as dots.

    Args:
        clouds: The features.
        labels: The identities shown, at most as many as there are colours.
        names: Of these.
        title: Target, defense, attack.
        erased: How images were erased.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    wanted = torch.tensor(labels)
    fitted = torch.isin(clouds.private_labels, wanted)
    plane = space.projection(clouds.private[fitted], clouds.private_labels[fitted])
    kinds = (
        (PRIVATE, clouds.private, clouds.private_labels),
        (ERASED, clouds.erased[0], clouds.private_labels),
        (RECONSTRUCTED, clouds.reconstructed, clouds.reconstructed_labels),
    )
    sets = {(label, kind): plane(x[own == label]) for label in labels for kind, x, own in kinds}
    columns = -(-len(labels) // 2)
    figure = Figure(figsize=(7.4 + 3.7 * columns, 8.3), dpi=120, facecolor="white", layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.09, h_pad=0.09, wspace=0.02, hspace=0.03)
    grid = figure.add_gridspec(2, 2 + columns)
    whole = figure.add_subplot(grid[:, :2])
    about = f"where these class means differ most: {100 * plane.kept:.0f}% of the private images' variance"
    _frame(whole, torch.cat(list(sets.values())), about, GREY)
    for (label, kind), points in sets.items():
        _cloud(whole, kind, points, COLOURS[labels.index(label)], 11)
    for place, label in enumerate(labels):
        axes = figure.add_subplot(grid[place // columns, 2 + place % columns])
        own = [sets[label, kind] for kind in LINES]
        _frame(axes, torch.cat(own), escape.terminal(names[place], 30), COLOURS[place])
        for other in labels:
            if other != label:
                x, y = sets[other, PRIVATE].T.tolist()
                axes.scatter(x, y, 9, PALE, linewidths=0, zorder=0)
        for kind, points in zip(LINES, own, strict=True):
            _cloud(axes, kind, points, COLOURS[place], 16)
        outlines = [space.hull(points) for points in own[:2]]
        counts = [0 if one is None else int(space.inside(own[2], one).sum()) for one in outlines]
        if None not in outlines:
            inside = f"of {len(own[2])}: {counts[0]} in private, {counts[1]} in erased"
            axes.set_title(inside, color=GREY, fontsize=9, loc="right")
    figure.suptitle(escape.figure(title), x=0.006, ha="left", color=INK, fontsize=15, fontweight="bold")
    most = int(torch.bincount(clouds.reconstructed_labels[torch.isin(clouds.reconstructed_labels, wanted)]).max())
    marks: dict[str, dict[str, Any]] = {
        "private training images": {"color": GREY, "linestyle": LINES[PRIVATE], "marker": "o", "markeredgewidth": 0},
        escape.figure(erased): {"color": GREY, "linestyle": LINES[ERASED], "marker": "s", "markerfacecolor": "none"},
        "reconstructions" + (" (a hull needs 3)" if most < 3 else ""): {
            "color": INK,
            "linestyle": LINES[RECONSTRUCTED],
            "marker": "*",
            "markersize": 13,
            "markerfacecolor": "white",
        },
    }
    handles = [Line2D([], [], label=label, linewidth=1.5, **look) for label, look in marks.items()]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=11, labelcolor=INK, handlelength=3.2
    )
    return figure
