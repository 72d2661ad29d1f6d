"""What stands where pixels were erased."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mibench.runtime.rng import Noise

__all__ = ["FILLS", "Fill", "erase"]

Fill = Literal["mean", "zero", "released", "noise"]
"""A colour of FILLS, or noise: U[0, 1) for each pixel and channel."""

FILLS = {
    "mean": (0.485, 0.456, 0.406),  # the ImageNet mean as a pixel
    "zero": (0.0, 0.0, 0.0),
    # MIDRE's release erases after Normalize(.5, .5) with the same three numbers: the pixel (1 + value) / 2.
    "released": (0.7425, 0.728, 0.703),
}


def erase(
    x: Float[Tensor, "n c h w"], mask: Bool[Tensor, "n h w"], fill: Fill, noise: Noise
) -> Float[Tensor, "n c h w"]:
    """x (1 - M) + fill M, in pixels in [0, 1]; differentiable in the pixels that stay.

    Images that have no three channels get the mean of the colour.
    """
    if fill == "noise":
        new = noise.of("fill").uniform(*x.shape[1:]).to(x.dtype)
    else:
        colour = torch.tensor(FILLS[fill], device=x.device, dtype=x.dtype)
        new = (colour if x.shape[1] == 3 else colour.mean().expand(x.shape[1]))[None, :, None, None]
    return torch.where(mask[:, None], new, x)
