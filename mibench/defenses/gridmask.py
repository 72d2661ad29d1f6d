"""GridMask: a regular grid of squares is erased, its period and offset drawn anew (control for random erasing).

References:
    | GridMask Data Augmentation (Chen et al., 2020)
    | https://arxiv.org/abs/2001.04086
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mibench.core import Defense
from mibench.defenses.parts.fills import Fill, erase
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["GridMask"]

CARD = {
    "summary": "erase a regular grid of squares from each training image",
    "title": "GridMask Data Augmentation",
    "authors": "Chen, Liu, Zhao, Wang and Jia",
    "venue": "arXiv",
    "year": 2020,
    "link": "https://arxiv.org/abs/2001.04086",
    "strength": "q",
    "grid": [0.1, 0.25, 0.5, 0.75],
    "adaptive": {"+eot": "asks the target about images under a grid, as it was trained"},
    "role": "control",
    "zero": {"q": 0.0},
}


@dataclass(frozen=True)
class GridMask(Defense):
    """x' = x (1 - M) + fill M; M_ij = 1 where ((i + a) mod d) / d and ((j + b) mod d) / d are both below sqrt(q).

    Period d ~ U(d_0, d_1), offsets a, b ~ U(0, d), drawn for each image. A pixel's row and its column are each in the
    squares with probability sqrt(q), so the mean erased share is q; the default is that of `re` at its default (.25).

    Args:
        q: Erased share, in [0, 1].
        period: (d_0, d_1) as fractions of the image's shorter side, above 0.
        fill: mean, zero, released or noise, as in `re`.

    Source: section 3 of the paper. Differs: no rotation of the grid, and no ramp of the probability that an image is
    masked (here 1); d, a and b are real numbers, so that a square may be a pixel wider than its neighbour and the share
    is exactly q.
    """

    q: float = 0.25
    period: tuple[float, float] = (0.25, 0.5)
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise UserError(f"gridmask: q must lie in [0, 1], got {self.q}")
        if not 0 < self.period[0] <= self.period[1]:
            raise UserError(f"gridmask: period must satisfy 0 < low <= high, got {self.period}")

    def mask(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "n h w"]:
        """True where a pixel is erased."""
        u = noise.of("grid").uniform(3)
        low, high = self.period
        period = (low + (high - low) * u[:, 2:]) * min(height, width)
        inside = []
        for axis, length in enumerate((height, width)):
            place = torch.arange(length, device=u.device) / period + u[:, axis, None]  # in periods
            inside.append(place % 1.0 < math.sqrt(self.q))
        return inside[0][:, :, None] & inside[1][:, None, :]

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Erase; differentiable in the pixels that stay."""
        return erase(x, self.mask(noise, *x.shape[2:]), self.fill, noise)
