"""Rounding: scores are told to a few decimals.

References:
    | Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures
      (Fredrikson et al., CCS 2015), section 6
    | https://doi.org/10.1145/2810103.2813677
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.core import Defense
from mibench.defenses.parts.scores import normalised
from mibench.models.base import Classifier
from mibench.models.served import Served, Shaper
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Rounded", "Rounding"]

CARD = {
    "summary": "tell scores to a few decimals only",
    "title": "Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures",
    "authors": "Fredrikson, Jha and Ristenpart",
    "venue": "CCS",
    "year": 2015,
    "link": "https://doi.org/10.1145/2810103.2813677",
    "strength": "digits",
    "grid": [3, 2, 1],
    "unseen_by": ["white_box"],
    "adaptive": {},
    "zero": {"digits": 0},
}


class Rounded(Shaper):
    """p' = round(p, digits) / sum; if every score rounds to 0, the argmax of p gets 1."""

    def __init__(self, digits: int) -> None:
        super().__init__()
        self.digits = digits

    def forward(self, probs: Float[Tensor, "n k"], noise: Noise) -> Float[Tensor, "n k"]:
        """Rounded scores; the largest stays one of the largest, perhaps beside others."""
        return normalised(torch.round(probs, decimals=self.digits), probs)


@dataclass(frozen=True)
class Rounding(Defense):
    """What is served: scores rounded to `digits` decimals, renormalised.

    Training and the white-box attacker see no difference. Accuracy may: of classes that round to the same score the
    first is taken for the label, because a caller cannot tell them apart.

    Args:
        digits: Decimals that are told, from 7 (all that float32 has) down to 1, the strongest; 0 tells scores as they
            are. The paper's levels .001 to .1 are 3 to 1.

    Source: section 6 of the paper. Differs: whole decimals only, and scores sum to 1 again.
    """

    digits: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.digits <= 7:
            raise UserError(
                f"rounding: digits must lie between 1 (strongest) and 7, or be 0 for no rounding, got {self.digits}"
            )

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """The model, served through `Rounded`."""
        if self.digits == 0:
            return model
        assert isinstance(model, Classifier)
        return Served(model, Rounded(self.digits), 0)
