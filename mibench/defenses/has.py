"""Hide-and-Seek: the image is cut into a grid of cells, and each is hidden by a coin (control for random erasing).

References:
    | Hide-and-Seek: Forcing a Network to be Meticulous for Weakly-supervised Object and Action Localization
      (Singh and Lee, ICCV 2017)
    | https://arxiv.org/abs/1704.04232
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mibench.core import Defense
from mibench.defenses.parts.fills import Fill, erase
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["HideAndSeek"]

CARD = {
    "summary": "hide cells of a grid over each training image at random (Hide-and-Seek)",
    "title": "Hide-and-Seek: Forcing a Network to be Meticulous for Weakly-supervised Object and Action Localization",
    "authors": "Singh and Lee",
    "venue": "ICCV",
    "year": 2017,
    "link": "https://arxiv.org/abs/1704.04232",
    "strength": "p",
    "grid": [0.1, 0.25, 0.5, 0.75],
    "adaptive": {"+eot": "asks the target about images with hidden cells, as it was trained"},
    "role": "control",
    "zero": {"p": 0.0},
}

PRESETS = {"paper": {"p": 0.5}}
"""The paper's probability, with its sides of cells left out (see Differs)."""


@dataclass(frozen=True)
class HideAndSeek(Defense):
    """x' = x (1 - M) + fill M; all pixels of one of the cells x cells patches share one coin M ~ Bernoulli(p).

    The mean erased share is p; the default is that of `re` at its default (.25).

    Args:
        p: Probability that a cell is hidden, in [0, 1]; the paper's is .5.
        cells: Cells along each side, at least 1. Where the side is no multiple of it, cells differ by a pixel.
        fill: mean, zero, released or noise, as in `re`.

    Source: section 3.1 of the paper. Differs: one grid; the paper's image classifiers draw the cell's side from
    {0, 16, 32, 44, 56} of 224 pixels for each image.
    """

    p: float = 0.25
    cells: int = 4
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"has: p must lie in [0, 1], got {self.p}")
        if not self.cells >= 1:
            raise UserError(f"has: cells must be at least 1, got {self.cells}")

    def mask(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "n h w"]:
        """True where a pixel is erased."""
        hidden = noise.of("cells").uniform(self.cells, self.cells) < self.p
        rows, columns = (torch.arange(n, device=hidden.device) * self.cells // n for n in (height, width))
        return hidden[:, rows][:, :, columns]

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Erase; differentiable in the pixels that stay."""
        return erase(x, self.mask(noise, *x.shape[2:]), self.fill, noise)
