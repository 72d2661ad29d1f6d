"""PLG-MI: descend on the latent of a generator that already knows whom to draw, under the target's margin.

References:
    | Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network (Yuan et al., AAAI 2023)
    | https://arxiv.org/abs/2302.09814
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.search import descend, keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, augment
from mibench.core.losses import IDENTITY, on_logits
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["PLG"]

CARD = {
    "summary": "latent descent in a conditional GAN under the target's margin on two views",
    "title": "Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network",
    "authors": "Yuan, Chen, Zhang, Zhang, Yu and Zhang",
    "venue": "AAAI",
    "year": 2023,
    "link": "https://arxiv.org/abs/2302.09814",
    "access": "white_box",
    "prior": "plg",
    "role": "attack",
    "cost": [6000, 6000, 0],
    "requires": ["conditional"],
    "toy": {"short": {"steps": 8}},
}

PRESETS = {"paper": {}, "quick": {"images": 2, "steps": 60}}


@dataclass(frozen=True)
class PLG(Attack):
    """min_z sum over views v of MM(T(v(G(z, y))), y) by Adam, z ~ N(0, I) at the start, MM = max_{k != y} l_k - l_y.

    Args:
        images: Restarts, all of them returned.
        steps: Adam steps.
        lr: Adam's learning rate.
        views: Views of each image at each step; their losses are summed.
        objective: The identity loss: max_margin (the paper's), cross_entropy, poincare or nll.
        mirror: Mirror half of the views (faces yes, digits no).

    Source: section 3.4 of the paper; values of the authors' code (commit 3cf8735 of
    https://github.com/LetheSec/PLG-MI-Attack).
    """

    images: int = 5
    steps: int = 600
    lr: float = 0.1
    views: int = 2
    objective: Literal["max_margin", "cross_entropy", "poincare", "nll"] = "max_margin"
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.images < 1 or self.views < 1:
            raise UserError("plg: images and views must be at least 1")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One gradient image per restart, step and view."""
        asked = self.images * self.steps * self.views
        return Cost(asked, asked, 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Descend from N(0, I)."""
        y, key = keys(labels, self.images)
        steps = oracle.affordable(self.steps, self.images * self.views)

        def part(rows: slice) -> Tensor:
            return self._invert(oracle, prior, y[rows], steps, Noise(seed, key[rows]).of("plg"), work)

        z = piecewise("plg", len(y), oracle, work, part)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))

    def _invert(
        self, oracle: Oracle, prior: Prior, y: Int64[Tensor, " n"], steps: int, noise: Noise, work: AttackContext
    ) -> Tensor:
        point = Point(prior.sample(noise.of("start")))
        optimizer = torch.optim.Adam(point.parameters(), lr=self.lr, eps=60e-8)  # a sum here, a mean over 60 there
        term = on_logits(IDENTITY[self.objective])

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            x = prior.decode(z, y)
            streams = [drawn.of("view", view) for view in range(self.views)]
            seen = [oracle.loss(augment.view(x, noise, self.mirror), y, term, noise) for noise in streams]
            return torch.stack(seen).sum(dim=0)

        descend(point, loss, optimizer, steps, noise, work=work)
        return point.z.detach()
