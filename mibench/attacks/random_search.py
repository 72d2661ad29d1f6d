"""The floor of black-box attacks: as many queries, spent on fresh samples of the prior."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.queries import query_many
from mibench.attacks.parts.search import keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["RandomSearch"]

CARD = {
    "summary": "floor: the best of as many fresh prior samples as a black-box attack has queries",
    "title": "Floor",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "access": "black_box",
    "prior": "dcgan",
    "role": "floor",
    "cost": [1000, 0, 0],
    "toy": {"short": {"queries": 40}},
}

PRESETS = {"quick": {"images": 2}}


@dataclass(frozen=True)
class RandomSearch(Attack):
    """argmax_z p_y(G(z, y)) over N latents that each identity draws for itself.

    Args:
        images: Reconstructions per identity: the best, second best, ...
        queries: N; a larger N keeps the samples of a smaller one and adds to them.
    """

    images: int = 5
    queries: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.images <= self.queries:
            raise UserError(f"random_search: 1 <= images <= queries, got {self.images} and {self.queries}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One query per sample."""
        return Cost(self.queries, 0, 0)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Draw, ask, keep the best; where the budget allows fewer than `images` samples, the rest were never asked."""
        queries = oracle.affordable(self.queries, 1)
        y, key = keys(labels, self.images)
        unscored = prior.sample(Noise(seed, key).of("random-search-unscored")).unflatten(0, (len(labels), -1))

        def part(rows: slice) -> Tensor:
            return self._search(oracle, prior, labels[rows], queries, unscored[rows], seed, work).flatten(1)

        found = piecewise("random_search", len(labels), oracle, work, part).reshape(len(y), -1)
        z, score = found[:, :-1].contiguous(), found[:, -1]
        return Reconstructions(render(prior, z, y, work), y, z, score < 0)

    def _search(
        self,
        oracle: Oracle,
        prior: Prior,
        y: Int64[Tensor, " k"],
        queries: int,
        best: Float[Tensor, "k i d"],
        seed: int,
        work: AttackContext,
    ) -> Float[Tensor, "k i e"]:
        """The best latents of each identity, and behind each its score."""
        found = torch.cat([best, torch.full_like(best[:, :, :1], -1.0)], dim=2)
        at_once = max(1, work.batch // len(y))
        held, starts = Held(found=found), range(0, queries, at_once)
        for step in work.steps(len(starts), held):
            start, found = starts[step], held.found
            sample = torch.arange(start, min(start + at_once, queries), device=y.device)
            # The key of a sample depends on the identity and its number alone, not on how many there will be.
            key = ((y[None, :] << 32) + sample[:, None]).flatten()
            z = prior.sample(Noise(seed, key).of("random_search")).unflatten(0, (len(sample), len(y)))
            p = query_many(oracle.probs, prior, z, y, work)
            own = p.gather(2, y[None, :, None].expand(len(sample), -1, 1))
            found = torch.cat([found, torch.cat([z, own], dim=2).transpose(0, 1)], dim=1)
            place = found[:, :, -1].topk(self.images, dim=1).indices[:, :, None]
            held.found = found.gather(1, place.expand(-1, -1, found.shape[2]))
        return held.found
