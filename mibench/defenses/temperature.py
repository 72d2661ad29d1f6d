"""Temperature: scores are flattened (or sharpened) before they are told.

References:
    | Membership Inference Attacks against Machine Learning Models (Shokri et al., IEEE S&P 2017), section VIII
    | https://arxiv.org/abs/1610.05820
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.core import Defense
from mibench.models.base import Classifier
from mibench.models.served import Served, Shaper
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Flattened", "Temperature"]

CARD = {
    "summary": "tell scores at a higher softmax temperature",
    "title": "Membership Inference Attacks against Machine Learning Models",
    "authors": "Shokri, Stronati, Song and Shmatikov",
    "venue": "IEEE S&P",
    "year": 2017,
    "link": "https://arxiv.org/abs/1610.05820",
    "strength": "temperature",
    "grid": [2.0, 5.0, 20.0],
    "unseen_by": ["white_box", "label_only"],
    "adaptive": {},
    "role": "control",
    "zero": {"temperature": 1.0},
}

PRESETS = {"paper": {"temperature": 20.0}}
"""The largest of section VIII-A."""


class Flattened(Shaper):
    """p' = softmax(log p / T), which is softmax(logits / T); a score of 0 stays 0."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, probs: Float[Tensor, "n k"], noise: Noise) -> Float[Tensor, "n k"]:
        """Scores of the same order."""
        return torch.softmax(probs.log() / self.temperature, dim=1)


@dataclass(frozen=True)
class Temperature(Defense):
    """What is served: softmax(log p / T).

    Training, accuracy and the white-box attacker see no difference. It is undone by whoever knows or guesses T, up to
    the precision of the scores: a control for how much attacks depend on the scale of the scores alone.

    Args:
        temperature: T, above 0; 1 changes nothing, above 1 flattens, below 1 sharpens. The paper tries 5 and 20.

    Source: section VIII-A of the paper.
    """

    temperature: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature: temperature must be above 0 and finite, got {self.temperature}")

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """The model, served through `Flattened`."""
        if self.temperature == 1:
            return model
        assert isinstance(model, Classifier)
        return Served(model, Flattened(self.temperature), 0)
