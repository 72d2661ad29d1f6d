"""What one process does of the decoding: a run of pictures into their rows of the file. Imports no torch."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mibench.data.published import align, crops
from mibench.data.published.crops import Crop
from mibench.data.published.stores import Store, open_store

__all__ = ["Job", "Picture", "Result", "decode"]

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
MOST = 40_000_000
"""Pixels that are decoded of one picture; its header is read first."""


@dataclass(frozen=True)
class Picture:
    """One picture of a store.

    Args:
        name: In its store.
        box: (left, upper, right, lower) that is cut out first.
        matrix: Six numbers, row by row: how `align.warp` turns it.
    """

    name: str
    box: tuple[int, int, int, int] | None = None
    matrix: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Job:
    """Some pictures, and where their pixels go.

    Args:
        file: The file of pixels.
        offset: Of the first of these pictures' bytes.
        store: Where the pictures lie.
        crop: What is made of each.
        pictures: In order.
    """

    file: Path
    offset: int
    store: Path
    crop: Crop
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Result:
    """What came of a job: sha256 of each picture's file, what was wrong with which, notes on others."""

    hashes: list[bytes] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    faceless: list[str] = field(default_factory=list)


@lru_cache(maxsize=4)
def _store(place: Path) -> Store:
    return open_store(place)


def decode(job: Job) -> Result:
    """Decode the job's pictures; those that cannot be decoded are named and their rows stay as they are."""
    result, crop = Result(), job.crop
    channels = 3 if crop.colour else 1
    shape = (len(job.pictures), channels, crop.size, crop.size)
    rows = np.memmap(job.file, np.uint8, "r+", offset=job.offset, shape=shape)
    for row, picture in enumerate(job.pictures):
        try:
            content = _store(job.store).read(picture.name)
            result.hashes.append(hashlib.sha256(content).digest())
            rows[row] = _pixels(content, picture, crop, result).transpose(2, 0, 1)
        except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
            result.bad.append((picture.name, str(error).split("<_io")[0].strip() or type(error).__name__))
    rows.flush()
    return result


def opens(store: Store, name: str) -> bool:
    """Whether a picture can be decoded, as it is."""
    try:
        with Image.open(io.BytesIO(store.read(name)), formats=_FORMATS) as opened:
            opened.load()
    except Exception:  # damaged files make Pillow's decoders raise nearly anything
        return False
    return True


def _pixels(content: bytes, picture: Picture, crop: Crop, result: Result) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
        if opened.width * opened.height > MOST:
            raise ValueError(f"{opened.width * opened.height / 1e6:.0f} million pixels; at most 40 are decoded")
        opened.load()
        if crop.align != "hd":
            box = picture.box
            if crop.align == "mtcnn":
                box = align.face_box(opened)
                if box is None:
                    result.faceless.append(picture.name)
            return crops.cut(opened, crop, box)
        upright = ImageOps.exif_transpose(opened).convert("RGB")  # as OpenCV reads it
    if picture.matrix is None:
        return crops.cut(upright, crop)
    return align.warp(np.asarray(upright), np.array(picture.matrix).reshape(2, 3), crop.size)
