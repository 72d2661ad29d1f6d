"""LOMMA on GMI: latent descent under a critic, the logit loss and distilled extra models.

References:
    | Re-thinking Model Inversion Attacks Against Deep Neural Networks (Nguyen et al., CVPR 2023)
    | https://arxiv.org/abs/2304.01669
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.lomma import Lomma
from mibench.attacks.parts.rules import fit_points
from mibench.attacks.parts.search import keys, piecewise, render
from mibench.core import AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["LommaGMI"]

CARD = {
    "summary": "GMI with a logit loss, a feature regulariser and distilled extra models",
    "title": "Re-thinking Model Inversion Attacks Against Deep Neural Networks",
    "authors": "Nguyen, Chandrasegaran, Abdollahzadeh and Cheung",
    "venue": "CVPR",
    "year": 2023,
    "link": "https://arxiv.org/abs/2304.01669",
    "access": "white_box",
    "prior": "wgan_gp",
    "role": "attack",
    "cost": [12_000, 12_000, None],
    "requires": ["critic"],
    "toy": {"short": {"steps": 12, "students": ("cnn",), "student_epochs": 1}},
}

PRESETS = {
    "paper": {"pretrained": True},
    "legacy": {"pretrained": True, "preg": "mean"},
    "quick": {
        "images": 2,
        "steps": 60,
        "lr": 0.5,
        "students": ["cnn", "cnn"],
        "student_epochs": 10,
        "student_lr": 0.05,
        "student_batch": 32,
        "preg": "mean",
    },
}


@dataclass(frozen=True)
class LommaGMI(Lomma):
    """LOMMA's loss by GMI's rule: Nesterov descent, z clamped to [-clip, clip] after each step.

    Args:
        momentum: Nesterov momentum.
        reference_batch: The authors average the loss over this many latents, which divides every step by it; here
            each latent's step is lr / reference_batch times its own gradient, whatever the batch.

    The others are described at `Lomma`.
    """

    momentum: float = 0.9
    reference_batch: int = 60

    called: ClassVar[str] = "lomma_gmi"

    def check(self) -> None:
        """What every LOMMA refuses, and an empty batch."""
        super().check()
        if self.reference_batch < 1:
            raise UserError(f"lomma_gmi: reference_batch must be at least 1, got {self.reference_batch}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One gradient image per restart and step, and the public images once for everybody."""
        gradients = self.images * self.steps
        return Cost(gradients, gradients, public if self.asks else 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Study the public images, then descend from N(0, I); the start is not clamped."""
        known = self.study(oracle, seed, work)
        y, key = keys(labels, self.images)
        steps = oracle.affordable(self.steps, self.images)

        def loss(x: Tensor, y: Tensor, drawn: Noise) -> Tensor:
            return self.losses(oracle, prior, known, x, y, drawn)

        def part(rows: slice) -> Tensor:
            return fit_points(
                prior,
                y[rows],
                Noise(seed, key[rows]).of("gmi"),
                loss,
                steps,
                self.lr,
                self.momentum,
                self.reference_batch,
                self.clip,
                work,
            )

        z = piecewise("lomma_gmi", len(y), oracle, work, part)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))
