"""What the target sees of an imported generator's image."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["View"]


class _Clamped(torch.autograd.Function):
    """Clamped to [0, 1]; the gradient passes as if it were not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope


@dataclass(frozen=True)
class View:
    """What the target sees of a generator's image: its middle, resized on the device, in [0, 1].

    Source: PPA's authors cut 800 of 1024 pixels out of the middle and resize them to 224, bilinear with antialiasing.
    Differs: they leave what lies outside [-1, 1] as it is; here the image is clamped, as it will be saved, and the
    gradient passes the clamp.

    Args:
        side: Of the target's images.
        antialias: Average over what a smaller pixel covers; without it a resized image is sampled at points.
    """

    side: int
    antialias: bool

    def __call__(self, image: Float[Tensor, "n c k l"]) -> Float[Tensor, "n c h w"]:
        """Of images that are about in [-1, 1]."""
        if image.shape[2] != self.side:
            image = F.interpolate(image.float(), (self.side, self.side), mode="bilinear", antialias=self.antialias)
        clamped: Tensor = _Clamped.apply((image + 1.0) / 2.0)
        return clamped
