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
}

PRESETS = {"paper": {}, "legacy": {"fill": "released"}}

TRIES = 10


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
        location: uniform (corner uniform over the places that fit, so the centre is erased most), torus (wraps around
            the edges, so every pixel is erased equally often), centre (fixed), image (drawn once for each image and
            the same in every epoch: those pixels are never seen).

    Source: the authors' code, https://github.com/ngoc-nguyen-0/MIDRE_TMLR (commit eb1aba1); the sampler is
    torchvision's: sides round(sqrt(a h w r)) and round(sqrt(a h w / r)), both smaller than the image's, ten tries, else
    the image stays whole.
    Differs: fills are pixels in [0, 1] (normalisation lies inside the model).
    """

    a_e: float = 0.4
    a_min: float = 0.1
    p: float = 1.0
    ratio: tuple[float, float] = (1.0, 1.0)
    fill: Fill = "mean"
    location: Literal["uniform", "torus", "centre", "image"] = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.a_min <= self.a_e <= 1:
            raise UserError(f"re: areas must satisfy 0 <= a_min <= a_e <= 1, got {self.a_min} and {self.a_e}")
        if not 0 <= self.p <= 1:
            raise UserError(f"re: p must lie in [0, 1], got {self.p}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"re: ratio must satisfy 0 < low <= high, got {self.ratio}")

    def rectangles(self, noise: Noise, height: int, width: int) -> Rectangles:
        """Draw one rectangle for each stream of the noise."""
        if self.location == "image":
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

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Erase; differentiable in the pixels that stay."""
        return erase(x, self.mask(noise, *x.shape[2:]), self.fill, noise)
