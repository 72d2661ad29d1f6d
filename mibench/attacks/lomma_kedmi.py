"""LOMMA on KEDMI: a Gaussian of latents per identity under the logit loss and distilled extra models.

References:
    | Re-thinking Model Inversion Attacks Against Deep Neural Networks (Nguyen et al., CVPR 2023)
    | https://arxiv.org/abs/2304.01669
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.lomma import Lomma
from mibench.attacks.parts.rules import draw_gaussians, fit_gaussians
from mibench.attacks.parts.search import piecewise, render
from mibench.core import AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.runtime.rng import Noise

__all__ = ["LommaKEDMI"]

CARD = {
    "summary": "KEDMI with a logit loss, a feature regulariser and distilled extra models",
    "title": "Re-thinking Model Inversion Attacks Against Deep Neural Networks",
    "authors": "Nguyen, Chandrasegaran, Abdollahzadeh and Cheung",
    "venue": "CVPR",
    "year": 2023,
    "link": "https://arxiv.org/abs/2304.01669",
    "access": "white_box",
    "prior": "kedmi",
    "role": "attack",
    "cost": [2400, 2400, None],
    "requires": ["critic"],
    "toy": {"short": {"steps": 12, "students": ("cnn",), "student_epochs": 1}},
}

PRESETS = {
    "paper": {"pretrained": True},
    "legacy": {"pretrained": True, "preg": "mean"},
    "quick": {
        "images": 2,
        "steps": 200,
        "lr": 0.05,
        "log_var": -2.0,
        "students": ["cnn", "cnn"],
        "student_epochs": 10,
        "student_lr": 0.05,
        "student_batch": 32,
        "preg": "mean",
    },
}


@dataclass(frozen=True)
class LommaKEDMI(Lomma):
    """LOMMA's loss by KEDMI's rule: Adam on (mu, log sigma^2), one eps a step, z = clamp(mu + sigma eps) to the end.

    Args:
        log_var: The starting log-variance; mu starts at 0.

    The others are described at `Lomma`.
    """

    log_var: float = field(default=1.0, metadata={"signed": True})

    called: ClassVar[str] = "lomma_kedmi"

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One gradient image per identity and step, and the public images once for everybody."""
        return Cost(self.steps, self.steps, public if self.asks else 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Study the public images, fit each identity's Gaussian, then draw from it."""
        known = self.study(oracle, seed, work)
        steps = oracle.affordable(self.steps, 1)

        def loss(x: Tensor, y: Tensor, drawn: Noise) -> Tensor:
            return self.losses(oracle, prior, known, x, y, drawn)

        def part(rows: slice) -> Tensor:
            noise = Noise(seed, labels[rows]).of("kedmi")
            return fit_gaussians(prior, labels[rows], noise, loss, steps, self.lr, self.log_var, self.clip, work=work)

        fitted = piecewise("lomma_kedmi", len(labels), oracle, work, part)
        z, y = draw_gaussians(fitted, labels, self.images, seed, self.clip)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))
