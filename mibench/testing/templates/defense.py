"""A penalty on confident answers: a complete defense in one file.

References:
    | Regularizing Neural Networks by Penalizing Confident Output Distributions (Pereyra et al., 2017)
    | https://arxiv.org/abs/1701.06548
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mibench.core import Batch, Defense, Step
from mibench.runtime.errors import UserError

__all__ = ["ConfidencePenalty"]

CARD = {
    "summary": "penalise confident answers in training",
    "title": "Regularizing Neural Networks by Penalizing Confident Output Distributions",
    "authors": "Pereyra, Tucker, Chorowski, Kaiser and Hinton",
    "venue": "arXiv",
    "year": 2017,
    "link": "https://arxiv.org/abs/1701.06548",
    "contract": 1,
    "strength": "beta",
    "grid": [0.05, 0.1, 0.5, 1.0],
    "adaptive": {"objective=max_margin": "reads the logits, which the penalty leaves unequal"},
    "zero": {"beta": 0.0},
}
"""A literal; `strength` and `grid` are what `mibench sweep` varies, `adaptive` what an attacker does who knows it, and
`zero` where it does nothing."""

PRESETS = {"paper": {"beta": 0.1}}


@dataclass(frozen=True)
class ConfidencePenalty(Defense):
    """Adds -beta H(p) to the loss, H(p) = -sum_k p_k log p_k in nats, averaged over the rows.

    Args:
        beta: Weight of the entropy, at least 0; 0 does nothing, bit for bit.

    Source: equation 2 of the paper.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise UserError(f"confidence_penalty: beta must not be negative, got {self.beta}")

    def penalty(self, batch: Batch, logits: Float[Tensor, "b k"], taps: Sequence[Tensor], step: Step) -> Tensor | None:
        """-beta H, or None at zero strength, so that nothing is added at all."""
        if not self.beta:
            return None
        log_p = logits.float().log_softmax(dim=1)
        return self.beta * (log_p.exp() * log_p).sum(dim=1).mean()
