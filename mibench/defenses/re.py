"""Random Erasing: every training image is shown with one rectangle missing; nothing else changes.

References:
    | Random Erasing vs. Model Inversion: A Promising Defense or a False Hope? (Tran et al., TMLR 2025)
    | https://arxiv.org/abs/2409.01062
    | Random Erasing Data Augmentation (Zhong et al., AAAI 2020)
    | https://arxiv.org/abs/1708.04896
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mibench.core import Defense
from mibench.defenses.parts.fills import FILLS, Fill, erase
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["FILLS", "RandomErasing", "Rectangles"]

CARD = {
    "summary": "erase one random rectangle of each training image (MIDRE)",
    "title": "Random Erasing vs. Model Inversion: A Promising Defense or a False Hope?",
    "authors": "Tran, Nguyen, Mai, Vandierendonck, Assent, Kot and Cheung",
    "venue": "TMLR",
    "year": 2025,
    "link": "https://arxiv.org/abs/2409.01062",
    "strength": "a_e",
    "grid": [0.2, 0.4, 0.6, 0.8],
    "adaptive": {"+eot": "asks the target about erased images, as it was trained"},
    "zero": {"a_e": 0.0, "a_min": 0.0},
}

PRESETS = {
    "paper": {},
    "legacy": {"fill": "released"},
    "fixed": {"a_min": 0.2, "a_e": 0.2, "location": "image"},
    "fixed_boundary": {"a_min": 0.2, "a_e": 0.2, "location": "image_boundary"},
    "random_boundary": {"a_min": 0.2, "a_e": 0.2, "location": "boundary", "fill": "released"},
    "entire": {"a_min": 0.5, "a_e": 0.5, "location": "entire"},
}
"""paper: a_e of the released ResNet-18 / FaceScrub configuration, with the mean pixel; legacy: with the fill that its
code really writes. The others are arms of the release's history (datasets/custom_subset.py and models/classifier.py at
commit 596125b of https://github.com/ngoc-nguyen-0/MIDRE_TMLR), which were taken out later."""

TRIES = 10

Location = Literal[
    "uniform",
    "torus",
    "centre",
    "border",
    "boundary",
    "uniform_before",
    "image",
    "image_after",
    "image_border",
    "image_boundary",
    "entire",
]
BEFORE = ("uniform_before", "image", "image_border", "image_boundary")
"""Erased before the base augmentation."""
FIXED = ("image", "image_after", "image_border", "image_boundary")
"""One rectangle an image for the whole training."""


class Rectangles(NamedTuple):
    """One rectangle per image, in whole pixels; height and width 0 where the image stays whole."""

    top: Int64[Tensor, " n"]
    left: Int64[Tensor, " n"]
    height: Int64[Tensor, " n"]
    width: Int64[Tensor, " n"]


@dataclass(frozen=True)
class RandomErasing(Defense):
    """x' = x (1 - M) + fill M, M one rectangle of area fraction a ~ U(a_min, a_e), drawn anew for each image.

    Args:
        a_e: Largest erased share of the image, the paper's a_e (released: .4 and .8). 0 with a_min 0 erases nothing.
        a_min: Smallest erased share.
        p: Probability that an image is erased at all; the paper's 1 never shows a whole image.
        ratio: Height : width, log-uniform between the two; (1, 1) is a square.
        fill: mean (ImageNet's mean pixel), zero, released (the fill of the authors' code, see parts/fills.py) or noise
            (U[0, 1] for each pixel and channel).
        location: Where, when and in which order. Drawn anew each time, after the base augmentation:
            uniform (corner uniform over the places that fit, so the centre is erased most), torus (wraps around the
            edges, so every pixel is erased equally often), centre (fixed), border (uniform over the places that leave
            the middle of the image alone; needs a_e < .25), boundary (the released rule of that name: only rectangles
            that lie wholly in the central half are refused, 1% of them at a = .2).
            The same, but before the base augmentation, which then moves and recolours the rectangle: uniform_before.
            Drawn once for each image, before the base augmentation, so that those pixels are never seen: image,
            image_border, image_boundary.
            Drawn once, but after it, so that the rectangle stays where it is in the network's input and crops and
            mirror images show the pixels beneath: image_after.
            No pixel at all: entire, the control that leaves out a share of p (a_min + a_e) / 2 of each epoch's images,
            others each time, and so makes as many fewer steps (for as many steps, set training.epochs).

    Source: the paper; the sampler is torchvision's: sides round(sqrt(a h w r)) and round(sqrt(a h w / r)),
    both smaller than the image's, ten tries, else the image stays whole.
    Differs: fills are pixels in [0, 1] (normalisation lies inside the model); the released boundary arms never reach
    the last row and column, and round the side down.
    """

    a_e: float = 0.4
    a_min: float = 0.1
    p: float = 1.0
    ratio: tuple[float, float] = (1.0, 1.0)
    fill: Fill = "mean"
    location: Location = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.a_min <= self.a_e <= 1:
            raise UserError(f"re: areas must satisfy 0 <= a_min <= a_e <= 1, got {self.a_min} and {self.a_e}")
        if not 0 <= self.p <= 1:
            raise UserError(f"re: p must lie in [0, 1], got {self.p}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"re: ratio must satisfy 0 < low <= high, got {self.ratio}")
        if self.location.endswith("border") and self.a_e >= 0.25:
            raise UserError(
                f"re: location={self.location} keeps off the middle of the image, which a rectangle of a quarter of it "
                f"cannot: set a_e below .25 (and a_min at most that), got {self.a_e}"
            )

    def exposure(self) -> float:
        """What is left of an epoch where whole images are erased."""
        return 1.0 - self.p * (self.a_min + self.a_e) / 2 if self.location == "entire" else 1.0

    def rectangles(self, noise: Noise, height: int, width: int) -> Rectangles:
        """Draw one rectangle for each stream of the noise."""
        if self.location in FIXED:
            noise = noise.fixed()
        u = noise.of("size").uniform(2, TRIES)
        area = (self.a_min + (self.a_e - self.a_min) * u[:, 0]) * height * width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + (high - low) * u[:, 1])
        h = (area * ratio).sqrt().round().long()
        w = (area / ratio).sqrt().round().long()
        fits = (h < height) & (w < width)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        place = noise.of("place").uniform(3)
        erased = fits.any(dim=1) & (place[:, 2] < self.p)
        h = h.gather(1, first)[:, 0] * erased
        w = w.gather(1, first)[:, 0] * erased
        if self.location == "centre":
            return Rectangles((height - h) // 2, (width - w) // 2, h, w)
        if self.location.endswith(("border", "boundary")):
            return _outside(Rectangles(h * 0, w * 0, h, w), place[:, 0], height, width, self.location)
        if self.location == "torus":
            rooms = torch.full_like(h, height), torch.full_like(w, width)
        else:
            rooms = height - h + 1, width - w + 1
        # u < 1 in float32, but u * room may round up to room itself.
        top = torch.minimum((place[:, 0] * rooms[0]).long(), rooms[0] - 1)
        left = torch.minimum((place[:, 1] * rooms[1]).long(), rooms[1] - 1)
        return Rectangles(top, left, h, w)

    def mask(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "n h w"]:
        """True where a pixel is erased."""
        box = self.rectangles(noise, height, width)
        device = box.top.device
        # Distance from the rectangle's first row, counted around the torus; without a wrap it is the plain distance.
        rows = (torch.arange(height, device=device) - box.top[:, None]) % height < box.height[:, None]
        columns = (torch.arange(width, device=device) - box.left[:, None]) % width < box.width[:, None]
        return rows[:, :, None] & columns[:, None, :]

    def before(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Erase in the image's own coordinates, if that is where this location lies."""
        return erase(x, self.mask(noise, *x.shape[2:]), self.fill, noise) if self.location in BEFORE else x

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Erase what the network is shown; differentiable in the pixels that stay."""
        if self.location in BEFORE or self.location == "entire":
            return x
        return erase(x, self.mask(noise, *x.shape[2:]), self.fill, noise)


def _outside(box: Rectangles, u: Float[Tensor, " n"], height: int, width: int, rule: str) -> Rectangles:
    """Corners uniform over the places that fit and that the rule allows; size 0 where it allows none.

    Either rule refuses a block of corners, a <= top <= b and c <= left <= d. Allowed corners are counted row by row:
    those of a row are all in it, or, in the rows a to b, those left and right of the block.
    """
    bounds = []
    for size, length in ((box.height, height), (box.width, width)):
        room = length - size + 1
        if rule.endswith("border"):  # covers one of the 1 or 2 middle rows (columns)
            low, high = (length - 1) // 2 - size + 1, torch.full_like(size, length // 2)
        else:  # lies within the central half
            low, high = torch.full_like(size, -(-length // 4)), 3 * length // 4 - size
        low = low.clamp(min=0)
        blocked = (torch.minimum(high, room - 1) - low + 1).clamp(min=0)
        bounds.append((room, low, blocked))
    (rows, top, tall), (columns, left, wide) = bounds
    tall, wide = tall * (wide > 0), wide * (tall > 0)
    allowed = rows * columns - tall * wide
    place = torch.minimum((u.double() * allowed).long(), (allowed - 1).clamp(min=0))
    above, beside = top * columns, tall * (columns - wide)
    within = (place >= above) & (place < above + beside)
    over = torch.where(place < above, place, place + tall * wide)  # as if the block were filled row by row
    free = (columns - wide).clamp(min=1)
    inner = (place - above).clamp(min=0)
    column = inner % free
    y = torch.where(within, top + inner // free, over // columns)
    x = torch.where(within, torch.where(column < left, column, column + wide), over % columns)
    some = allowed > 0
    return Rectangles(y * some, x * some, box.height * some, box.width * some)
