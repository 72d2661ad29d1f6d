"""TTS: trained with all skip connections for a while, then without those of the last stage.

References:
    | On the Vulnerability of Skip Connections to Model Inversion Attacks (Koh et al., ECCV 2024)
    | https://arxiv.org/abs/2409.01696
"""

from dataclasses import dataclass

from torch import nn

from mibench.core import Defense, Step
from mibench.defenses.parts.skips import Scaled, weaken
from mibench.runtime.errors import UserError

__all__ = ["LaterRemovedSkips"]

CARD = {
    "summary": "remove the skip connections of the last stage some epochs into the training (TTS)",
    "title": "On the Vulnerability of Skip Connections to Model Inversion Attacks",
    "authors": "Koh, Ho, Nguyen and Cheung",
    "venue": "ECCV",
    "year": 2024,
    "link": "https://arxiv.org/abs/2409.01696",
    "strength": "warm",
    "grid": [0.5, 0.2, 0.05],
    "adaptive": {},
    "requires": ["skips"],
    "zero": {"warm": 1.0},
    "toy": {"model": "resnet"},
}

PRESETS = {"paper": {"warm": 0.05}}
"""5 of 100 epochs."""


@dataclass(frozen=True)
class LaterRemovedSkips(Defense):
    """out = act(F(x) + k S(x)) in the last stage; k = 1 in epochs that start before `warm` of them are over, then 0.

    The schedule of the learning rate goes on as if nothing had happened.

    Args:
        warm: Share of the epochs with all skip connections, in [0, 1]. 1 is no defense, 0 is rolss.

    Source: the authors' code, https://github.com/Pillowkoh/RoLSS (commit 304b147).
    """

    warm: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.warm <= 1:
            raise UserError(f"tts: warm must lie in [0, 1], got {self.warm}")

    def surgery(self, model: nn.Module) -> nn.Module:
        """k = 1, until the clock says otherwise.

        Raises:
            UserError: The architecture has no such skip connections.
        """
        return weaken(model, "tts", 1, 1.0)

    def epoch(self, step: Step) -> None:
        """Set k from the time alone."""
        for module in step.model.modules():
            if isinstance(module, Scaled):
                module.k.fill_(float(step.time < self.warm))
