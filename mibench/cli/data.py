"""The commands on data sets: data list, data show, data prepare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mibench.cli import look, options
from mibench.runtime.errors import UserError

if TYPE_CHECKING:
    from mibench.core import Dataset

__all__ = ["list_sources", "prepare", "show"]


def list_sources(as_json: options.Json = False) -> None:
    """The data sets and where they come from."""
    look.list_plugins("data", as_json)


def show(
    name: options.DataName = "digiface",
    sets: options.Sets = None,
    output: Annotated[Path | None, typer.Option("--output", help="The PNG to write.")] = None,
    as_json: options.Json = False,
) -> None:
    """Write a labelled picture of the splits, and print their sizes."""
    from mibench.cli import printing
    from mibench.data.show import picture_grid
    from mibench.runtime.terminal import say

    data = _load(name, sets)
    path = output or Path(f"{name}.png")
    try:
        picture_grid(data, path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no kind of picture
        raise UserError(f"cannot write the picture {path}: {error}") from None
    printing.describe_data(data, as_json)
    if not as_json:
        say(path)


def prepare(name: options.DataName = "digiface", sets: options.Sets = None, as_json: options.Json = False) -> None:
    """Read (or draw) every image once, check the splits, and fill the cache."""
    from mibench.cli import printing

    printing.describe_data(_load(name, sets), as_json)


def _load(name: str, sets: list[str] | None) -> "Dataset":
    """The data set, with a bar while it is read or drawn."""
    from mibench.experiments.reading import split_sets
    from mibench.plugins import registry
    from mibench.runtime.terminal import Terminal

    with Terminal() as terminal:
        source = registry.configure("data", name, settings=split_sets(sets, "data", [])["data"]).plugin
        data: Dataset = source.load(terminal)
        return data
