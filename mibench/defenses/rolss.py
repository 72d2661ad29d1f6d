"""RoLSS: the skip connections of the last stage are removed, because inversion gradients travel through them.

References:
    | On the Vulnerability of Skip Connections to Model Inversion Attacks (Koh et al., ECCV 2024)
    | https://arxiv.org/abs/2409.01696
"""

from dataclasses import dataclass

from torch import nn

from mibench.core import Defense
from mibench.defenses.parts.skips import weaken
from mibench.runtime.errors import UserError

__all__ = ["RemovedSkips"]

CARD = {
    "summary": "remove the skip connections of the last stage (RoLSS)",
    "title": "On the Vulnerability of Skip Connections to Model Inversion Attacks",
    "authors": "Koh, Ho, Nguyen and Cheung",
    "venue": "ECCV",
    "year": 2024,
    "link": "https://arxiv.org/abs/2409.01696",
    "strength": "stages",
    "grid": [1, 2],
    "adaptive": {},
    "conflicts": {
        "ssf": "rolss removes the skip connections that ssf weakens",
        "tts": "rolss removes from the start the skip connections that tts removes later",
    },
    "requires": ["skips"],
    "zero": {"stages": 0},
    "toy": {"model": "resnet"},
}

PRESETS = {"paper": {"stages": 1}}
"""The last stage, as in the released configurations."""


@dataclass(frozen=True)
class RemovedSkips(Defense):
    """out = act(F(x)) in every block of the last stages, the first of each with its projection included.

    Args:
        stages: How many stages, from the last; the paper's 1. 0 removes nothing.

    Source: the authors' code, https://github.com/Pillowkoh/RoLSS (commit 304b147).
    Differs: the released ResNet also drops the skip connections of the last fifth of the third stage's blocks, in its
    undefended nets too; concatenative nets (DenseNet) and transformers are refused.
    """

    stages: int = 1

    def __post_init__(self) -> None:
        if not self.stages >= 0:
            raise UserError(f"rolss: stages must be >= 0, got {self.stages}")

    def surgery(self, model: nn.Module) -> nn.Module:
        """k = 0.

        Raises:
            UserError: The architecture has no such skip connections, or fewer stages with them.
        """
        return weaken(model, "rolss", self.stages, 0.0)
