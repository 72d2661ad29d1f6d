"""The report: results -> pairing -> frames | views (the terminal, files, figures and picture grids).

Reads finished runs only and recomputes no score, so a report is the same whenever and wherever it is made.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mibench.runtime.display import Shown
from mibench.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from mibench.report.content import Content
    from mibench.report.result import Result

__all__ = ["Frames", "frames", "read", "write"]


@dataclass(frozen=True)
class Frames(Shown):
    """A results folder as tidy pandas frames; each is made when it is first looked at.

    Args:
        content: The report on the folder.
        errors: A line with the path of each run that is damaged or of another version, and so left out.
    """

    content: "Content"
    errors: list[str]

    @cached_property
    def scores(self) -> "pd.DataFrame":
        """One row a score, chance and ceiling rows included: tables.csv, whose columns dictionary.csv describes."""
        return self.content.table

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """One row a score, metric and evaluation model: value, low, high (95%, clustered by identity)."""
        from mibench.report import frame

        return frame.metrics(self.scores)

    @cached_property
    def reconstructions(self) -> "pd.DataFrame":
        """One row an image: the score it belongs to, its person, and every verdict on it."""
        from mibench.report import frame

        return frame.reconstructions(self.content.results, self.scores)

    @cached_property
    def differences(self) -> "pd.DataFrame":
        """One row a defended target, attack and undefended twin: differences.csv."""
        return self.content.differences

    @cached_property
    def tradeoff(self) -> "pd.DataFrame":
        """One row a defense at one strength, all training seeds together: tradeoff.csv."""
        return self.content.tradeoff

    def summary(self) -> dict[str, str]:
        """What a terminal and a notebook show."""
        shown = {"scores": str(len(self.content.results)), "columns": ", ".join(self.scores.columns[:8]) + ", ..."}
        return shown | ({"left out": "; ".join(self.errors)} if self.errors else {})

    def __repr__(self) -> str:
        images = sum(result.score.n for result in self.content.results)
        left = f", {len(self.errors)} runs left out" if self.errors else ""
        return (
            f"Frames of {len(self.content.results)} scores of {images:,} reconstructions{left}: "
            "scores, metrics, reconstructions, differences, tradeoff"
        )


def read(root: Path, errors: list[str] | None = None, rehearsal: bool = False) -> list["Result"]:
    """Every whole score of a results folder; each one left out is named on stderr, and added to `errors`.

    Args:
        root: The results folder.
        errors: Gets a line for each one left out.
        rehearsal: Take the runs of a rehearsal.
    """
    from mibench.report.load import results as load
    from mibench.report.machines import unlike
    from mibench.runtime.terminal import SafeConsole

    errors = errors if errors is not None else []
    whole = load(root, errors, rehearsal)
    machines = unlike(whole)
    chatter = SafeConsole(stderr=True, soft_wrap=True)
    for line in errors:
        chatter.print(line, style="yellow")
    if machines:
        chatter.print(machines, style="yellow")
    return whole


def frames(results: Path | str) -> Frames:
    """The finished scores of a results folder as pandas frames; nothing is printed or written.

    Args:
        results: The folder.

    Raises:
        UserError: If it is no folder.
    """
    from mibench.report.content import Content
    from mibench.report.load import results as load
    from mibench.runs.store import bring_scores, folder_of

    root = folder_of(results)
    errors = bring_scores(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the results folder that runs were written to")
    return Frames(Content(load(root, errors)), errors)


def write(
    root: Path, console: "Console", private_images: bool = True, full: bool = False, rehearsal: bool = False
) -> Path:
    """Print the first screen; write every protocol's tables, the picture grids and the page to `results/report/`.

    Runs that are damaged or of another version are left out; each is named on stderr, in tables.md and in
    tables.json. A picture whose data set is gone is left out in the same way.

    Args:
        root: The results folder.
        console: Where the first screen goes.
        private_images: Show real photographs beside the reconstructions, and names; otherwise people are numbered, and
            the report can be handed on.
        full: Print the tables in place of the first screen.
        rehearsal: The runs are those of a rehearsal, which no other report shows.

    Returns:
        The report's folder.

    Raises:
        UserError: If there is no finished score, or the folder cannot be written.
    """
    from mibench.runs import reading_once

    with reading_once(), _uncollected():
        return _write(root, console, private_images, full, rehearsal)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within it Python does not look for what only refers to itself: a report keeps nearly all that it reads until it
    is written, and looking through that again and again takes a fifth of the time of a large one."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def _write(root: Path, console: "Console", private_images: bool, full: bool, rehearsal: bool) -> Path:
    from mibench.report import content, figures, files, grids, matched_figure, page, screen, terminal
    from mibench.runtime.terminal import SafeConsole

    errors: list[str] = []
    results = read(root, errors, rehearsal)
    chatter = SafeConsole(stderr=True, soft_wrap=True)
    if not results:
        lost = " that can be shown (those above are left out)" if errors else ""
        raise UserError(
            f"no finished scores in {root}{lost}; make some with `mibench demo`, or with `mibench train` and then "
            "`mibench attack`, and name their folder: `mibench report RESULTS`"
        )
    report = content.Content(results, names=private_images)
    folder = root / "report"
    console.print(terminal.render(report, console) if full else screen.render(report, folder / "index.html", root))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            grids.write(folder, results, report.shown, private_images)
        except UserError as error:  # the numbers stand without the picture
            errors.append(f"no picture: {error}")
            chatter.print(errors[-1], style="yellow")
        figures.write(folder, report.points, report.titles)
        matched_figure.write(folder, report.points, report.curves, report.titles)
        files.write(folder, report, errors)
        page.write(folder, report, errors)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror or error}") from None
    return folder
