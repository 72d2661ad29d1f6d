"""The floor without optimisation: the prior's best samples by the target's confidence."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.search import best_of_pool, pool_scores, render
from mibench.core import Attack, Cost, Oracle, Prior, Reconstructions, Workspace
from mibench.errors import UserError
from mibench.rng import Noise

__all__ = ["PriorSearch"]

CARD = {
    "summary": "floor: the best of N prior samples by target confidence, no optimisation",
    "title": "Floor",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "access": "black_box",
    "prior": "dcgan",
    "role": "floor",
}

PRESETS = {"paper": {"pool": 5000}, "quick": {"images": 2}}


@dataclass(frozen=True)
class PriorSearch(Attack):
    """argmax_z p_y(G(z)) over one pool of N latents shared by all identities.

    Args:
        images: Reconstructions per identity: the pool's best, second best, ...
        pool: N.
    """

    images: int = 5
    pool: int = 2000

    def __post_init__(self) -> None:
        if not 1 <= self.images <= self.pool:
            raise UserError(f"prior_search: 1 <= images <= pool, got {self.images} and {self.pool}")

    def cost(self, prior: Prior, public: int = 0) -> Cost:
        """One query for each member of the pool, for all identities together."""
        return Cost(0, 0, self.pool)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: Workspace
    ) -> Reconstructions:
        """Score the pool, keep each identity's best."""
        pool = prior.sample(Noise(seed, torch.arange(self.pool, device=labels.device)).of("pool"))
        scores = pool_scores(oracle, prior, pool, mirror=False, work=work)
        z = pool[best_of_pool(scores, labels, self.images).flatten()]
        y = labels.repeat_interleave(self.images)
        return Reconstructions(render(prior, z, y, work), y, z, torch.zeros_like(y, dtype=torch.bool))
