"""What a network remembers of its training pictures: the mean and variance that its first batch norm keeps."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Mismatch", "watching"]


class Mismatch:
    """How far what was seen is from what is remembered; NaN in a network without batch norms."""

    value = math.nan


@contextmanager
def watching(module: nn.Module) -> Iterator[Mismatch]:
    """Compare what the first batch norm sees, while the block runs, with what it remembers.

        mean over channels of KL(N(m, v) || N(m_0, v_0)) = (v / v_0 + (m - m_0)^2 / v_0 - 1 - log(v / v_0)) / 2

    m, v: of what it was given in the block; m_0, v_0: its running mean and variance. Set when the block ends.
    """
    told = Mismatch()
    norm = next((one for one in module.modules() if type(one) is nn.BatchNorm2d), None)
    if norm is None or norm.running_mean is None or norm.running_var is None:
        yield told
        return
    means: list[Tensor] = []
    squares: list[Tensor] = []
    counts: list[float] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().float()
        means.append(x.mean(dim=(0, 2, 3)))
        squares.append(x.square().mean(dim=(0, 2, 3)))
        counts.append(float(len(x)))

    hook = norm.register_forward_pre_hook(note)
    try:
        yield told
    finally:
        hook.remove()
    if counts:
        share = torch.tensor(counts, device=means[0].device) / sum(counts)
        mean, square = torch.stack(means).T @ share, torch.stack(squares).T @ share
        usual = norm.running_var.clamp(min=1e-12)
        ratio = (square - mean.square()).clamp(min=1e-12) / usual
        apart = (mean - norm.running_mean).square() / usual + ratio - 1 - ratio.log()
        told.value = float(apart.mean() / 2)
