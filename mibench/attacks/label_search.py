"""The floor of label-only attacks: as many labels, spent on fresh samples of the prior."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.search import chunks, gathered, piecewise, render
from mibench.core import (
    Attack,
    AttackContext,
    BudgetExhausted,
    Capabilities,
    Cost,
    Oracle,
    Prior,
    Reconstructions,
    augment,
)
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["LabelSearch", "hits_first"]

CARD = {
    "summary": "floor: prior samples with the right label that keep it under small changes, from labels alone",
    "title": "Floor",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "access": "label_only",
    "prior": "dcgan",
    "role": "floor",
    "cost": [480, 0, 1520],
    "toy": {"short": {"queries": 40, "candidates": 4}},
}

PRESETS = {"quick": {"images": 2}}


def hits_first(rank: Int64[Tensor, " n"], count: int) -> Int64[Tensor, " count"]:
    """Places of the first `count` by rank, of equal ranks in order."""
    return rank.argsort(stable=True)[:count]


@dataclass(frozen=True)
class LabelSearch(Attack):
    """argmax_z [T(G(z)) = y] + sum_v [T(v(G(z))) = y] over samples z of the prior, from the target's labels T alone.

    Three quarters of the queries ask for labels of samples, one pool for all identities; a prior that is told whom to
    draw draws all of the target's classes in turn, and a sample counts for the one it was drawn for. The last quarter
    shows the first `candidates` of them with the label y through random views v (see `augment.view`): the nearer to the
    class's boundary, the more often a small change crosses it. Equals stay in the order in which they were drawn.

    Args:
        images: Reconstructions per identity: those with the most votes. One that no answer named y has failed.
        queries: Labels asked for each identity, those of the shared pool included.
        candidates: Samples per identity that are looked at again.
        mirror: Mirror half of the views (faces yes, digits no).
    """

    images: int = 5
    queries: int = 2000
    candidates: int = 32
    mirror: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.images <= min(self.candidates, self.queries):
            raise UserError(
                "label_search: images must be at least 1 and at most candidates and queries, got "
                f"{self.images}, {self.candidates} and {self.queries}"
            )

    def split(self, queries: int) -> tuple[int, int, int]:
        """How many samples are drawn, how many of them looked at again, and how often each."""
        candidates = max(self.images, min(self.candidates, queries // 4))
        looks = queries // 4 // candidates
        return queries - looks * candidates, candidates, looks

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """All `queries`, those for the pool once for everybody."""
        draws, candidates, looks = self.split(self.queries)
        return Cost(candidates * looks, 0, draws)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Draw, ask, look again, keep what keeps its label."""
        queries = oracle.affordable(self.queries, 1)
        if queries < self.images:
            raise BudgetExhausted
        draws, candidates, looks = self.split(queries)
        sample = torch.arange(draws, device=labels.device)
        pool, whom = prior.sample(Noise(seed, sample).of("pool")), sample % oracle.num_classes

        def ask() -> Tensor:
            parts = chunks(draws, work.batch)
            return gathered(parts, lambda rows: oracle.labels(prior.decode(pool[rows], whom[rows]), None), work)

        said = work.once("label_search-pool", oracle, ask)
        # One identity at a time: all ranks at once would be as many numbers as identities times labels.
        ranks = ((said != label).long() + 2 * ((whom != label) & prior.conditional) for label in labels)
        place = torch.stack([hits_first(rank, candidates) for rank in ranks])
        votes = (said[place] == labels[:, None]) & ((whom[place] == labels[:, None]) | (not prior.conditional))
        z, y = pool[place.flatten()], labels.repeat_interleave(candidates)
        key = ((labels[:, None] << 32) + place).flatten()  # the same sample looks different to every identity

        def kept(rows: slice) -> Tensor:
            x, noise = prior.decode(z[rows], y[rows]), Noise(seed, key[rows]).of("label_search")
            held = Held(kept=torch.zeros(len(x), 1, device=x.device))
            for look in work.steps(looks, held):
                view = augment.view(x, noise.of("look", look), self.mirror, jitter=0.5)
                held.kept[:, 0] += oracle.labels(view, y[rows]) == y[rows]
            return torch.as_tensor(held.kept)

        votes = votes + piecewise("label_search", len(y), oracle, work, kept).reshape(place.shape)
        best = votes.argsort(dim=1, descending=True, stable=True)[:, : self.images]
        rows = (best + torch.arange(len(labels), device=y.device)[:, None] * candidates).flatten()
        failed = votes.gather(1, best).flatten() == 0
        return Reconstructions(render(prior, z[rows], y[rows], work), y[rows], z[rows], failed)
