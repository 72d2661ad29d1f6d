"""Adam on a latent under the target's margin: a complete attack in one file.

References:
    | Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network
      (Yuan et al., AAAI 2023), the loss
    | https://arxiv.org/abs/2302.09814
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.search import descend, keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.losses import max_margin, on_logits
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["MarginAdam"]

CARD = {
    "summary": "Adam on a latent under the target's margin",
    "title": "Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network",
    "authors": "Yuan, Chen, Zhang, Zhang and Yu",
    "venue": "AAAI",
    "year": 2023,
    "link": "https://arxiv.org/abs/2302.09814",
    "contract": 1,
    "access": "white_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [1000, 1000, 0],
    "toy": {"short": {"steps": 8}},
}
"""A literal: `mibench list` reads it without importing torch."""

PRESETS = {"paper": {}, "quick": {"images": 2, "steps": 50, "lr": 0.1}}


@dataclass(frozen=True)
class MarginAdam(Attack):
    """min_z max_{k != y} l_k - l_y by Adam from z ~ p(z), l the target's logits on G(z).

    Args:
        images: Reconstructions per identity, each from a start of its own.
        steps: Adam steps.
        lr: Adam's learning rate.

    Source: the identity loss of section 3.3; the rest is this page's.
    """

    images: int = 5
    steps: int = 200
    lr: float = 0.05

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UserError(f"margin_adam: images must be at least 1, got {self.images}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One gradient image per start and step."""
        return Cost(self.images * self.steps, self.images * self.steps, 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Descend; what one identity gets does not depend on which others are asked for."""
        y, key = keys(labels, self.images)  # each label `images` times, and a noise key of its own for each row
        steps = oracle.affordable(self.steps, self.images)

        def part(rows: slice) -> Tensor:  # as many rows at once as memory allows; each part is kept when done
            noise = Noise(seed, key[rows]).of("margin_adam")
            point = Point(prior.sample(noise.of("start")))

            def loss(z: Tensor, drawn: Noise) -> Tensor:
                return oracle.loss(prior.decode(z, y[rows]), y[rows], on_logits(max_margin), drawn)

            descend(point, loss, torch.optim.Adam(point.parameters(), lr=self.lr), steps, noise)
            return point.z.detach()

        z = piecewise("margin_adam", len(y), oracle, work, part)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))
