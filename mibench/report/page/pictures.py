"""The gallery: every reconstruction with the verdict of each judge, beside a private and an unseen image of the person.

Thumbnails lie on sheets, JPEGs of many tiles, which the page decodes when one of their tiles is looked at. A tile fills
whole blocks of 8 pixels and colours are not halved, so that no tile's pixels reach into its neighbour. Size and quality
go down until all sheets fit `BUDGET`.

Where private images are withheld, neither these nor held-out images are on a sheet, and a reconstruction that *is* one
of them (a copy) is grey.
"""

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Dataset
from mibench.evaluation.checks import SAME
from mibench.report import grids
from mibench.report.judges import words
from mibench.report.leakage import numbered
from mibench.report.result import TRACKS, Result
from mibench.report.tables import HEADLINE, protocols, rows
from mibench.runtime.errors import UserError
from mibench.stages import artifacts

__all__ = ["Gallery", "Shot", "gallery", "picture"]

BUDGET = 30_000_000
"""Characters that all sheets together may take."""

LADDER = ((128, 92), (96, 88), (64, 84), (64, 70), (48, 66), (32, 60), (24, 50))
"""(longest edge of a thumbnail in pixels, JPEG quality), tried in turn."""

MOST = 24_000
"""Thumbnails of reconstructions; where there are more, the first ones of each person are shown."""

ACROSS = 16
TILES = ACROSS * ACROSS
"""Tiles of a row and of a sheet: few enough to be decoded while one scrolls."""

BLOCK = 8
"""JPEG works in blocks of so many pixels."""


class Shot(NamedTuple):
    """A picture in the page's first view: its source, what it shows in words, the headline's verdict if it has one."""

    source: str
    words: str
    hit: bool | None = None


@dataclass
class Sheets:
    """Tiles in the order in which they were added, until they are encoded."""

    images: list[UInt8[Tensor, "n 3 h w"]] = field(default_factory=list)
    count: int = 0

    def add(self, images: UInt8[Tensor, "n c h w"]) -> int:
        """The place of the first of some images."""
        first = self.count
        self.images.append(images.expand(-1, 3, -1, -1))
        self.count += len(images)
        return first

    def encoded(self) -> "Encoded":
        """The sheets at the first rung of the ladder at which all fit."""
        every = torch.cat(self.images) if len({images.shape[1:] for images in self.images}) == 1 else None
        sample = every[:: max(1, self.count // TILES)] if every is not None else None
        for edge, quality in LADDER:
            place = _placed(self.images, edge)
            if sample is not None and edge != LADDER[-1][0]:  # a look at some tiles saves encoding all in vain
                few = sum(map(len, _sheets([sample], place, quality)))
                if few * self.count > BUDGET * len(sample):
                    continue
            sheets = list(_sheets(self.images, place, quality))
            if sum(map(len, sheets)) <= BUDGET:
                break
        return Encoded(sheets, place)


class Place(NamedTuple):
    """Height and width of a thumbnail as it is shown, and of its tile: the next whole blocks."""

    inner: tuple[int, int]
    tile: tuple[int, int]


class Encoded(NamedTuple):
    """Sheets in base64, and where a tile lies on them."""

    sheets: list[str]
    place: Place


def _placed(images: Sequence[Tensor], edge: int) -> Place:
    high, wide = (max(one.shape[axis] for one in images) for axis in (2, 3))
    factor = min(1.0, edge / max(high, wide))
    inner = max(1, round(high * factor)), max(1, round(wide * factor))
    return Place(inner, (BLOCK * math.ceil(inner[0] / BLOCK), BLOCK * math.ceil(inner[1] / BLOCK)))


def _sheets(images: Iterable[Tensor], place: Place, quality: int) -> Iterator[str]:
    """Full sheets in order, then the rest."""
    waiting = torch.zeros(0, 3, *place.tile, dtype=torch.uint8)
    # The last row and column are repeated up to whole blocks: what lies there is never shown.
    rows_, columns = (
        torch.arange(tile).clamp(max=inner - 1) for tile, inner in zip(place.tile, place.inner, strict=True)
    )
    for some in images:
        for chunk in some.split(4 * TILES):
            if tuple(chunk.shape[2:]) != place.inner:
                resized = F.interpolate(chunk.float(), size=place.inner, mode="bilinear", antialias=True)
                chunk = resized.round().clamp(0, 255).byte()
            if place.tile != place.inner:
                chunk = chunk[:, :, rows_][:, :, :, columns]
            waiting = torch.cat([waiting, chunk])
            while len(waiting) >= TILES:
                yield _sheet(waiting[:TILES], quality)
                waiting = waiting[TILES:]
    if len(waiting):
        yield _sheet(waiting, quality)


def _sheet(tiles: UInt8[Tensor, "n 3 h w"], quality: int) -> str:
    from PIL import Image

    n, _, high, wide = tiles.shape
    down = math.ceil(n / ACROSS)
    whole = torch.zeros(down * ACROSS, 3, high, wide, dtype=torch.uint8)
    whole[:n] = tiles
    whole = whole.reshape(down, ACROSS, 3, high, wide).permute(0, 3, 1, 4, 2).reshape(down * high, ACROSS * wide, 3)
    file = io.BytesIO()
    Image.fromarray(whole.contiguous().numpy()).save(file, "JPEG", quality=quality, subsampling=0)
    return base64.b64encode(file.getvalue()).decode("ascii")


class Gallery(NamedTuple):
    """What the page shows of images: data for its script, first views by protocol, and what is missing."""

    data: dict[str, Any]
    sheets: list[str]
    first: dict[str, list[tuple[str, list[Shot]]]]
    people: dict[str, list[str]]
    missing: list[str]


def picture(image: UInt8[Tensor, "c h w"], words: str, hit: bool | None = None, edge: int = 128) -> Shot:
    """One image as a data URI: PNG where it is small, JPEG otherwise."""
    from PIL import Image

    made = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    made.thumbnail((edge, edge))
    file = io.BytesIO()
    small = max(made.size) <= 32
    quality = {} if small else {"quality": 90, "subsampling": 0}
    made.save(file, "PNG" if small else "JPEG", **quality)
    kind = "png" if small else "jpeg"
    return Shot(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}", words, hit)


def gallery(results: Sequence[Result], table: pd.DataFrame, private_images: bool = True) -> Gallery:
    """Every score whose reconstructions are on disk.

    Args:
        results: The scores.
        table: `frame.scores` of them.
        private_images: Whether real images and names are shown.
    """
    runs = {result.run.id: result for result in results}
    sheets = Sheets()
    missing: list[str] = []
    made: dict[str, list[Any]] = {"groups": [], "runs": []}
    first: dict[str, list[tuple[str, list[Shot]]]] = {}
    people: dict[str, list[str]] = {}
    each = _each(list(results))
    for group in protocols(table):
        lines = rows(group[group["score"].notna()])
        protocol = str(lines[0]["protocol"])
        own = [runs[line["score"]] for line in lines]
        data = _data(own[0], missing)
        labels = sorted({label for one in own for label in one.hits.people.tolist()})
        names = _names(own, labels, private_images)
        judged = list(dict.fromkeys(column for one in own for column in _judges(one)))
        place = len(made["groups"])
        shown = private_images and data is not None
        known: dict[str, Any] = {
            "about": f"{lines[0]['dataset']}, {lines[0]['identities']} people",
            "heldout": None,
            "judges": [_judge(column) for column in judged],
            "apart": [judged.index(column) for column in own[0].judges if column in judged],
            "labels": labels,
            "names": [names[label] for label in labels],
            "private": None,
            "withheld": not private_images,
        }
        private = heldout = None
        if shown and data is not None:
            try:
                private, heldout = grids.real(own[0], data, labels)
                known |= {"private": sheets.add(private), "heldout": sheets.add(heldout)}
            except UserError as error:
                missing.append(f"no real photographs: {error}")
        copied = _digests(data) if not private_images and data is not None else set()
        strips = []
        for line, one in zip(lines, own, strict=True):
            try:
                tensors, _ = artifacts.read_tensors(one.inversion.path / "images.safetensors", "reconstructions")
            except UserError as error:
                missing.append(f"no pictures of {line['attack_label']}: {error}")
                continue
            images = tensors["images"]
            if not private_images:
                images = _redacted(one, images, copied)
            kept = one.columns["order"] < each
            made["runs"].append(_run(line, one, place, sheets.add(images[torch.from_numpy(kept)]), kept, judged))
            if line["role"] == "attack":
                strips.append((line, one, images))
        made["groups"].append(known)
        first[protocol], people[protocol] = _first(strips, private, heldout, labels, names)
    if not sheets.count:
        return Gallery(made, [], first, people, missing)
    encoded = sheets.encoded()
    laid = {"across": ACROSS, "inner": encoded.place.inner, "tile": encoded.place.tile, "tiles": TILES}
    return Gallery(made | laid, encoded.sheets, first, people, missing)


def _each(results: list[Result]) -> int:
    """So many images of each person under each attack are shown."""
    people = sum(result.score.identities for result in results)
    return max(1, MOST // max(1, people))


def _data(result: Result, missing: list[str]) -> Dataset | None:
    try:
        return artifacts.dataset(result.target)
    except UserError as error:
        missing.append(f"no real photographs: {error}")
        return None


def _names(results: Sequence[Result], labels: Sequence[int], private_images: bool) -> dict[int, str]:
    if not private_images:
        return {label: numbered(label) for label in labels}
    known: dict[int, str] = {}
    for one in results:
        if set(known) >= set(labels):
            break
        table = one.per_image.drop_duplicates("label")
        known |= dict(zip(table["label"].tolist(), table["identity"].tolist(), strict=True))
    return known


OTHER = {"likeness": "likeness", "target_top1": "the target itself"}


def _judges(result: Result) -> list[str]:
    """Columns of yes or no: the headline, its judges, other evaluation models' open-set verdicts, the target's own."""
    others = [f"open_top1@{name}" for name in result.names]
    return list(dict.fromkeys([HEADLINE, *result.judges, *others, "target_top1"]))


def _judge(column: str) -> str:
    return OTHER.get(column) or words(column)


def _run(line: Any, result: Result, group: int, tile: int, kept: Any, judged: list[str]) -> dict[str, Any]:
    """One score for the script: verdicts as bits, the first judge's the lowest."""
    table = result.columns
    bits = np.zeros(int(kept.sum()), dtype=np.int64)
    for place, column in enumerate(judged):
        if column in table:
            bits |= (table[column][kept] == 1).astype(np.int64) << place
    return {
        "attack": line["attack_label"],
        "bits": bits.tolist(),
        "group": group,
        "has": [int(column in table) for column in judged],
        "labels": table["label"][kept].tolist(),
        "role": line["role"],
        "score": result.run.id,
        "target": line["target_label"],
        "tile": tile,
    }


def _digests(data: Dataset) -> set[bytes]:
    """Of every private and held-out image."""
    return {_digest(image) for part in (data.train, data.heldout) for image in part.images.cpu()}


def _digest(image: UInt8[Tensor, "c h w"]) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()


def _redacted(result: Result, images: UInt8[Tensor, "n c h w"], copied: set[bytes]) -> UInt8[Tensor, "n c h w"]:
    """Grey in the place of each reconstruction that is a private or held-out image, by its pixels or as far as every
    evaluation model can tell (a copy that was saved again)."""
    same = torch.tensor([_digest(image) in copied for image in images], dtype=torch.bool)
    near = torch.ones(len(images), dtype=torch.bool)
    table, told = result.columns, False
    for name, known in result.score.facts.items():
        columns = [column for column in (f"knn_train@{name}", f"knn_heldout@{name}") if column in table]
        if columns and known.knn_real_to_real:
            told = True
            nearest = np.fmin.reduce([table[column] for column in columns])
            near &= torch.from_numpy(nearest < SAME * known.knn_real_to_real)
    hidden = same | near if told else same
    return torch.where(hidden[:, None, None, None], torch.full_like(images, grids.WITHHELD), images)


def _first(
    strips: Sequence[tuple[Any, Result, Tensor]],
    private: Tensor | None,
    heldout: Tensor | None,
    labels: Sequence[int],
    names: dict[int, str],
) -> tuple[list[tuple[str, list[Shot]]], list[str]]:
    """The page's first picture: the people with the first labels; their private image, the unseen one nearest to it,
    and of each target the first image of the attack with the highest headline, good or bad: of each track its own, the
    headline's first. At most four rows of reconstructions."""
    shown = list(labels[: grids.IDENTITIES])
    lines = _photographs(private, heldout, shown, names)
    best: dict[tuple[str, str], tuple[Any, Result, Tensor]] = {}
    for line, result, images in strips:
        key = (result.track, line["target_label"])
        held = best.get(key)
        if held is None or line[HEADLINE] > held[0][HEADLINE]:
            best[key] = (line, result, images)
    tracks = [track for track in (*TRACKS, "") if any(track == known for known, _ in best)]
    chosen = sorted(best, key=lambda key: tracks.index(key[0]))
    for track, target in chosen[:4]:
        line, result, images = best[track, target]
        shots = _shots(f"{line['attack_label']} on {target}", result, images, shown, names)
        where = "no defense" if target == "none" else target
        title = [line["attack_label"], where, *([track] if track and len(tracks) > 1 else [])]
        lines.append((", ".join(title), shots))
    return lines, [names[label] for label in shown]


def _photographs(
    private: Tensor | None, heldout: Tensor | None, shown: Sequence[int], names: Mapping[int, str]
) -> list[tuple[str, list[Shot]]]:
    """Rows of real images, a person a column; none where they are not at hand or withheld."""
    return [
        (title, [picture(images[place], f"{title} of {names[label]}") for place, label in enumerate(shown)])
        for title, images in (("private photograph", private), ("nearest unseen photograph", heldout))
        if images is not None
    ]


def _shots(what: str, result: Result, images: Tensor, shown: Sequence[int], names: Mapping[int, str]) -> list[Shot]:
    """The first image of each person, good or bad, with the headline's verdict."""
    table, shots = result.per_image, []
    for label in shown:
        places = np.flatnonzero((table["label"] == label).to_numpy())
        if len(places) == 0:
            continue
        hit = bool(table[HEADLINE].iloc[places[0]])
        verdict = "passes as the person" if hit else "does not pass as the person"
        shots.append(picture(images[int(places[0])], f"{what}, {names[label]}: {verdict}", hit))
    return shots


class Beside(NamedTuple):
    """Some scores beside each other: rows of pictures, a person a column; who they are; what is missing."""

    rows: list[tuple[str, list[Shot]]]
    people: list[str]
    missing: list[str]


def beside(sides: Mapping[str, Result], private_images: bool = True) -> Beside:
    """The first people whom all of some scores of one data set attacked: real images, then what each attack made.

    Args:
        sides: What each is called -> the score.
        private_images: Whether real images and names are shown.
    """
    own, missing = list(sides.values()), list[str]()
    if len({one.fingerprint for one in own}) > 1:
        return Beside([], [], ["no pictures: the data sets differ, and so do the people"])
    labels = sorted(set.intersection(*(set(one.hits.people.tolist()) for one in own)))[: grids.IDENTITIES]
    names, data = _names(own, labels, private_images), _data(own[0], missing)
    rows_: list[tuple[str, list[Shot]]] = []
    if private_images and data is not None and labels:
        try:
            rows_ += _photographs(*grids.real(own[0], data, labels), labels, names)
        except UserError as error:
            missing.append(f"no real photographs: {error}")
    copied = _digests(data) if not private_images and data is not None else set()
    for name, one in sides.items():
        try:
            tensors, _ = artifacts.read_tensors(one.inversion.path / "images.safetensors", "reconstructions")
        except UserError as error:
            missing.append(f"no pictures of {name}: {error}")
            continue
        images = tensors["images"] if private_images else _redacted(one, tensors["images"], copied)
        rows_.append((name, _shots(name, one, images, labels, names)))
    return Beside(rows_, [names[label] for label in labels], list(dict.fromkeys(missing)))
