"""The floor without a generator: the public image the target likes best."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.search import best_of_pool, pool_scores
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.runtime.errors import UserError

__all__ = ["PublicSearch"]

CARD = {
    "summary": "floor: the public image the target likes best, no inversion at all",
    "title": "Floor",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "access": "black_box",
    "prior": "public",
    "cost": [0, 0, None],
    "role": "floor",
    "requires": ["images"],
}

PRESETS = {"quick": {"images": 2}}


@dataclass(frozen=True)
class PublicSearch(Attack):
    """argmax_x p_y(x) over the attacker's public images; the latent is the image's place in the public split.

    Args:
        images: Public images per identity: the best, the second best, ...
    """

    images: int = 5

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UserError("public_search: images must be at least 1")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One query for each public image, for all identities together."""
        return Cost(0, 0, public)

    def _count(self, prior: Prior) -> int:
        return len(prior.get_buffer("public"))

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Score every public image, keep each identity's best."""
        places = torch.arange(self._count(prior), device=labels.device, dtype=torch.float32)[:, None]
        scores = pool_scores(oracle, prior, places, mirror=False, work=work)
        z = places[best_of_pool(scores, labels, self.images).flatten()]
        y = labels.repeat_interleave(self.images)
        return Reconstructions(prior.decode(z), y, z, torch.zeros_like(y, dtype=torch.bool))
