"""The report: tables in the terminal, the same as files, and picture grids.

Reads finished runs only and recomputes no score, so a report is the same whenever and wherever it is made.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mibench.runtime.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mibench.report.collect import Scored

__all__ = ["readable", "write"]


def readable(root: Path, warnings: list[str] | None = None) -> list["Scored"]:
    """Every whole score of a results folder; each one left out is named on stderr, and added to `warnings`."""
    from rich.console import Console

    from mibench.report import collect

    said = warnings if warnings is not None else []
    found = collect.scored(root, said)
    chatter = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in said:
        chatter.print(line, style="yellow", markup=False)
    return found


def write(root: Path, console: "Console", private_images: bool = True) -> Path:
    """Print every protocol's tables, write them and the picture grids to `results/report/`.

    Runs that are damaged or of another version are left out; each is named on stderr, in tables.md and in
    tables.json. A picture whose data set is gone is left out in the same way.

    Args:
        root: The results folder.
        console: Where the tables go.
        private_images: Show real photographs beside the reconstructions, and names; otherwise people are numbered, and
            the report can be handed on.

    Returns:
        The report's folder.

    Raises:
        UserError: If there is no finished score, or the folder cannot be written.
    """
    from rich.console import Console

    from mibench.report import content, exports, figures, grids, privacy, terminal

    warnings: list[str] = []
    found = readable(root, warnings)
    chatter = Console(stderr=True, soft_wrap=True, highlight=False)
    if not found:
        lost = f" ({len(warnings)} could not be read)" if warnings else ""
        raise UserError(
            f"no finished scores in {root}{lost}; make some with `mibench demo`, or with `mibench train` and then "
            "`mibench attack`, and name their folder: `mibench report RESULTS`"
        )
    told = content.Content(found, names=private_images)
    folder = root / "report"
    console.print(terminal.render(told, console))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            grids.write(folder, found, told.table, private_images)
        except UserError as error:  # the numbers stand without the picture
            warnings.append(f"no picture: {error}")
            chatter.print(warnings[-1], style="yellow", markup=False)
        figures.write(folder, told.points, privacy.titles(told.table))
        exports.write(folder, told, warnings)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror or error}") from None
    return folder
