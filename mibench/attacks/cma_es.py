"""CMA-ES: a general-purpose black-box optimiser on the prior's latents, as a baseline for attacks made for the purpose.

References:
    | Completely Derandomized Self-Adaptation in Evolution Strategies (Hansen and Ostermeier, 2001)
    | https://doi.org/10.1162/106365601750190398
    | A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity (Ros and Hansen, 2008), the diagonal
    | https://doi.org/10.1007/978-3-540-87700-4_30
    | pycma (Hansen, Akimoto and Baudis, BSD-3-Clause), https://github.com/CMA-ES/pycma
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.evolution import Fitness, best_distinct
from mibench.attacks.parts.pspace import searched
from mibench.attacks.parts.search import piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of

__all__ = ["CmaEs"]

CARD = {
    "summary": "generic-optimiser baseline: CMA-ES on the latent by target confidence",
    "title": "Completely Derandomized Self-Adaptation in Evolution Strategies",
    "authors": "Hansen and Ostermeier",
    "venue": "Evolutionary Computation",
    "year": 2001,
    "link": "https://doi.org/10.1162/106365601750190398",
    "access": "black_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [5000, 0, 0],
    "requires": ["gradients"],
    "toy": {"short": {"population": 8, "generations": 4}},
}

PRESETS = {"quick": {"images": 2, "population": 16, "generations": 10}}

SPREAD = 1000
"""Prior samples that tell the latent's mean and spread; they ask the target nothing."""


@dataclass(frozen=True)
class CmaEs(Attack):
    """max_u log p_y(G(mean + std * u)) by CMA-ES from u = 0; mean and std are the prior's own, per coordinate.

    Args:
        images: Reconstructions per identity: the best images seen.
        population: Latents asked for in each generation.
        generations: How many.
        sigma: The first step size, in the prior's standard deviations.
        diagonal: Learn a diagonal covariance, which needs fewer queries and less time in hundreds of dimensions.
        space: The prior's latent space; auto is w where the prior has one.

    Not a published attack. Every other setting is pycma's default; its stopping rules are ignored, so that the cost is
    exact.
    """

    images: int = 1
    population: int = 20
    generations: int = 250
    sigma: float = 0.5
    diagonal: bool = True
    space: str = "auto"

    def __post_init__(self) -> None:
        if self.population < 4 or not 1 <= self.images <= self.population or self.sigma <= 0:
            raise UserError(
                "cma_es: population must be at least 4, images from 1 to population and sigma above 0, got "
                f"{self.population}, {self.images} and {self.sigma}"
            )

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One query for each member of each generation."""
        return Cost(self.population * self.generations, 0, 0)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Ask and tell, all identities of a piece in one query."""
        self.require(prior)
        prior = searched(prior, self.space)
        sample = prior.sample(Noise(seed, torch.arange(SPREAD, device=labels.device)).of("cma_es"))
        mean, std = sample.mean(dim=0), sample.std(dim=0)
        generations = oracle.affordable(self.generations, self.population)

        def part(rows: slice) -> Tensor:
            y = labels[rows]
            searches = [self._search(prior.latent_dim, seed, label) for label in y.tolist()]
            ask = Fitness(oracle, prior, y, self.population, work)
            best = mean.expand(len(y), self.images, -1)
            value = torch.full((len(y), self.images), float("-inf"), device=y.device)
            # pycma's searches cannot be kept as tensors; told the same losses they are what they were.
            held, told = Held(best=best, value=value, first=value, losses=[]), 0
            for generation in work.steps(generations, held):
                while told < generation:
                    tell(searches, [search.ask() for search in searches], held.losses[told])
                    told += 1
                asked = [search.ask() for search in searches]
                u = torch.from_numpy(np.stack([np.stack(one) for one in asked])).to(mean)
                z = mean + std * u
                fitness = ask(z)
                held.losses = [*held.losses, -fitness]
                tell(searches, asked, held.losses[told])
                told += 1
                both = torch.cat([held.best, z], 1), torch.cat([held.value, fitness], 1)
                held.best, held.value = best_distinct(*both, self.images)
                held.first = held.value if generation == 0 else held.first
            failed = held.value <= held.first
            return torch.cat([held.best, failed[..., None].to(mean.dtype)], dim=2).flatten(0, 1)

        few = replace(work, batch=max(1, work.batch // self.population))
        found = piecewise("cma_es", len(labels), oracle, few, part)
        z, y = found[:, :-1].contiguous(), labels.repeat_interleave(self.images)
        return Reconstructions(render(prior, z, y, work), y, z, found[:, -1] > 0)

    def _search(self, width: int, seed: int, label: int) -> Any:
        """One identity's optimiser, with random numbers of its own: pycma's default is numpy's global generator."""
        import cma

        draws = np.random.Generator(np.random.PCG64(seed_of(seed, "cma_es", label)))
        normal: Callable[..., np.ndarray] = lambda *shape: draws.standard_normal(shape)  # noqa: E731
        options = {
            "CMA_diagonal": self.diagonal,
            "popsize": self.population,
            "randn": normal,
            "seed": np.nan,
            "verb_disp": 0,
            "verb_log": 0,
            "verbose": -9,
        }
        return cma.CMAEvolutionStrategy(np.zeros(width), self.sigma, options)


def tell(searches: list[Any], asked: list[list[np.ndarray]], losses: Float[Tensor, "k n"]) -> None:
    """Each identity's optimiser is told how good what it asked for was."""
    for search, own, values in zip(searches, asked, losses.double().cpu().numpy(), strict=True):
        search.tell(own, list(values))
