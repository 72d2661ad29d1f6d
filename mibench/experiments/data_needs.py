"""What a suite needs of data sets: files, the protocol's lists and counts, pictures that can be decoded, packs.

A data set that is prepared has had every picture decoded. Of one that is not, a sample is decoded, or all.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from mibench.data.published import packs, publics, worker
from mibench.data.published.needs import MARKER, Need, facts_of, require, top_of
from mibench.data.published.packs import Part
from mibench.data.published.source import Published
from mibench.data.published.stores import open_store
from mibench.experiments.needs import Thing
from mibench.plugins.registry import Choice
from mibench.runtime.absent import Absent
from mibench.runtime.errors import UserError

__all__ = ["of_data"]

STANDIN = "STAND-INS: what is measured with them is no result"

PROBED = 48
"""Pictures of each store that are decoded to see whether they can be; all of them are when they are prepared."""

NAMED = 20
"""Damaged pictures that are named."""


def of_data(data: Choice, whole: bool = False) -> list[Thing]:
    """A data set, its files and those of the attacker's image set.

    Args:
        data: The data set.
        whole: Decode every picture that is not prepared yet, however long that takes, not a sample.
    """
    if isinstance(data.plugin, Published):
        return _published(data, data.plugin, None if whole else PROBED)
    try:
        shape = data.plugin.shape()
        if data.plugin.refusable and not getattr(data.plugin, "root", ""):
            data.plugin.load()  # small: pictures of a package or of the user's own folder
    except (UserError, OSError) as error:
        root = getattr(data.plugin, "root", None)
        remedy = (
            f"mibench data prepare {data.name} --root DIR" if root is not None else f"mibench data show {data.name}"
        )
        return [Thing("data", data.name, "missing", str(error), remedy)]
    told = f"{shape.classes} people, {shape.public:,} public pictures of {shape.image_shape[1]} px"
    return [Thing("data", data.name, "have", told)]


def _published(data: Choice, plugin: Published, probed: int | None) -> list[Thing]:
    try:
        top = top_of(plugin.root, plugin.folder)
    except Absent:
        folders = [_absent(folder, need) for folder, need in plugin.needed()]
        remedy = "export MIBENCH_DATA=DIR, or --set data.root=DIR"
        told = "no such folder" if plugin.root or os.environ.get("MIBENCH_DATA") else "not set"
        return [Thing("data", "MIBENCH_DATA", "missing", f"the folder of all data sets: {told}", remedy), *folders]
    except UserError as error:
        return [Thing("data", "MIBENCH_DATA", "missing", str(error), "give --set data.root=DIR")]
    command = f"mibench data prepare {data.name} --root {top}{_settings(plugin)}"
    things, whole = [], True
    own = _pack(lambda: plugin.own())
    if isinstance(own, UserError):
        things.append(Thing("data", f"{data.name}, prepared", "missing", str(own), command))
    elif own is not None:
        things.append(_prepared(data.name, own, plugin.size, plugin.own().about["notes"]["standin"]))
    else:
        found = [_file(top, folder, need, probed) for folder, need in plugin.needed() if folder == plugin.folder]
        if all(one.state == "have" for one in found):
            found += _protocol(plugin, top)
        things += found
        whole = False
    if plugin.public_set:
        public = publics.PUBLICS[plugin.public_set]
        pack = _pack(lambda: public.pack(top, plugin.size))
        if isinstance(pack, packs.Pack):
            things.append(_prepared(public.name, pack, plugin.size, pack.about["notes"]["standin"]))
        else:
            things += _images(top, public, plugin.size, probed)
            whole = False
    if not whole:
        things.append(Thing("data", f"{data.name}, prepared", "missing", f"at {plugin.size} px", command))
    return things


def _settings(plugin: Published) -> str:
    own = [one for one in fields(plugin) if one.name != "root" and getattr(plugin, one.name) != one.default]
    return "".join(f" --set data.{one.name}={getattr(plugin, one.name)}" for one in own)


def _pack(find_it: Any) -> packs.Pack | UserError | None:
    """What is prepared; the error if it is damaged, None if nothing is."""
    try:
        pack: packs.Pack = find_it()
        for part in pack.about["parts"]:
            pack.part(part)
    except Absent:
        return None
    except UserError as error:
        return error
    return pack


def _prepared(name: str, pack: packs.Pack, size: int, standin: bool) -> Thing:
    count = sum(shape[0] for shape in pack.about["parts"].values())
    told = f"{count:,} pictures of {size} px"
    if standin:
        told += f"; {STANDIN}"
    return Thing("data", f"{name}, prepared", "have", told)


def _absent(folder: str, need: Need) -> Thing:
    others = "".join(f" or {name}" for name in need.names[1:])
    return Thing("data", f"{folder}/{need.names[0]}{others}", "missing", need.what, f"{need.source} [{need.licence}]")


def _file(top: Path, folder: str, need: Need, probed: int | None) -> Thing:
    """One file or folder: there, the published one, and whole as far as its directory tells."""
    place = need.place(top / folder)
    if place is None:
        return _absent(folder, need)
    what, again = f"{folder}/{place.relative_to(top / folder)}", f"{need.source} [{need.licence}]"
    try:
        require([(top / folder, need)])
        if place.is_dir() or place.suffix in (".zip", ".tar"):
            wrong, looked = _looked_at(place, probed)
            if wrong:
                return Thing("data", what, "missing", wrong, f"replace or remove them; {again}")
            return Thing("data", what, "have", f"{need.what}; {looked}")
    except (UserError, OSError) as error:
        return Thing("data", what, "missing", str(error), again)
    return Thing("data", what, "have", need.what)


def _looked_at(place: Path, probed: int | None) -> tuple[str, str]:
    """What is wrong with the pictures of a store (empty ones, and those that cannot be decoded of a sample, or of all),
    and how many were decoded."""
    store = open_store(place)
    sizes = store.sizes()
    if not sizes:
        return "it holds no picture", ""
    empty = [name for name, (size, _) in sizes.items() if not size]
    names = [name for name in sizes if name not in set(empty)]
    sample = names if probed is None else names[:: max(1, len(names) // probed)]
    bad = [name for name in sample if not worker.opens(store, name)]
    lines = []
    if empty:
        lines.append(f"{len(empty):,} of {len(sizes):,} pictures are empty, the first is {empty[0]}")
    if bad:
        shown = f"{', '.join(bad[:NAMED])}{', ...' if len(bad) > NAMED else ''}"
        lines.append(f"{len(bad):,} of {len(sample):,} that were decoded are damaged: {shown}")
    every = "all" if len(sample) == len(names) else f"{len(sample):,} of"
    return "; ".join(lines), f"{every} {len(names):,} pictures decoded"


def _protocol(plugin: Published, top: Path) -> Iterator[Thing]:
    """Lists and counts against those of the protocol; nothing is decoded."""
    try:
        listing = plugin.listing(top / plugin.folder)
        parts: Mapping[str, Part] = {name: part for name, part in listing.parts.items() if part.pictures}
        packs.check(parts)
    except (UserError, OSError) as error:
        yield Thing("data", f"{plugin.folder}, as its protocol", "missing", str(error), "see the files above")
        return
    count = sum(len(part.pictures) for part in parts.values())
    told = f"{len(listing.classes):,} people, {count:,} pictures"
    if (top / plugin.folder / MARKER).exists():
        told += f"; {STANDIN}"
    yield Thing("data", f"{plugin.folder}, as its protocol", "have", told)


def _images(top: Path, public: publics.PublicSet, size: int, probed: int | None) -> list[Thing]:
    """The attacker's image set, not prepared yet."""
    thing = _file(top, public.name, public.need(size), probed)
    place = public.need(size).place(top / public.name)
    if thing.state == "have" and place is not None:
        with suppress(UserError, OSError):
            count, wanted = len(open_store(place).sizes()), facts_of(top / public.name, {"pictures": public.count})
            if count != wanted["pictures"]:
                told = f"{count:,} pictures, the protocol has {wanted['pictures']:,}: not fetched to the end"
                thing = Thing("data", thing.what, "missing", told, _absent(public.name, public.need(size)).remedy)
    return [thing]
