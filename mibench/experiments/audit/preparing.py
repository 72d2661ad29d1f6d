"""The model, opened and found out, and the run that brings it in."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mibench.core import Access
from mibench.data import decode
from mibench.data.folder import people_of
from mibench.experiments.audit.fitting import TooFewQueries, least, showing
from mibench.experiments.audit.question import Asked, Prepared
from mibench.models.imported.network import Wanted
from mibench.models.imported.opened import Opened
from mibench.models.imported.opening import open_source
from mibench.models.imported.probe import LAST, find
from mibench.models.imported.server import Asked as Server
from mibench.models.imported.ways import Found, Given, Pictures, Way
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file
from mibench.runtime.progress import Reporter, Silent
from mibench.stages import import_target, imported

__all__ = ["pictures", "prepare"]

SMALLEST, LARGEST = 16, 64
"""Sides of the pictures that are attacked and judged, unless said; a model that wants more gets them enlarged."""


def pictures(private: Path, heldout: float = 0.2, most: int = 256, reporter: Reporter | None = None) -> Pictures:
    """Some of the private pictures, every person's first ones first, read at any size.

    Raises:
        UserError: The folder is not one of people's folders, or a picture cannot be read.
    """
    people = people_of(private, "private")
    if len(people) < 2:
        raise UserError(f"{private} has {len(people)} person; a classifier knows at least 2: add folders")
    each = max(2, math.ceil(most / len(people)))
    files = [(file, label) for label, own in enumerate(people.values()) for file in own[:each]]
    labels = torch.tensor([label for _, label in files])
    # The last of each person's pictures stand in for held-out ones: the data set's own draw needs all of them decoded.
    place = torch.tensor([turn for own in people.values() for turn, _ in enumerate(own[:each])])
    counts = torch.tensor([min(len(own), each) for own in people.values()])[labels]
    sides = sorted(shortest(file) for file, _ in files[:: max(1, len(files) // 32)])
    kept: dict[tuple[int, int], Tensor] = {}

    def at(size: int, channels: int) -> Tensor:
        if (size, channels) not in kept:
            while len(kept) >= 2:
                kept.pop(next(iter(kept)))
            kept[size, channels], _ = decode.decode_all(
                [file for file, _ in files], size, channels == 3, reporter or Silent()
            )
        return kept[size, channels]

    learnt = place < counts - (counts * heldout).round().clamp(min=1)
    return Pictures(at, labels, tuple(people), learnt, sides[len(sides) // 2])


def shortest(file: Path) -> int:
    """The shorter side of a picture in pixels, from its header; 0 where that cannot be read."""
    try:
        with open_file(file) as content, Image.open(content) as picture:
            return min(picture.size)
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0


def prepare(asked: Asked, results: Path, reporter: Reporter | None = None) -> Prepared:
    """Open the model, find out what it wants, and plan the run that brings it in; nothing is written.

    Raises:
        UserError: The model cannot be opened or does not fit the pictures; no public pictures; an access it does not
            give; fewer queries of a server than an audit can do with (told before it is asked).
    """
    if asked.public is None:
        raise UserError(
            "an attacker who knows nothing of how such pictures look is not worth defending against: give --public DIR "
            "with pictures of the same kind of other people (one folder, or one for each person; a few hundred do). "
            "Public data sets of the same kind serve as well as your own"
        )
    source = asked.source
    shown, given = pictures(asked.private, reporter=reporter), asked.given
    if source.endpoint is not None:
        source.objects.setdefault("journal", imported.journal_of(results, source.endpoint))
        source.objects["people"] = given.classes or shown.names
        # As large as what is attacked, so that what is asked now is not asked again then.
        given = replace(given, size=given.size or asked.image_size or LARGEST)
    most = LAST
    if source.endpoint is not None and asked.queries is not None:
        most = showing(asked.queries, len(shown.names), len(shown.labels))
        _require_room(asked, given, most, len(shown.labels), results)
    opened = open_source(source)
    if isinstance(opened.module, Server):
        opened.module.require_unchanged()
    found = find(opened, shown, given, most)
    access = asked.access or found.grants
    if access > found.grants:
        raise UserError(
            f"--access {access.adjective}: {source.told} gives {found.grants.words} access at most; leave it out or "
            "lower it"
        )
    data = data_of(asked, found)
    target = import_target.plan(results, data, source, found, opened.family, asked.precision)
    return Prepared(asked, opened, found, data, target, access)


def _require_room(asked: Asked, given: Given, most: int, pictures: int, results: Path) -> None:
    """Refuse before a server is asked what no audit of it could do with, whatever it turns out to answer.

    Raises:
        UserError: Names the least that would do.
    """
    wanted = Wanted(given.size or 0, 3, False, False, False, (0.0,) * 3, (1.0,) * 3)
    refusals = []
    for access in [asked.access] if asked.access is not None else [Access.BLACK_BOX, Access.LABEL_ONLY]:
        supposed = Found(Way(wanted, "", "", 1.0, 0.0, most), (), access, False, (), most, pictures)
        data = data_of(asked, supposed)
        target = import_target.plan(results, data, asked.source, supposed, "unknown", asked.precision)
        prepared = Prepared(asked, Opened(nn.Identity(), "unknown"), supposed, data, target, access)
        try:
            least(prepared)
        except TooFewQueries as error:
            refusals.append(error)
        except UserError:  # an attack that needs more than this access, which may not be the server's
            continue
        else:
            return
    if refusals:
        raise min(refusals, key=lambda error: error.least)


def data_of(asked: Asked, found: Found) -> Choice:
    """The private and the public pictures as a data set, at a size that priors can draw."""
    wanted = found.wanted.size or LARGEST
    size = asked.image_size or min(LARGEST, max(SMALLEST, 2 ** math.ceil(math.log2(wanted))))
    settings: dict[str, Any] = {
        "private": str(asked.private),
        "public": str(asked.public),
        "image_size": size,
        "colour": found.wanted.channels == 3,
        "faces": asked.faces,
        **asked.settings.get("data", {}),
    }
    return registry.configure("data", "folder", settings=settings)
