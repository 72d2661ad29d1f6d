"""A model that answers, whatever it was opened from: the tensors that it wants in, one row of scores an image out."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mibench.models.imported.declared import NOTHING, Declared, first

__all__ = ["Opened", "Plain", "Program", "channels_of", "family_of"]


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that answers.

    Args:
        module: Tensors as it wants them to its output, a single (n, k) tensor; in eval mode.
        family: Of its architecture, `unknown` where that cannot be told.
        declared: What it says of itself.
        differentiable: Whether gradients may flow through it.
        notes: What the user should know, a sentence each.
    """

    module: nn.Module
    family: str
    declared: Declared = NOTHING
    differentiable: bool = True
    notes: tuple[str, ...] = ()


class Program(nn.Module):
    """A program that takes one number of images, whatever number is asked: in parts, the last one filled up.

    Args:
        inner: The program.
        batch: What it takes; None for any number.
    """

    def __init__(self, inner: nn.Module, batch: int | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        if self.batch is None:
            return first(self.inner(x))
        parts = []
        for part in x.split(self.batch):
            short = self.batch - len(part)
            whole = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            parts.append(first(self.inner(whole))[: len(part)])
        return torch.cat(parts)


class Plain(nn.Module):
    """A network whose output may be a tuple, a mapping or an object with `.logits`: the scores alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return first(self.inner(x))


def channels_of(net: nn.Module) -> int | None:
    """What the first convolution takes."""
    stem = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return stem.in_channels if stem is not None and stem.in_channels in (1, 3) else None


def family_of(kinds: Iterable[Any]) -> str:
    """The family that the classes of a network tell: torchvision's or timm's module, or mibench's file."""
    for kind in kinds:
        text = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        known = re.search(r"\b(torchvision|timm|mibench)\.models\.(\w+)\.", text)
        if known and known[2] not in ("base", "_manipulate", "imported", "layers"):
            return known[2]
    return "unknown"
