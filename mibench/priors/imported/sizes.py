"""Sizes that a file does not name, told from its tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mibench.runtime.errors import UserError

__all__ = ["channels_of", "require_filter"]


def channels_of(widths: Mapping[int, int], path: Path) -> tuple[int, int]:
    """(base, most) of channels = min(base / side, most).

    Args:
        widths: Channels by side.
        path: The file, for the error.

    Raises:
        UserError: They follow no such law.
    """
    most = max(widths.values())
    base = next((side * width for side, width in sorted(widths.items()) if width < most), most * max(widths))
    if any(width != min(base // side, most) for side, width in widths.items()):
        listed = ", ".join(f"{width} at {side}" for side, width in sorted(widths.items()))
        raise UserError(f"{path}: its channels ({listed}) do not halve as the side doubles, as in a StyleGAN2")
    return base, most


def require_filter(given: Tensor, path: Path, gain: float = 1.0) -> None:
    """Refuse another filter than the published one, the outer product of [1, 3, 3, 1] / 8.

    Raises:
        UserError: If it is another.
    """
    tap = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    if given.shape != (4, 4) or not torch.allclose(given, gain * tap[:, None] * tap, atol=1e-5):
        taps = ", ".join(f"{one:.4g}" for one in given.flatten()[:4].tolist())
        raise UserError(f"{path}: its filter ({taps}, ...) is not the published [1, 3, 3, 1]; it cannot be imported")
