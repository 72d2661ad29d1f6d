"""Image files to square uint8 pixels, and data files inside installed distributions.

Decoding and resizing are Pillow's 8-bit integer code, so the same file gives the same bytes on every machine.
"""

import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file
from mibench.runtime.pixels import empty
from mibench.runtime.progress import Reporter

__all__ = ["decode", "decode_all", "packaged", "square"]

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_GREY = ("1", "L", "LA", "La")

MOST = 40_000_000
"""Pixels that are decoded at a time, in one file or in several at once: 4 bytes each in Pillow, four times that where
they are transparent. A small file can claim any number of them; its header is read first."""


# Pillow only warns of a small file that claims 90 million pixels. Set once: `decode` runs in threads, which share it.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def packaged(name: str, suffix: str) -> list[Path]:
    """Files of an installed distribution whose path ends with `suffix`, sorted; the package is not imported.

    Raises:
        UserError: The distribution is not installed, or has no such file.
    """
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        files = []
    found = sorted(Path(str(file.locate())) for file in files if file.as_posix().endswith(suffix))
    if not found:
        raise UserError(f"this data set lies in the package {name}, which is not installed; run: pip install {name}")
    return found


def square(image: Image.Image, size: int) -> UInt8[Tensor, "c h w"]:
    """Centre crop to the shorter side, then antialiased bicubic resize to size x size."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(small))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


class _Budget:
    """Lets decoders in as long as their pictures together have at most MOST pixels."""

    def __init__(self) -> None:
        self.free = threading.Condition()
        self.taken = 0

    @contextmanager
    def share(self, pixels: int) -> Iterator[None]:
        """Wait for room, and have it.

        Raises:
            ValueError: If there never is so much.
        """
        if pixels > MOST:
            raise ValueError(f"{pixels / 1e6:.0f} million pixels; at most {MOST / 1e6:.0f} are decoded: shrink it")
        with self.free:
            self.free.wait_for(lambda: self.taken + pixels <= MOST)
            self.taken += pixels
        try:
            yield
        finally:
            with self.free:
                self.taken -= pixels
                self.free.notify_all()


_budget = _Budget()


def decode(file: Path, size: int, colour: bool) -> tuple[UInt8[Tensor, "c h w"], list[str]]:
    """One file to pixels, and which conversions that took.

    EXIF orientation is applied; 16 bits become 8 (x / 257); transparency is laid over white; palette, grey and CMYK
    become RGB (or everything grey, with ITU-R 601 weights, if not `colour`); of several frames the first is taken. The
    header is read first: a JPEG of more than MOST pixels is halved while it is decoded until it has fewer (no
    progressive one, which needs the memory all the same), and any other is refused.

    Raises:
        Exception: Whatever Pillow raises on a file that is no image, is truncated, or has 32-bit pixels; OSError for a
            pipe or a device, ValueError for too many pixels.
    """
    with open_file(file) as content, Image.open(content, formats=_FORMATS) as opened:
        done = []
        if opened.width * opened.height > MOST and opened.format == "JPEG" and not opened.info.get("progressive"):
            opened.draft(None, (4 * size, 4 * size))
            done.append("large JPEG halved while it was decoded")
        with _budget.share(opened.width * opened.height):
            image, more = _converted(opened, colour)
            done += more
            if image.width != image.height:
                done.append("cropped to a square")
            if min(image.size) < size:
                done.append("enlarged")
            return square(image, size), done


def _converted(opened: ImageFile, colour: bool) -> tuple[Image.Image, list[str]]:
    """All its pixels, upright, as RGB or grey; and which conversions that took."""
    done = []
    args = opened.tile[0].args if opened.tile else None
    if getattr(opened, "n_frames", 1) > 1:
        done.append("first of several frames")
    opened.load()
    image: Image.Image = opened
    if image.getexif().get(0x0112, 1) != 1:
        done.append("EXIF orientation applied")
        image = ImageOps.exif_transpose(image)
    deep = image.mode.startswith("I;16")
    if deep or ";16" in str(args[0] if isinstance(args, tuple) else args):
        done.append("16 bits to 8")
    if deep:
        image = Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
    grey = image.mode in _GREY
    if image.mode in ("P", "PA"):
        done.append("palette to colour")
    if image.mode == "CMYK":
        done.append("CMYK to RGB")
    if image.has_transparency_data:
        done.append("transparency over white")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if grey == colour:
        done.append("grey to colour" if colour else "colour to grey")
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image if colour else image.convert("L"), done


def decode_all(
    files: Sequence[Path], size: int, colour: bool, reporter: Reporter
) -> tuple[UInt8[Tensor, "n c h w"], dict[str, int]]:
    """All files, by a pool of threads, in order; and how often each conversion was made.

    Raises:
        UserError: Some files are not readable as images: how many, and the first one's name and reason.
    """
    pixels = empty((len(files), 3 if colour else 1, size, size))

    def one(index: int) -> list[str] | Exception:
        try:
            pixels[index], done = decode(files[index], size, colour)
        except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
            return error
        return done

    results = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, reporter.task("read", len(files), "images") as task:
        for result in pool.map(one, range(len(files))):
            results.append(result)
            task.advance()
    bad = [(file, result) for file, result in zip(files, results, strict=True) if isinstance(result, Exception)]
    if bad:
        file, error = bad[0]
        reason = "no image, or damaged" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"{len(bad)} of {len(files)} image files cannot be read; the first is {file} ({reason}); "
            "replace or remove them"
        )
    return pixels, dict(Counter(name for result in results if isinstance(result, list) for name in result))
