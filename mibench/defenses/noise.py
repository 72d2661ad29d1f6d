"""Noise on the scores, the same for the same image.

References:
    | Practical Defences Against Model Inversion Attacks for Split Neural Networks
      (Titcombe et al., ICLR 2021 workshop DPML)
    | https://arxiv.org/abs/2104.05743
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.core import Defense
from mibench.defenses.parts.scores import normalised
from mibench.models.base import Classifier
from mibench.models.served import Served, Shaper
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Noisy", "ScoreNoise", "laplace"]

CARD = {
    "summary": "add noise to the scores that are told",
    "title": "Practical Defences Against Model Inversion Attacks for Split Neural Networks",
    "authors": "Titcombe, Hall, Papadopoulos and Romanini",
    "venue": "arXiv",
    "year": 2021,
    "link": "https://arxiv.org/abs/2104.05743",
    "strength": "scale",
    "grid": [0.01, 0.05, 0.1, 0.2],
    "unseen_by": ["white_box"],
    "adaptive": {},
    "role": "control",
    "zero": {"scale": 0.0},
}


def laplace(noise: Noise, count: int) -> Float[Tensor, "n {count}"]:
    """Laplace(0, 1) for each stream: a standard exponential -ln(1 - u), u < 1, with a sign of its own."""
    sign = torch.where(noise.of("sign").uniform(count) < 0.5, -1.0, 1.0)
    return -sign * torch.log1p(-noise.of("size").uniform(count))


class Noisy(Shaper):
    """p' = max(p + scale n, 0) / sum, n ~ Laplace(0, 1) or N(0, 1); where all is clipped, the argmax gets 1."""

    def __init__(self, scale: float, law: Literal["laplace", "gaussian"]) -> None:
        super().__init__()
        self.scale = scale
        self.law = law

    def forward(self, probs: Float[Tensor, "n k"], noise: Noise) -> Float[Tensor, "n k"]:
        """Noisy scores."""
        count = probs.shape[1]
        draw = laplace(noise, count) if self.law == "laplace" else noise.normal(count)
        noisy = probs + self.scale * draw
        return normalised(noisy.clamp(min=0.0), noisy)


@dataclass(frozen=True)
class ScoreNoise(Defense):
    """What is served: scores plus noise, clipped at 0 and renormalised.

    The noise is a function of the image's pixels (to 8 bits) and of a key drawn when the target is trained, which the
    attacker does not get: asking twice gives one answer, so that averaging over repeated queries gains nothing.
    Training and the white-box attacker see no difference; accuracy does.

    Args:
        scale: b of Laplace (standard deviation b sqrt(2)) or sigma of the Gaussian, in units of the scores, >= 0.
        law: laplace or gaussian.

    Source: Laplace noise as in the paper. Differs: the paper adds it to what the two halves of a split network
    exchange, not to scores, and draws it anew for each query.
    """

    scale: float = 0.1
    law: Literal["laplace", "gaussian"] = "laplace"

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UserError(f"noise: scale must be >= 0 and finite, got {self.scale}")
        if self.law not in ("laplace", "gaussian"):
            raise UserError(f"noise: law must be laplace or gaussian, got '{self.law}'")

    def memory(self, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """`key`, the noise's seed."""
        kept = nn.Module()
        kept.register_buffer("key", torch.randint(1 << 62, ()))
        return kept

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """The model, served through `Noisy`."""
        if self.scale == 0:
            return model
        assert isinstance(model, Classifier)
        return Served(model, Noisy(self.scale, self.law), int(memory.get_buffer("key")))
