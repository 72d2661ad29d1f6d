"""Scores that were changed, made probabilities again."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["normalised"]


def normalised(scores: Float[Tensor, "n k"], order: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """scores / sum(scores), for scores >= 0; where nothing is left, all of it goes to the argmax of `order`."""
    left = scores.sum(dim=1, keepdim=True)
    top = torch.zeros_like(scores).scatter(1, order.argmax(dim=1, keepdim=True), 1.0)
    return torch.where(left > 0, scores / left, top)
