"""SSF: the skip connections of the last stage are weakened by a constant factor.

References:
    | On the Vulnerability of Skip Connections to Model Inversion Attacks (Koh et al., ECCV 2024)
    | https://arxiv.org/abs/2409.01696
"""

from dataclasses import dataclass

from torch import nn

from mibench.core import Defense
from mibench.defenses.parts.skips import weaken
from mibench.runtime.errors import UserError

__all__ = ["WeakSkips"]

CARD = {
    "summary": "weaken the skip connections of the last stage by a factor (SSF)",
    "title": "On the Vulnerability of Skip Connections to Model Inversion Attacks",
    "authors": "Koh, Ho, Nguyen and Cheung",
    "venue": "ECCV",
    "year": 2024,
    "link": "https://arxiv.org/abs/2409.01696",
    "strength": "keep",
    "grid": [0.8, 0.6, 0.2],
    "adaptive": {},
    "conflicts": {"tts": "tts removes the skip connections that ssf weakens"},
    "requires": ["skips"],
    "zero": {"keep": 1.0},
    "toy": {"model": "resnet"},
}

PRESETS = {"paper": {"keep": 0.2}, "legacy": {"keep": 0.6}}
"""The paper's factor for additive skip connections; the one of
configs/training/targets/FaceScrub/resnet18/skip.yaml at commit 304b147 of https://github.com/Pillowkoh/RoLSS."""


@dataclass(frozen=True)
class WeakSkips(Defense):
    """out = act(F(x) + k S(x)) in every block of the last stage, k a constant.

    Args:
        keep: k, in (0, 1]. 1 is no defense; for 0 take rolss.

    Source: the authors' code, https://github.com/Pillowkoh/RoLSS (commit 304b147);
    the paper's page calls k learnable, its code and this keep it fixed.
    """

    keep: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"ssf: keep must lie in (0, 1], got {self.keep}; to remove skip connections take rolss")

    def surgery(self, model: nn.Module) -> nn.Module:
        """k = `keep`.

        Raises:
            UserError: The architecture has no such skip connections.
        """
        return weaken(model, "ssf", 1, self.keep)
