"""Grids of images as PNG files."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mibench.runtime.files import write_atomic

__all__ = ["tile"]


def tile(
    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"], path: Path, columns: int, shortest: int = 64
) -> None:
    """Write images (uint8, or float in [0, 1]) row by row into one PNG, on white, small ones enlarged by whole factors.

    Args:
        images: What to show; grey or colour.
        path: The PNG.
        columns: Images per row.
        shortest: Enlarge until an image is at least this high, in pixels.
    """
    x = images.detach().cpu()
    if x.dtype != torch.uint8:
        x = (x.float() * 255).round().clamp(0, 255).to(torch.uint8)
    factor = max(1, -(-shortest // x.shape[2]))
    x = x.expand(-1, 3, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    n, _, h, w = x.shape
    gap = 2
    rows = -(-n // columns)
    sheet = torch.full((3, rows * (h + gap) + gap, columns * (w + gap) + gap), 255, dtype=torch.uint8)
    for place, image in enumerate(x):
        top, left = gap + place // columns * (h + gap), gap + place % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    write_atomic(path, lambda scratch: picture.save(scratch, format="PNG"))
