"""The commands on data sets: data list, data show, data prepare."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mibench.cli import look, options
from mibench.runtime.errors import UserError

if TYPE_CHECKING:
    from mibench.core import Dataset
    from mibench.data.published.needs import Need

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


def prepare(
    name: options.PreparedName = "digiface",
    root: options.Root = None,
    sets: options.Sets = None,
    processes: options.Processes = 0,
    dry_run: options.DataDryRun = False,
    verify: options.Verify = False,
    as_json: options.Json = False,
) -> None:
    """Check a data set's files, decode them once, and say what is missing from where.

    Goes on where it was killed, and does nothing where nothing changed.
    """
    from mibench.cli import printing
    from mibench.data.published.publics import Images
    from mibench.runtime.terminal import Terminal

    source = _unprepared(name, root, sets)
    if dry_run:
        _print_needs(name, source.needed() if hasattr(source, "needed") else [], root, as_json)
        return
    with Terminal() as terminal:
        source.prepare(terminal, processes)
        if verify and hasattr(source, "verify"):
            source.verify()
        if not isinstance(source, Images):
            data: Dataset = source.load(terminal)
            printing.describe_data(data, as_json)
            return
    pack = source.pack()
    facts = {"name": name, "images": pack.about["parts"]["public"], "content": pack.digest(), "folder": str(pack.place)}
    _print_rows([(key, str(value)) for key, value in facts.items()], facts, as_json)


def _unprepared(name: str, root: Path | None, sets: list[str] | None) -> Any:
    """The data set, or the attacker's image set."""
    from mibench.data.published.publics import PUBLICS, Images
    from mibench.experiments.reading import split_sets
    from mibench.plugins import registry
    from mibench.plugins.settings import resolve_settings

    settings = split_sets(sets, "data", [])["data"] | ({"root": str(root)} if root is not None else {})
    if name in PUBLICS:
        return resolve_settings(Images, name, settings | {"name": name})
    return registry.configure("data", name, settings=settings).plugin


def _print_needs(name: str, needed: list[tuple[str, "Need"]], root: Path | None, as_json: bool) -> None:
    """What a data set is made of: place, whether it is there, what it is, where it comes from and on which terms."""
    rows = []
    for folder, need in needed:
        place = need.place(root / folder) if root is not None else None
        rows.append(
            {
                "file": f"{folder}/{need.names[0]}",
                "or": list(need.names[1:]),
                "here": place is not None,
                "what": need.what,
                "source": need.source,
                "licence": need.licence,
            }
        )
    lines = [
        ("here" if row["here"] else "missing", f"{row['file']}: {row['what']}; {row['source']} [{row['licence']}]")
        for row in rows
    ]
    _print_rows(lines or [(name, "nothing to fetch by hand")], rows, as_json)


def _print_rows(rows: list[tuple[str, str]], facts: object, as_json: bool) -> None:
    from mibench.runtime.terminal import say

    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for key, value in rows:
        say(f"{key:8} {value}")


def _load(name: str, sets: list[str] | None) -> "Dataset":
    """The data set, with a bar while it is read or drawn."""
    from mibench.experiments.reading import split_sets
    from mibench.plugins import registry
    from mibench.runtime.terminal import Terminal

    with Terminal() as terminal:
        source = registry.configure("data", name, settings=split_sets(sets, "data", [])["data"]).plugin
        data: Dataset = source.load(terminal)
        return data
