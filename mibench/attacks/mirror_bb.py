"""MIRROR, black box: a genetic algorithm in P-space from the best of a shared pool.

References:
    | MIRROR: Model Inversion for Deep Learning Network with High Fidelity (An et al., NDSS 2022)
    | https://github.com/njuaplusplus/mirror
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.attacks.parts.evolution import Fitness, best_distinct, log_odds
from mibench.attacks.parts.pspace import PSpace, searched
from mibench.attacks.parts.search import best_of_pool, piecewise, pool_scores, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["MirrorBlackBox", "first_parents_share", "parents"]

CARD = {
    "summary": "a genetic algorithm over a pool's best latents, kept in a box where the prior's latents are likely",
    "title": "MIRROR: Model Inversion for Deep Learning Network with High Fidelity",
    "authors": "An, Tao, Xu, Liu, Shen, Yao, Xu and Zhang",
    "venue": "NDSS",
    "year": 2022,
    "link": "https://github.com/njuaplusplus/mirror",
    "access": "black_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [99_900, 0, 100_000],
    "requires": ["unconditional"],
    "toy": {"short": {"pool": 60, "population": 8, "generations": 4}},
}

PRESETS = {
    "paper": {},
    "quick": {"images": 2, "pool": 2000, "population": 21, "generations": 8},
    "legacy": {"crossover": "legacy", "mutation_noise": "shared"},
}


def first_parents_share(
    first: Float[Tensor, "*n"], second: Float[Tensor, "*n"], rule: Literal["fixed", "legacy"]
) -> Float[Tensor, "*n"]:
    """With which probability a gene is the first parent's, from both parents' log p_y.

    fixed: p_1 / (p_1 + p_2). legacy: log p_1 / (log p_1 + log p_2), which favours the worse parent, because logs of
    probabilities are negative: .9 against .1 gives .044.
    """
    if rule == "fixed":
        return torch.sigmoid(first - second)
    return first / (first + second)


def parents(log_p: Float[Tensor, "k n"], u: Float[Tensor, "k m"]) -> Int64[Tensor, "k m"]:
    """Members drawn with probability p_y over the population's sum, one for each uniform number."""
    cumulative = torch.softmax(log_p, dim=1).cumsum(dim=1)
    return torch.searchsorted(cumulative, u.contiguous(), right=True).clamp(max=log_p.shape[1] - 1)


@dataclass(frozen=True)
class MirrorBlackBox(Attack):
    """Population of the pool's best -> crossover and mutation in P-space, clipped to the box; the elite survives.

    Args:
        images: Reconstructions per identity: the last population's best distinct members.
        pool: Latents scored once for all identities; they also give the box.
        population: Members.
        generations: How often the population is replaced.
        elite: Members that survive unchanged; their scores are known and cost nothing.
        mutation: Probability that a coordinate mutates.
        scale: A mutation adds scale * U(-std, std), std the box's half-width.
        crossover: `first_parents_share`'s rule; legacy is the authors' code, which favours the worse parent.
        mutation_noise: individual, or shared: all children of a generation add the same numbers (the authors' code).
        space: The prior's latent space; auto is w where the prior has one.

    Source: the authors' code (commit 2730a14).
    Differs: the authors stop at p_y >= .95, here every identity runs to the end, so that the cost is exact; members are
    compared by log-odds, which orders as p_y does and does not saturate; crossover and mutation_noise, see above.
    """

    images: int = 1
    pool: int = 100_000
    population: int = 1000
    generations: int = 100
    elite: int = 1
    mutation: float = 0.1
    scale: float = 0.1
    crossover: Literal["fixed", "legacy"] = "fixed"
    mutation_noise: Literal["individual", "shared"] = "individual"
    space: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= max(self.images, self.elite + 1) <= self.population <= self.pool or self.elite < 0:
            raise UserError(
                "mirror_bb: 1 <= images <= population <= pool and 0 <= elite < population, got images "
                f"{self.images}, elite {self.elite}, population {self.population} and pool {self.pool}"
            )
        if not 0 <= self.mutation <= 1:
            raise UserError(f"mirror_bb: mutation is a probability in [0, 1], got {self.mutation}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """All children of every generation, and the pool once for everybody."""
        return Cost((self.population - self.elite) * self.generations, 0, self.pool)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Score the pool, evolve, keep the best."""
        prior = searched(prior, self.space)
        pool = prior.sample(Noise(seed, torch.arange(self.pool, device=labels.device)).of("pool"))
        box = PSpace.around(pool, prior.slope)
        scores = work.once("mirror_bb-pool", oracle, lambda: pool_scores(oracle, prior, pool, False, work))
        members = best_of_pool(scores, labels, self.population)
        generations = oracle.affordable(self.generations, self.population - self.elite)

        def part(rows: slice) -> Tensor:
            y, own = labels[rows], members[rows]
            fitness = log_odds(scores[own.flatten()], y.repeat_interleave(self.population)).reshape(own.shape)
            noise = Noise(seed, y).of("mirror_bb")
            w, after = self._evolve(oracle, prior, box, pool[own], fitness, y, generations, noise, work)
            z, values = best_distinct(w, after, self.images)
            failed = values <= fitness.sort(dim=1, descending=True).values[:, : self.images]
            return torch.cat([z, failed[..., None].to(z.dtype)], dim=2).flatten(0, 1)

        few = replace(work, batch=max(1, work.batch // self.population))
        found = piecewise("mirror_bb", len(labels), oracle, few, part)
        z, y = found[:, :-1].contiguous(), labels.repeat_interleave(self.images)
        return Reconstructions(render(prior, z, y, work), y, z, found[:, -1] > 0)

    def _evolve(
        self,
        oracle: Oracle,
        prior: Prior,
        box: PSpace,
        w: Tensor,
        fitness: Tensor,
        y: Int64[Tensor, " k"],
        generations: int,
        noise: Noise,
        work: AttackContext,
    ) -> tuple[Float[Tensor, "k n d"], Float[Tensor, "k n"]]:
        """The last population's latents and their scores, from the first's."""
        count, width = self.population - self.elite, w.shape[2]
        ask = Fitness(oracle, prior, y, count, work)
        held = Held(w=w, fitness=fitness)
        for generation in work.steps(generations, held):
            w, fitness = held.w, held.fitness
            drawn = noise.of("generation", generation)
            log_p = F.logsigmoid(fitness)  # p_y = sigmoid(log-odds)
            chosen = parents(log_p, drawn.of("parents").uniform(2 * count))
            genes = w.gather(1, chosen[..., None].expand(-1, -1, width))
            one, other = log_p.gather(1, chosen).split(count, dim=1)
            share = first_parents_share(one, other, self.crossover)
            first = drawn.of("crossover").uniform(count, width) < share[..., None]
            p = box.features_at(torch.where(first, genes[:, :count], genes[:, count:]))
            if self.mutation_noise == "shared":
                added = drawn.of("mutation").uniform(1, width)
            else:
                added = drawn.of("mutation").uniform(count, width)
            mutates = drawn.of("mutates").uniform(count, width) < self.mutation
            children = box.leave(box.clip(p + mutates * self.scale * (2 * added - 1) * box.std))
            elite = fitness.topk(self.elite, dim=1).indices
            kept = w.gather(1, elite[..., None].expand(-1, -1, width))
            held.fitness = torch.cat([fitness.gather(1, elite), ask(children)], dim=1)
            held.w = torch.cat([kept, children], dim=1)
        return held.w, held.fitness
