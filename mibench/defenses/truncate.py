"""Truncation: only the largest scores are told.

References:
    | Membership Inference Attacks against Machine Learning Models (Shokri et al., IEEE S&P 2017), section VIII
    | https://arxiv.org/abs/1610.05820
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.core import Defense
from mibench.models.base import Classifier
from mibench.models.served import Served, Shaper
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["TopScores", "Truncate"]

CARD = {
    "summary": "tell only the k largest scores",
    "title": "Membership Inference Attacks against Machine Learning Models",
    "authors": "Shokri, Stronati, Song and Shmatikov",
    "venue": "IEEE S&P",
    "year": 2017,
    "link": "https://arxiv.org/abs/1610.05820",
    "strength": "k",
    "grid": [10, 5, 3, 1],
    "unseen_by": ["white_box", "label_only"],
    "adaptive": {},
    "role": "control",
    "zero": {"k": 0},
}

PRESETS = {"paper": {"k": 3}}


class TopScores(Shaper):
    """p'_i = p_i / sum of the k largest for those k, else 0; between equal scores torch.topk decides."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, probs: Float[Tensor, "n k"], noise: Noise) -> Float[Tensor, "n k"]:
        """Truncated scores; the argmax stays."""
        values, places = probs.topk(min(self.k, probs.shape[1]), dim=1)
        return torch.zeros_like(probs).scatter(1, places, values / values.sum(dim=1, keepdim=True))


@dataclass(frozen=True)
class Truncate(Defense):
    """What is served: the k largest scores, renormalised, and 0 for every other class.

    Training, accuracy and the white-box attacker see no difference.

    Args:
        k: Scores that are told; 0 is all of them. With 1, the label and nothing else; the paper tries 3 and 1.

    Source: section VIII-A of the paper. Differs: the paper tells k scores as they are; ours sum to 1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        if not self.k >= 0:
            raise UserError(f"truncate: k must be at least 1, or 0 to tell all scores, got {self.k}")

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """The model, served through `TopScores`."""
        if self.k == 0:
            return model
        assert isinstance(model, Classifier)
        return Served(model, TopScores(self.k), 0)
