"""The paper's feature-space analysis of one inversion: a picture and its numbers.

In the target's penultimate features: the private training images, the same images erased as in training, and the
reconstructions. A target whose defenses do not change training images is shown with the erasing of `re` at its
defaults, which it never saw. All numbers are also taken of real images that the target never saw, as many as there are
reconstructions: what an image of the person looks like that is not a training image.

Features are divided by one number, so that the private images' variance (summed over dimensions) is 1: otherwise the
distances of two targets could not be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64, Int64
from rich.table import Table
from torch import Tensor

from mibench.core import Dataset, Defense, Split, to_uint8
from mibench.defenses.re import RandomErasing
from mibench.metrics import feature_space as space
from mibench.metrics.fid import frechet_distance
from mibench.models.fold import fold
from mibench.report.figures import COLOURS, GREY, INK
from mibench.report.naming import defense_label
from mibench.runs import Run, inversion_of
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic, write_json
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise
from mibench.stages import artifacts
from mibench.stats.intervals import clustered_interval
from mibench.training import predict, streams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Clouds", "clouds", "draw", "measure", "table", "write"]

DRAWS = 4
"""Erased versions of each private image. Numbers are means over draws, each of as many images as the private ones."""

# --- features -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clouds:
    """Features of the attacked identities, on the CPU, in units of the private images' spread."""

    private: Float[Tensor, "m d"]
    erased: Float[Tensor, "draws m d"]
    private_labels: Int64[Tensor, " m"]
    found: Float[Tensor, "n d"]
    found_labels: Int64[Tensor, " n"]
    unseen: Float[Tensor, "u d"]
    unseen_labels: Int64[Tensor, " u"]
    margins: Float64[Tensor, " m"] | None
    """Of the private images, among all classes of the target; None where a class has a single image."""


def erasing(target: Run) -> tuple[list[Defense], str, bool]:
    """What erases, in words, and whether the target was trained with it."""
    stack = artifacts.defenses(target)
    if any(type(defense).transform is not Defense.transform for defense in stack):
        return stack, defense_label(target.spec), True
    plain = RandomErasing()
    return [plain], f"re a_e={plain.a_e:g}", False


def erase(split: Split, index: Int64[Tensor, " m"], target: Run, draw: int, engine: Engine) -> Split:
    """Training images as epoch `draw` showed them, but for the base augmentation; the target's own random numbers."""
    stack, _, _ = erasing(target)
    seeds = streams(target.spec["seed"], stack)
    parts = []
    for chosen in index.split(256):
        x = engine.images(split.images[chosen])
        for defense, seed in zip(stack, seeds, strict=True):
            noise = Noise(seed, chosen.to(engine.device)).of(draw).of("transform")
            x = defense.transform(x, noise)
        parts.append(to_uint8(x).cpu())
    return Split(torch.cat(parts), split.labels[index])


def first(labels: Int64[Tensor, " n"], wanted: Int64[Tensor, " k"], count: int) -> Int64[Tensor, " u"]:
    """Places of the first `count` images of each wanted label."""
    return torch.cat([(labels == label).nonzero()[:count, 0] for label in wanted])


def clouds(run: Run, data: Dataset, engine: Engine, reporter: Reporter) -> Clouds:
    """All features of an inversion, in float32: in bf16 near neighbours would tie.

    Raises:
        UserError: If files are missing or damaged, or the data have changed.
    """
    target = run.parents["target"]
    assert isinstance(target, Run)
    tensors, _ = artifacts.read_tensors(run.path / "images.safetensors", "reconstructions")
    attacked, counts = tensors["labels"].unique(return_counts=True)
    own = torch.isin(data.train.labels, attacked).nonzero()[:, 0]
    unseen = first(data.heldout.labels, attacked, int(counts.min()))
    network = engine.place(fold(artifacts.load_classifier(target, data)))
    with reporter.task(f"features of {run.name} on {target.name}", DRAWS + 3, "sets") as task:

        def features(images: Tensor) -> Tensor:
            _, found = predict(network, images, engine)
            task.advance()
            return found.cpu()

        everyone = features(data.train.images)
        # The trace of the covariance, summed over dimensions: the features' own scale.
        scale = everyone[own].double().var(dim=0).sum().sqrt().float()
        if not scale > 0:
            raise UserError(f"{target.label} gives all private images the same features; it has not learnt")
        erased = [features(erase(data.train, own, target, draw, engine).images) for draw in range(DRAWS)]
        several = len(data.classes) > 1 and int(torch.bincount(data.train.labels).min()) > 1
        return Clouds(
            everyone[own] / scale,
            torch.stack(erased) / scale,
            data.train.labels[own],
            features(tensors["images"]) / scale,
            tensors["labels"],
            features(data.heldout.images[unseen]) / scale,
            data.heldout.labels[unseen],
            space.margin(everyone / scale, data.train.labels)[own] if several else None,
        )


# --- numbers --------------------------------------------------------------------------------------------------------


def groups(labels: Int64[Tensor, " n"], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(identities projected together, those of them that are counted): every identity counts once, in a full group
    if there is one. The picture shows the first group."""
    everyone = labels.unique().tolist()
    for start in range(0, len(everyone), size):
        low = max(0, min(start, len(everyone) - size))
        yield everyone[low : low + size], everyone[start : start + size]


def measure(found: Clouds, size: int) -> dict[str, Any]:
    """All scalars, of the reconstructions and of unseen real images; null where there are too few images.

    What is counted in the plane is counted for every attacked identity, in the projection of its own group of `size`.
    """
    width = space.median_distance(found.private)
    report: dict[str, Any] = {
        "class_margin": None
        if found.margins is None
        else clustered_interval(found.margins, found.private_labels).as_json(),
        "identities": len(found.private_labels.unique()),
        "kernel_width": width,
        "private_images": len(found.private),
    }
    for name, x, labels in (
        ("reconstructions", found.found, found.found_labels),
        ("unseen", found.unseen, found.unseen_labels),
    ):
        nearer = [space.nearer_erased(x, labels, found.private, one, found.private_labels) for one in found.erased]
        report[name] = {
            "n": len(x),
            "nearest_is_erased": space.share(torch.stack(nearer), labels).as_json(),
            **_in_the_plane(found, x, labels, size),
        }
        for kind, references in (("private", [found.private]), ("erased", list(found.erased))):
            several = len(x) > 1
            report[name] |= {
                f"frechet_{kind}": fmean(frechet_distance(one, x) for one in references) if several else None,
                f"mmd_{kind}": fmean(space.discrepancy(one, x, width) for one in references) if several else None,
            }
    return report


def _in_the_plane(
    found: Clouds, x: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], size: int
) -> dict[str, dict[str, float | None] | None]:
    """How many images lie in the hull of their identity's private and erased images; how much of their own hull."""
    within: dict[str, list[Tensor]] = {"private": [], "erased": []}
    shared: dict[str, list[float]] = {"private": [], "erased": []}
    order, owners = [], []
    for together, counted in groups(found.private_labels, size):
        fitted = torch.isin(found.private_labels, torch.tensor(together))
        plane = space.projection(found.private[fitted], found.private_labels[fitted])
        for label in counted:
            mine, own = found.private_labels == label, labels == label
            points = plane(x[own])
            hulls = {
                "private": [space.hull(plane(found.private[mine]))],
                "erased": [space.hull(plane(one[mine])) for one in found.erased],
            }
            if any(each is None for several in hulls.values() for each in several):
                continue
            order.append(labels[own])
            outline = space.hull(points)
            if outline is not None:
                owners.append(label)
            for name, several in hulls.items():
                real = [each for each in several if each is not None]
                within[name].append(torch.stack([space.inside(points, each) for each in real]).double())
                if outline is not None:
                    shared[name].append(fmean(space.overlap(outline, each) for each in real))
    report: dict[str, dict[str, float | None] | None] = {}
    for name in within:
        report[f"inside_{name}"] = report[f"overlap_{name}"] = None
        if order:
            report[f"inside_{name}"] = space.share(torch.cat(within[name], dim=1), torch.cat(order)).as_json()
        if owners:
            values = torch.tensor(shared[name], dtype=torch.float64)
            report[f"overlap_{name}"] = clustered_interval(values, torch.tensor(owners)).as_json()
    return report


# --- the picture ----------------------------------------------------------------------------------------------------

PALE = "#d1d5db"
PRIVATE, ERASED, FOUND = "private", "erased", "reconstructed"
LINES: Mapping[str, Any] = {PRIVATE: "-", ERASED: (0, (5, 2.5)), FOUND: (0, (1, 1.3))}


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
        outline = points if kind == FOUND and len(points) == 2 else points[:0]
    corners = torch.cat([outline, outline[:1]]).T.tolist()
    if kind == PRIVATE:
        axes.fill(*corners, color=colour, alpha=0.13, linewidth=0, zorder=1)
    if kind == FOUND:
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
    axes.set_title(title, color=colour, fontsize=10, fontweight="normal" if colour == GREY else "bold", loc="left")


def draw(found: Clouds, labels: Sequence[int], names: Sequence[str], title: str, erased: str) -> "Figure":
    """All shown identities in one plane, and each of them enlarged, on the others' private images in grey.

    Of the erased versions the first is shown: as many hollow squares as dots.

    Args:
        found: The features.
        labels: The identities shown, at most as many as there are colours.
        names: Of these.
        title: Target, defense, attack.
        erased: How images were erased.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    wanted = torch.tensor(labels)
    fitted = torch.isin(found.private_labels, wanted)
    plane = space.projection(found.private[fitted], found.private_labels[fitted])
    kinds = (
        (PRIVATE, found.private, found.private_labels),
        (ERASED, found.erased[0], found.private_labels),
        (FOUND, found.found, found.found_labels),
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
        _frame(axes, torch.cat(own), names[place], COLOURS[place])
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
    figure.suptitle(title, x=0.006, ha="left", color=INK, fontsize=15, fontweight="bold")
    most = int(torch.bincount(found.found_labels[torch.isin(found.found_labels, wanted)]).max())
    marks: dict[str, dict[str, Any]] = {
        "private training images": {"color": GREY, "linestyle": LINES[PRIVATE], "marker": "o", "markeredgewidth": 0},
        erased: {"color": GREY, "linestyle": LINES[ERASED], "marker": "s", "markerfacecolor": "none"},
        "reconstructions" + (" (a hull needs 3)" if most < 3 else ""): {
            "color": INK,
            "linestyle": LINES[FOUND],
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


# --- the command ----------------------------------------------------------------------------------------------------


def write(run: Run, size: int, engine: Engine, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    """features.png and features.json, in `report/features-<attack>-<id>/` of the run's results folder.

    Args:
        run: An inversion, or a score of one.
        size: How many identities are drawn, and projected together.
        engine: Where the target runs.
        reporter: Told of the progress.

    Returns:
        The folder, and what the JSON file holds.

    Raises:
        UserError: If it is another kind of run, files are damaged, or the folder cannot be written.
    """
    run = inversion_of(run, "features")
    target = run.parents["target"]
    assert isinstance(target, Run)
    data = artifacts.dataset(target)
    found = clouds(run, data, engine, reporter)
    shown = found.found_labels.unique()[:size].tolist()
    _, words, trained = erasing(target)
    defense = defense_label(target.spec)
    title = f"{target.spec['model']} on {data.name}, " + (
        f"no defense, attack: {run.name}" if defense == "none" else f"defense: {defense}, attack: {run.name}"
    )
    how = f"the same, erased as in training ({words})" if trained else f"the same, erased ({words}), never trained on"
    report = {
        "attack": run.name,
        "dataset": data.name,
        "defense": defense,
        "draws": DRAWS,
        "erased": words,
        "erased_in_training": trained,
        "identities_per_projection": size,
        "inversion": run.id,
        "shown": [data.classes[label] for label in shown],
        "target": target.id,
        "title": title,
        **measure(found, size),
    }
    folder = run.root / "report" / f"features-{run.name}-{run.id}"
    figure = draw(found, shown, report["shown"], title, how)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "features.png", partial(figure.savefig, format="png"))
        write_json(folder / "features.json", report)
    except OSError as error:
        raise UserError(f"cannot write the figure to {folder}: {error.strerror or error}") from None
    return folder, report


def _cell(value: Any, factor: int) -> str:
    """`24 [20, 29]`, or a number without an interval; a dash where there is none."""
    if value is None:
        return "-"
    if not isinstance(value, dict):
        return f"{value:.3f}"
    digits = 0 if factor > 1 else 3
    texts = ["?" if value[key] is None else f"{factor * value[key]:.{digits}f}" for key in ("value", "low", "high")]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


ROWS = (
    ("Fréchet distance to private", "frechet_private", 1),
    ("Fréchet distance to erased", "frechet_erased", 1),
    ("squared MMD to private", "mmd_private", 1),
    ("squared MMD to erased", "mmd_erased", 1),
    ("nearest is erased, not private, %", "nearest_is_erased", 100),
    ("inside the private hull, %", "inside_private", 100),
    ("inside the erased hull, %", "inside_erased", 100),
    ("own hull within the private one, %", "overlap_private", 100),
    ("own hull within the erased one, %", "overlap_erased", 100),
)


def table(report: Mapping[str, Any]) -> Table:
    """The scalars, of the reconstructions beside real images that the target never saw."""
    sides = {"reconstructions": "reconstructions", "unseen": "unseen real images"}
    erased = f"{report['erased']}, {'as in training' if report['erased_in_training'] else 'never trained on'}"
    notes = [
        f"[95% interval clustered by identity]. Erased: {erased}; mean of {report['draws']} draws, each of as many "
        f"images as the {report['private_images']:,} private ones, whose variance is 1. Fréchet distances rise where "
        "images are few. Hulls: in the plane that separates "
        f"{report['identities_per_projection']} identities at a time.",
        f"Class margin of the private images: {_cell(report['class_margin'], 1)}.",
    ]
    if report["reconstructions"]["overlap_private"] is None:
        notes.append("Hull overlap needs 3 images of an identity on each side, not on one line; there are fewer.")
    shown = Table(
        box=None,
        pad_edge=False,
        title=report["title"],
        title_justify="left",
        title_style="bold",
        caption="\n".join(notes).replace("[", "\\["),
        caption_justify="left",
    )
    shown.add_column("")
    for key, name in sides.items():
        shown.add_column(f"{name}\nn = {report[key]['n']:,}", justify="right")
    for text, key, factor in ROWS:
        shown.add_row(text, *(_cell(report[side][key], factor).replace("[", "\\[") for side in sides))
    return shown
