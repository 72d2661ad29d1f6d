"""Faces turned upright: CelebA's high-resolution alignment by 68 landmarks, and MTCNN for raw photographs.

The high-resolution CelebA of the 224-pixel papers is cut from the unaligned photographs: with q_i the 68 points of a
standard face and p_i those of the picture, t_i = (q_i + (0, 1/4)) s f + (floor(s / 2), floor(s / 2)), where s is the
side in pixels and f = .65, and the similarity

    M = argmin sum_i |p_i - M t_i|^2,        M t = (a x - b y + u, b x + a y + v)

says where each pixel of the crop lies in the picture. It is read there by bicubic interpolation with parameter -3/4,
edges repeated, in fixed point: coordinates to 1/32 of a pixel, 16 weights that sum to 2^15.

References:
    | HD-CelebA-Cropper (He), whose `align_crop_opencv` this repeats in numpy
    | https://github.com/LynnHo/HD-CelebA-Cropper
    | Plug & Play Attacks (Struppek et al., 2022), section "Prepare Datasets" of its README: face factor .65, 224 x 224,
      bicubic
    | https://github.com/LukasStruppek/Plug-and-Play-Attacks
"""

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

__all__ = ["FACE_FACTOR", "MOVE", "face_box", "hd_matrix", "warp"]

FACE_FACTOR = 0.65
"""The size of the standard face relative to the crop."""

MOVE = (0.0, 0.25)
"""How far the standard face is moved right and down, in its own units."""

_BITS, _SCALE = 5, 1 << 15
"""Fractions of a pixel are whole 1/32, weights whole 1/32768."""

MARGIN = 0.3
"""How much wider than MTCNN's box the square around a face is."""


def hd_matrix(
    points: Float[np.ndarray, "k 2"], standard: Float[np.ndarray, "k 2"], size: int, factor: float = FACE_FACTOR
) -> Float[np.ndarray, "2 3"]:
    """The similarity that takes a pixel of the crop to its place in the picture: least squares over the landmarks."""
    target = (standard + np.array(MOVE)) * size * factor + size // 2
    x, y = target.T
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, u, v = np.linalg.lstsq(rows, points.T.reshape(-1), rcond=None)[0]
    return np.array([[a, -b, u], [b, a, v]])


@cache
def _weights() -> Int[np.ndarray, "32 32 4 4"]:
    """Bicubic weights of each pair of 32nds, as whole numbers that sum to 2^15; the middle takes the rest."""
    a = np.float32(-0.75)
    t = (np.arange(1 << _BITS) / np.float32(1 << _BITS)).astype(np.float32)
    taps = np.empty((len(t), 4), np.float32)
    taps[:, 0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a
    taps[:, 1] = ((a + 2) * t - (a + 3)) * t * t + 1
    taps[:, 2] = ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1
    taps[:, 3] = 1 - taps[:, 0] - taps[:, 1] - taps[:, 2]
    exact = taps[:, None, :, None] * taps[None, :, None, :]  # [fraction of y, fraction of x, row, column]
    whole = np.rint(exact * np.float32(_SCALE)).astype(np.int64)
    for row, column in np.ndindex(whole.shape[:2]):
        rest = int(whole[row, column].sum()) - _SCALE
        if rest:
            middle = whole[row, column, 2:4, 2:4]  # the quarter that OpenCV corrects
            at = middle.argmin() if rest > 0 else middle.argmax()
            middle[np.unravel_index(at, (2, 2))] -= rest
    return whole


def warp(
    pixels: UInt8[np.ndarray, "h w c"], matrix: Float[np.ndarray, "2 3"], size: int
) -> UInt8[np.ndarray, "size size c"]:
    """out(x, y) = picture(M (x, y, 1)), bicubic, edges repeated."""
    height, width = pixels.shape[:2]
    fine = 1 << 10
    at = np.arange(size)

    def place(row: Float[np.ndarray, " 3"]) -> Int[np.ndarray, "size size"]:
        across = np.rint(row[0] * at * fine).astype(np.int64)
        down = np.rint((row[1] * at + row[2]) * fine).astype(np.int64) + (fine >> (_BITS + 1))
        return (down[:, None] + across[None, :]) >> (10 - _BITS)

    x, y = place(matrix[0]), place(matrix[1])
    mask = (1 << _BITS) - 1
    weights = _weights()[y & mask, x & mask]
    columns, rows = (x >> _BITS) - 1, (y >> _BITS) - 1
    total = np.zeros((size, size, pixels.shape[2]), np.int64)
    for i in range(4):
        picked = np.clip(rows + i, 0, height - 1)
        for j in range(4):
            total += weights[..., i, j, None] * pixels[picked, np.clip(columns + j, 0, width - 1)]
    return np.clip((total + _SCALE // 2) >> 15, 0, 255).astype(np.uint8)


@cache
def _detector() -> Any:
    from facenet_pytorch import MTCNN  # brings torch: only workers that look for faces import it

    return MTCNN(select_largest=True, device="cpu")


def face_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The square around the largest face that MTCNN finds, wider than its box by `MARGIN`, within the picture.

    None where it finds none: the caller counts it.
    """
    boxes, _ = _detector().detect(image.convert("RGB"))
    if boxes is None:
        return None
    left, top, right, bottom = (float(value) for value in boxes[0])
    side = min(max(right - left, bottom - top) * (1 + MARGIN), *image.size)
    x = min(max((left + right - side) / 2, 0), image.width - side)
    y = min(max((top + bottom - side) / 2, 0), image.height - side)
    whole = round(side)
    return round(x), round(y), round(x) + whole, round(y) + whole
