"""`mibench features`: the paper's feature-space analysis of one inversion as a picture, a file and a table."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mibench.metrics import Metric, metric
from mibench.report import clouds_figure
from mibench.report.clouds import DRAWS, erasing, extract, measure
from mibench.report.figures import style
from mibench.report.naming import defense_label
from mibench.runs import Run, inversion_of
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic, write_json
from mibench.runtime.progress import Reporter
from mibench.stages import artifacts

__all__ = ["table", "write"]

ROWS = (
    *("frechet_private", "frechet_erased", "mmd_private", "mmd_erased", "nearest_is_erased"),
    *("inside_private", "inside_erased", "overlap_private", "overlap_erased"),
)
"""The metrics of the table, in its order."""


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
    target = run.target
    data = artifacts.dataset(target)
    clouds = extract(run, data, engine, reporter)
    shown = clouds.reconstructed_labels.unique()[:size].tolist()
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
        **measure(clouds, size),
    }
    folder = run.root / "report" / f"features-{run.name}-{run.id}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with style():
            figure = clouds_figure.draw(clouds, shown, report["shown"], title, how)
            write_atomic(folder / "features.png", partial(figure.savefig, format="png"))
        write_json(folder / "features.json", report)
    except OSError as error:
        raise UserError(f"cannot write the figure to {folder}: {error.strerror or error}") from None
    return folder, report


def table(report: Mapping[str, Any]) -> Group:
    """The scalars, of the reconstructions beside real images that the target never saw."""
    sides = {"reconstructions": "reconstructions", "unseen": "unseen real images"}
    erased = f"{report['erased']}, {'as in training' if report['erased_in_training'] else 'never trained on'}"
    notes = [
        f"[95% interval clustered by identity]. Erased: {erased}; mean of {report['draws']} draws, each of as many "
        f"images as the {report['private_images']:,} private ones, whose variance is 1. Fréchet distances rise where "
        "images are few. Hulls: in the plane that separates "
        f"{report['identities_per_projection']} identities at a time.",
        f"Class margin of the private images: {_cell(report['class_margin'], metric('class_margin'))}.",
    ]
    if report["reconstructions"]["overlap_private"] is None:
        notes.append("Hull overlap needs 3 images of an identity on each side, not on one line; there are fewer.")
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for key, name in sides.items():
        shown.add_column(f"{name}\nn = {report[key]['n']:,}", justify="right")
    for name in ROWS:
        own = metric(name)
        label = f"{' '.join(own.heading())}{f', {own.unit.sign}' if own.unit.sign else ''}"
        shown.add_row(label, *(Text(_cell(report[side][name], own)) for side in sides))
    return Group(Text(report["title"], "bold"), Text(), shown, Text(), *(Text(note, "dim") for note in notes))


def _cell(value: Any, own: Metric) -> str:
    """`24.1 [20,29]`, or a number without an interval; a dash where there is none."""
    bounded = value if isinstance(value, Mapping) else {"value": value}
    number, low, high = (bounded.get(key) for key in ("value", "low", "high"))
    return own.unit.interval(number, low, high, digits=0) or "-"
