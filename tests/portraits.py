"""Drawn faces that MTCNN finds."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor


def face(
    centre: tuple[float, float] = (96, 96), radius: float = 60, skin: tuple[int, int, int] = (224, 180, 150)
) -> Image.Image:
    """A drawn face of 192 px whose eyes lie .32 radii beside its centre and .15 above."""
    (x, y), r = centre, radius
    image = Image.new("RGB", (192, 192), (90, 110, 140))
    draw = ImageDraw.Draw(image)
    draw.ellipse([x - r * 0.78, y - r, x + r * 0.78, y + r], fill=skin)
    for side in (-1, 1):
        eye, height = x + side * r * 0.32, y - r * 0.15
        draw.ellipse([eye - r * 0.15, height - r * 0.08, eye + r * 0.15, height + r * 0.08], fill=(255, 255, 255))
        draw.ellipse([eye - r * 0.07, height - r * 0.08, eye + r * 0.07, height + r * 0.08], fill=(40, 25, 20))
        draw.line([eye - r * 0.18, y - r * 0.3, eye + r * 0.18, y - r * 0.32], fill=(60, 40, 30), width=4)
    draw.polygon([(x, y - r * 0.05), (x - r * 0.1, y + r * 0.28), (x + r * 0.1, y + r * 0.28)], fill=(200, 150, 120))
    draw.ellipse([x - r * 0.28, y + r * 0.45, x + r * 0.28, y + r * 0.6], fill=(170, 70, 70))
    draw.pieslice([x - r * 0.8, y - r * 1.1, x + r * 0.8, y + r * 0.2], 200, 340, fill=(60, 40, 30))
    return image.filter(ImageFilter.GaussianBlur(2))


def stored(*images: Image.Image) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
