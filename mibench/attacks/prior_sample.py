"""The floor without any attack: images drawn from the prior, the target is never asked."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.search import keys, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["PriorSample"]

CARD = {
    "summary": "floor: images drawn from the prior, no attack",
    "title": "Floor",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "access": "none",
    "prior": "dcgan",
    "cost": [0, 0, 0],
    "role": "floor",
}

PRESETS = {"quick": {"images": 2}}


@dataclass(frozen=True)
class PriorSample(Attack):
    """z ~ N(0, I) for each identity, decoded.

    Args:
        images: Reconstructions per identity.
    """

    images: int = 5

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UserError("prior_sample: images must be at least 1")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """Nothing is asked."""
        return Cost(0, 0, 0)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Draw and decode."""
        y, key = keys(labels, self.images)
        z = prior.sample(Noise(seed, key).of("prior_sample"))
        return Reconstructions(render(prior, z, y, work), y, z, torch.zeros_like(y, dtype=torch.bool))
