"""Cutout: a square of fixed size is erased, and part of it may lie outside the image (control for random erasing).

References:
    | Improved Regularization of Convolutional Neural Networks with Cutout (DeVries and Taylor, 2017)
    | https://arxiv.org/abs/1708.04552
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mibench.core import Defense
from mibench.defenses.parts.boxes import clipped_boxes
from mibench.defenses.parts.fills import Fill, erase
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Cutout"]

CARD = {
    "summary": "erase a square of fixed size whose centre is uniform over each training image",
    "title": "Improved Regularization of Convolutional Neural Networks with Cutout",
    "authors": "DeVries and Taylor",
    "venue": "arXiv",
    "year": 2017,
    "link": "https://arxiv.org/abs/1708.04552",
    "strength": "side",
    "grid": [0.3, 0.586, 0.8, 1.0],
    "adaptive": {"+eot": "asks the target about images with a square cut out, as it was trained"},
    "role": "control",
    "zero": {"side": 0.0},
}

PRESETS = {"paper": {"side": 0.5}}
"""CIFAR-10: 16 of 32 pixels."""


@dataclass(frozen=True)
class Cutout(Defense):
    """x' = x (1 - M) + fill M, M a square of side s centred anywhere in the image and cut off at its edges.

    The mean erased share is (s - s^2 / 4)^2. The default s = 2 - sqrt(2) = .586 makes it that of `re` at its default
    (.25); the paper's s = .5 (16 of CIFAR-10's 32 pixels) makes it .191.

    Args:
        side: s, the square's side as a fraction of the image's, in [0, 1]; rounded to whole pixels. An image that is
            not square gets a rectangle of its own shape.
        fill: mean, zero, released or noise, as in `re`.

    Source: section 3 of the paper. Differs: the paper fills with 0 after normalisation by the data set's mean; ours is
    ImageNet's.
    """

    side: float = 0.586
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.side <= 1:
            raise UserError(f"cutout: side is a fraction of the image's side and must lie in [0, 1], got {self.side}")

    def mask(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "n h w"]:
        """True where a pixel is erased."""
        sides = torch.tensor([round(self.side * height), round(self.side * width)], device=noise.keys.device)
        return clipped_boxes(noise, sides.expand(len(noise.keys), 2), height, width)

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Erase; differentiable in the pixels that stay."""
        return erase(x, self.mask(noise, *x.shape[2:]), self.fill, noise)
