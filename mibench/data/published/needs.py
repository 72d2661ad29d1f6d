"""What a data set is made of: files, where they come from, under which licence; and what is missing, all in one go."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mibench.runtime.absent import Absent
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file, read_text

__all__ = ["MARKER", "Facts", "Need", "facts_of", "require", "top_of"]

MARKER = "STAND-IN.json"
"""A file in a data set's folder that says: these are small stand-in data, and so many of everything."""


@dataclass(frozen=True)
class Need:
    """One file or folder of a data set.

    Args:
        names: Its name in the data set's folder; any one of several will do.
        what: What it is.
        source: Where it comes from.
        licence: On which terms.
        md5: Of the published file; empty where there is none, or it is a folder.
        size: A rough size, for people.
    """

    names: tuple[str, ...]
    what: str
    source: str
    licence: str
    md5: str = ""
    size: str = ""

    def place(self, home: Path) -> Path | None:
        """Where it lies; None if it does not."""
        return next((home / name for name in self.names if (home / name).exists()), None)


@dataclass(frozen=True)
class Facts:
    """How many of everything there must be, as published, or as stand-in data say of themselves."""

    counts: Mapping[str, int]
    standin: bool

    def __getitem__(self, name: str) -> int:
        return self.counts[name]


def facts_of(home: Path, published: Mapping[str, int]) -> Facts:
    """The published counts, or those of the marker of stand-in data.

    Raises:
        UserError: The marker is no JSON, or lacks a count.
    """
    if not (home / MARKER).exists():
        return Facts(published, False)
    try:
        counts = json.loads(read_text(home / MARKER))["counts"]
        return Facts({name: int(counts[name]) for name in published}, True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{home / MARKER} is no marker of stand-in data ({error!r}); remove {home}") from None


def top_of(root: str, name: str) -> Path:
    """The folder that holds all data sets, each in a folder of its own.

    Args:
        root: As the user gave it; empty is the environment's MIBENCH_DATA.
        name: The data set that asks.

    Raises:
        UserError: There is no such folder (`Absent`), or no such user.
    """
    given = root or os.environ.get("MIBENCH_DATA", "")
    if not given:
        raise Absent(
            f"'{name}' needs the folder that holds your data sets: give --set data.root=DIR or set MIBENCH_DATA=DIR; "
            f"`mibench data prepare {name} --root DIR` says what to fetch from where"
        )
    try:
        top = Path(given).expanduser()
    except RuntimeError:
        raise UserError(f"root = '{given}': there is no such user; give the folder itself") from None
    if not os.path.isdir(top):  # unlike Path.is_dir it takes any text
        raise Absent(f"root = {given!r} is no folder; make it, or give the one that holds {name}/")
    return top


def require(wanted: Sequence[tuple[Path, Need]]) -> None:
    """Refuse to start where something is missing, or is not the published file; checksums of stand-in data are theirs.

    Args:
        wanted: The folder of a data set and what it must hold, of every data set that is needed.

    Raises:
        UserError: What is missing, all of it, with where to get it; or a file that is not the published one.
    """
    missing = [(home, need) for home, need in wanted if need.place(home) is None]
    if missing:
        told = "; ".join(
            f"({number}) {home / need.names[0]}{''.join(f' or {name}' for name in need.names[1:])}: {need.what}, "
            f"from {need.source} [{need.licence}]"
            for number, (home, need) in enumerate(missing, 1)
        )
        raise UserError(f"{len(missing)} of {len(wanted)} things are missing: {told}; then run the same command again")
    for home, need in wanted:
        place = need.place(home)
        if need.md5 and place is not None and place.is_file() and not (home / MARKER).exists():
            with open_file(place) as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
            if digest != need.md5:
                raise UserError(
                    f"{place} is not the published file (md5 {digest}, published {need.md5}): a partial download or "
                    f"another file; fetch it again from {need.source}"
                )
