"""Adversarial training, the negative control: a network that resists tiny patterns shows an attacker whole features.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., ICLR 2018)
    | https://arxiv.org/abs/1706.06083
    | Robust or Private? Adversarial Training Makes Models More Vulnerable to Privacy Attacks (Mejia et al., 2019)
    | https://arxiv.org/abs/1906.06449
"""

from dataclasses import dataclass, replace

import torch

from mibench.core import Batch, Defense, Step
from mibench.defenses.parts.adversary import pgd
from mibench.runtime.errors import UserError

__all__ = ["AdversarialTraining"]

CARD = {
    "summary": "adversarial training: a control that is known to leak more, not less",
    "title": "Towards Deep Learning Models Resistant to Adversarial Attacks",
    "authors": "Madry, Makelov, Schmidt, Tsipras and Vladu",
    "venue": "ICLR",
    "year": 2018,
    "link": "https://arxiv.org/abs/1706.06083",
    "strength": "eps",
    "grid": [0.002, 0.004, 0.008, 0.016],
    "adaptive": {},
    "role": "control",
    "zero": {"eps": 0.0},
}

PRESETS = {"paper": {"eps": 0.031372549, "step": 0.25, "iterations": 7}}
"""CIFAR-10, section 4 of the first paper."""


@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """min_f max_{|delta| <= eps} CE(f(x + delta), y), delta by untargeted PGD with a random start.

    Args:
        eps: Largest change of a pixel, images being in [0, 1]; 0 changes nothing. By default half the paper's 8/255:
            what others who inverted such networks call 8/255 is on a scale of [-1, 1].
        step: Size of a PGD step as a share of eps; 1/4 in the paper (2/255 of 8/255).
        iterations: PGD steps; the paper's 7.

    Source: eq. 2.1 and section 4 of the first paper (CIFAR-10: eps 8/255, 7 steps of 2/255). An image whose target is
    mixed is pushed away from its largest class. Rows that other defenses added stay as they are.
    Differs: delta is crafted in eval mode, so that batch normalisation does not learn from unfinished ones.
    """

    eps: float = 4 / 255
    step: float = 0.25
    iterations: int = 7

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1 or not 0 < self.step <= 2:
            raise UserError(
                f"pgd_at: eps must lie in [0, 1] and step (a share of eps) in (0, 2], got {self.eps} and {self.step}"
            )
        if self.iterations < 1:
            raise UserError(f"pgd_at: iterations must be at least 1, got {self.iterations}")

    def batch(self, batch: Batch, step: Step) -> Batch:
        """The batch's own images give way to their adversarial versions; targets and weights stay."""
        if self.eps == 0:
            return batch
        crafted = pgd(
            step.model,
            batch.x[: batch.clean],
            batch.t[: batch.clean].argmax(dim=1),
            self.eps,
            self.step * self.eps,
            self.iterations,
            False,
            step.noise.of("start"),
            step.engine.autocast,
        )
        return replace(batch, x=torch.cat([crafted, batch.x[batch.clean :]]))
