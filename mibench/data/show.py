"""A labelled picture grid of a data set: who is private, what is held out, what the attacker has."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mibench.core import Dataset, Split
from mibench.runtime import escape
from mibench.runtime.files import write_atomic

__all__ = ["picture_grid"]

_INK, _GREY, _LINE = "#1a1a1a", "#777777", "#dddddd"
_MARGIN, _NAME, _GAP = 40, 150, 24
_COLUMNS = 10


def _tile(image: UInt8[Tensor, "c h w"], side: int) -> Image.Image:
    """One image at its size on the page: whole multiples keep its pixels sharp, large images are averaged down."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).convert("RGB")
    small = picture.width <= side
    return picture.resize((side, side), Image.Resampling.NEAREST if small else Image.Resampling.BOX)


def _one_each(split: Split, count: int) -> list[int]:
    """Rows of a split, from as many different people as possible."""
    seen: dict[int, int] = {}
    order = []
    for row, label in enumerate(split.labels.tolist()):
        turn = seen.get(label, 0)
        seen[label] = turn + 1
        order.append((turn if label >= 0 else 0, row))
    return [row for _, row in sorted(order)[:count]]


def picture_grid(dataset: Dataset, path: Path, people: int = 6) -> Path:
    """Write a PNG: some private people (training images, then held-out ones), public images, distractors.

    Args:
        dataset: What to show.
        path: The PNG file; its folder is made if missing.
        people: How many private people, from the first on.

    Returns:
        The path.
    """
    size = dataset.image_shape[1]
    side = size * max(1, round(96 / size)) if size <= 128 else 112
    step = side + 4
    held = min(3, int(dataset.heldout.labels.bincount().max()))
    train = min(_COLUMNS - held, int(dataset.train.labels.bincount().max()))
    people = min(people, len(dataset.classes))
    left = _MARGIN + _NAME
    width = left + _COLUMNS * step + _GAP + _MARGIN
    page = Image.new("RGB", (width, 600 + (people + 3) * step), "white")
    draw = ImageDraw.Draw(page)
    fonts = {px: ImageFont.load_default(size=px) for px in (15, 18, 30)}

    def text(x: int, y: int, words: str, px: int = 15, ink: str = _GREY, anchor: str = "la") -> None:
        draw.text((x, y), escape.terminal(words), fill=ink, font=fonts[px], anchor=anchor)

    def fitting(words: str, room: int) -> str:
        words = escape.terminal(words, 400)
        if fonts[15].getlength(words) <= room:
            return words
        while words and fonts[15].getlength(words + "...") > room:
            words = words[:-1]
        return words + "..."

    def section(y: int, name: str, says: str) -> int:
        draw.line((_MARGIN, y, width - _MARGIN, y), fill=_LINE, width=1)
        text(_MARGIN, y + 16, name, 18, _INK)
        text(left, y + 18, fitting(says, width - left - _MARGIN))
        return y + 52

    def row(x: int, y: int, split: Split, rows: list[int]) -> None:
        for column, index in enumerate(rows):
            page.paste(_tile(split.images[index], side), (x + column * step, y))

    y = _MARGIN
    text(_MARGIN, y, dataset.name, 30, _INK)
    c, h, w = dataset.image_shape
    text(_MARGIN, y + 44, fitting(str(dataset.card.get("summary", "")), width - 2 * _MARGIN))
    text(width - _MARGIN, y + 12, f"{h} x {w}, {'colour' if c == 3 else 'grey'}", anchor="ra")

    y = section(y + 84, "Private", f"{len(dataset.classes):,} identities; the attack tries to reconstruct them")
    seam = left + train * step + _GAP
    text(left, y, f"training images ({len(dataset.train):,} in all)")
    text(seam, y, f"held out ({len(dataset.heldout):,})")
    y += 26
    for label in range(people):
        text(_MARGIN, y + side // 2, fitting(dataset.classes[label], _NAME - 16), anchor="lm", ink=_INK)
        for x, split, count in ((left, dataset.train, train), (seam, dataset.heldout, held)):
            row(x, y, split, (split.labels == label).nonzero()[:count, 0].tolist())
        y += step
    known = dataset.public.labels.max() >= 0
    who = f"of {int(dataset.public.labels.max()) + 1:,} other identities" if known else "of other identities"
    y = section(y + 20, "Public", f"{len(dataset.public):,} images {who}; the attacker has them")
    chosen = _one_each(dataset.public, 2 * _COLUMNS)
    for start in range(0, len(chosen), _COLUMNS):
        row(left, y, dataset.public, chosen[start : start + _COLUMNS])
        y += step
    says = (
        "the same as the public images: the data are too few to keep them apart"
        if dataset.distractors_are_public
        else f"{dataset.distractor_count:,} more identities ({len(dataset.distractors):,} images); only evaluation "
        "models know them"
    )
    y = section(y + 20, "Distractors", says)
    if not dataset.distractors_are_public:
        row(left, y, dataset.distractors, _one_each(dataset.distractors, _COLUMNS))
        y += step
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = page.crop((0, 0, width, y + _MARGIN - 20))
    write_atomic(path, lambda scratch: picture.save(scratch, format="PNG", optimize=True))
    return path
