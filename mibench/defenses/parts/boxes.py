"""Rectangles that may hang over the edge of the image."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mibench.runtime.rng import Noise

__all__ = ["clipped_boxes"]


def clipped_boxes(
    noise: Noise, sides: Int64[Tensor, "n 2"], height: int, width: int
) -> Bool[Tensor, "n {height} {width}"]:
    """One rectangle per image, its centre uniform over the image's pixels; what hangs over the edge is cut off.

    For a side of s height pixels the rows inside are s - s^2 / 4 of the image's on average, and likewise the columns.

    Args:
        noise: One stream per image.
        sides: (height, width) of each rectangle in pixels, at most the image's.
        height: Of the images.
        width: Of the images.
    """
    u = noise.of("centre").uniform(2)
    inside = []
    for axis, length in enumerate((height, width)):
        # u < 1 in float32, but u * length may round up to length itself.
        centre = (u[:, axis] * length).long().clamp(max=length - 1)
        first = centre - sides[:, axis] // 2
        place = torch.arange(length, device=u.device)
        inside.append((place >= first[:, None]) & (place < (first + sides[:, axis])[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
