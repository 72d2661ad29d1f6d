"""cma_es: the library is asked and told as it wants to be, and nothing is drawn from numpy's global generator."""

import numpy as np
import pytest
import torch
from worlds import World, attack_on

from mibench.attacks.cma_es import CmaEs
from mibench.core import Access
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of


def test_it_is_what_the_library_does_on_one_identity() -> None:
    """The library's own loop with the same random numbers, in the prior's standard deviations."""
    import cma

    world, label = World(6), 3
    attack = CmaEs(population=8, generations=6)
    found = attack_on(world, "cma_es", torch.tensor([label]), population=8, generations=6, images=1)
    sample = world.prior.sample(Noise(0, torch.arange(1000)).of("cma_es"))
    draws = np.random.Generator(np.random.PCG64(seed_of(0, "cma_es", label)))
    options = {
        "CMA_diagonal": True,
        "popsize": 8,
        "randn": lambda *shape: draws.standard_normal(shape),
        "seed": np.nan,
        "verbose": -9,
    }
    search = cma.CMAEvolutionStrategy(np.zeros(world.prior.latent_dim), attack.sigma, options)
    best: tuple[float, torch.Tensor] | None = None
    for _ in range(6):
        asked = search.ask()
        z = sample.mean(0) + sample.std(0) * torch.from_numpy(np.stack(asked)).float()
        with torch.no_grad():
            logits = world.target(world.prior.decode(z)).double()
        others = logits.clone()
        others[:, label] = -torch.inf
        losses = torch.logsumexp(others, 1) - logits[:, label]
        search.tell(asked, losses.tolist())
        if best is None or float(losses.min()) < best[0]:
            best = float(losses.min()), z[losses.argmin()]
    assert best is not None
    torch.testing.assert_close(found.latents[0], best[1], rtol=0, atol=1e-5)
    assert not found.failed.any()


def test_numpys_global_generator_is_neither_read_nor_moved() -> None:
    world = World(6)
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    first = attack_on(world, "cma_es", generations=3)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    assert torch.equal(first.latents, attack_on(world, "cma_es", generations=3).latents)


def test_more_generations_do_better_and_a_full_covariance_works_too() -> None:
    world = World(6)

    def confidence(**settings: object) -> torch.Tensor:
        found = attack_on(world, "cma_es", images=1, **settings)
        with torch.no_grad():
            return world.target(found.images).log_softmax(1).gather(1, found.labels[:, None])[:, 0]

    few, many = confidence(generations=2), confidence(generations=20)
    assert (many >= few).all() and many.mean() > few.mean() + 0.1
    assert confidence(generations=20, diagonal=False).mean() > few.mean() + 0.1


def test_the_budget_counts_whole_generations() -> None:
    world = World(6)
    oracle = world.oracle(Access.BLACK_BOX, budget=35)
    attack_on(world, "cma_es", oracle=oracle, population=8, generations=10)
    assert oracle.queries.tolist() == [32] * 6
    nothing = attack_on(world, "cma_es", oracle=world.oracle(Access.BLACK_BOX, budget=7), population=8)
    assert nothing.failed.all() and (nothing.latents.abs() < 0.2).all()  # the prior's mean


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"population": 3}, {"images": 21}, {"images": 0}, {"sigma": 0.0}):
        with pytest.raises(UserError, match="cma_es: population must be at least 4"):
            CmaEs(**wrong)
