"""The floor without optimisation: the prior's best samples by the target's confidence."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.search import best_of_pool, keys, piecewise, pool_scores, render
from mibench.core import Attack, AttackContext, BudgetExhausted, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

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
    "cost": [0, 0, 2000],
    "role": "floor",
    "toy": {"short": {"pool": 60}},
}

PRESETS = {"quick": {"images": 2}}


@dataclass(frozen=True)
class PriorSearch(Attack):
    """argmax_z p_y(G(z)) over one pool of N latents shared by all identities; with a conditional prior, G(z, y) over a
    pool of each identity's own.

    Args:
        images: Reconstructions per identity: the pool's best, second best, ...
        pool: N.
        own_pool: N where the prior is conditional: nobody else has a use for images drawn for one identity.
    """

    images: int = 5
    pool: int = 2000
    own_pool: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.images <= min(self.pool, self.own_pool):
            raise UserError(
                f"prior_search: 1 <= images <= pool and own_pool, got {self.images}, {self.pool} and {self.own_pool}"
            )

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One query for each member of the pool, for all identities together unless the prior is conditional."""
        return Cost(self.own_pool, 0, 0) if prior.conditional else Cost(0, 0, self.pool)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Score the pool, keep each identity's best."""
        if prior.conditional:
            return self._own_pools(oracle, prior, labels, seed, work)
        pool = prior.sample(Noise(seed, torch.arange(self.pool, device=labels.device)).of("pool"))
        scores = pool_scores(oracle, prior, pool, mirror=False, work=work)
        z = pool[best_of_pool(scores, labels, self.images).flatten()]
        y = labels.repeat_interleave(self.images)
        return Reconstructions(render(prior, z, y, work), y, z, torch.zeros_like(y, dtype=torch.bool))

    def _own_pools(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        count = oracle.affordable(self.own_pool, 1)
        if count < self.images:
            raise BudgetExhausted
        y, key = keys(labels, self.own_pool)
        z = prior.sample(Noise(seed, key).of("pool"))
        # The first `count` of each identity's pool, so that a smaller budget sees a part of the larger one's.
        seen = (torch.arange(len(y), device=y.device) % self.own_pool) < count
        z, y = z[seen], y[seen]

        def part(rows: slice) -> Tensor:
            return oracle.probs(prior.decode(z[rows], y[rows]), y[rows]).gather(1, y[rows, None])

        scores = piecewise("prior_search", len(y), oracle, work, part).reshape(-1, count)
        best = scores.topk(self.images, dim=1).indices
        kept = (best + torch.arange(len(best), device=y.device)[:, None] * count).flatten()
        return Reconstructions(
            render(prior, z[kept], y[kept], work), y[kept], z[kept], torch.zeros_like(kept, dtype=torch.bool)
        )
