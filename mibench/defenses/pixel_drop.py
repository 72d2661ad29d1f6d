"""Pixel drop: each pixel of each training image is erased by a coin of its own (control for random erasing).

References:
    | Dropout: A Simple Way to Prevent Neural Networks from Overfitting (Srivastava et al., JMLR 2014)
    | https://jmlr.org/papers/v15/srivastava14a.html
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from mibench.core import Defense
from mibench.defenses.parts.fills import Fill, erase
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["PixelDrop"]

CARD = {
    "summary": "erase single pixels of each training image at random",
    "title": "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    "authors": "Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov",
    "venue": "JMLR",
    "year": 2014,
    "link": "https://jmlr.org/papers/v15/srivastava14a.html",
    "strength": "q",
    "grid": [0.1, 0.25, 0.35, 0.45],
    "adaptive": {"+eot": "asks the target about images with dropped pixels, as it was trained"},
    "role": "control",
    "zero": {"q": 0.0},
}


@dataclass(frozen=True)
class PixelDrop(Defense):
    """x' = x (1 - M) + fill M with M_ij ~ Bernoulli(q), one coin for all channels of a pixel.

    The mean erased share is q; the default is that of `re` at its default (.25).

    Args:
        q: Probability that a pixel is erased, in [0, 1].
        fill: mean, zero, released or noise, as in `re`.

    Source: dropout of the input layer. Differs: kept pixels are not scaled by 1 / (1 - q), and a dropped one takes the
    fill, so that only the shape of the mask differs from random erasing's.
    """

    q: float = 0.25
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise UserError(f"pixel_drop: q must lie in [0, 1], got {self.q}")

    def mask(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "n h w"]:
        """True where a pixel is erased."""
        return noise.of("pixels").uniform(height, width) < self.q

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Erase; differentiable in the pixels that stay."""
        return erase(x, self.mask(noise, *x.shape[2:]), self.fill, noise)
