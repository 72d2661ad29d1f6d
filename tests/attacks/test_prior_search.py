"""The floor that searches a pool, and its own pool under a conditional prior."""

import itertools
from typing import Any

import pytest
import torch
from attacking import assert_refused
from torch import Tensor
from worlds import ToldPrior, World, attack_on, quick

from mibench.core import Access, AttackContext, BudgetExhausted, Cost, Oracle, Reconstructions
from mibench.runtime.rng import Noise


def test_the_floor_of_a_conditional_prior_searches_each_identitys_own_images() -> None:
    world, labels = World(6), torch.tensor([4, 1])
    prior = ToldPrior(world.prior)
    floor = quick("prior_search", images=3, own_pool=40)
    assert floor.cost(prior) == Cost(40, 0, 0)

    def search(some: Tensor, budget: int | None = None, batch: int = 256) -> tuple[Reconstructions, Oracle]:
        oracle = world.oracle(Access.BLACK_BOX, budget)
        return floor(oracle, prior, some, 0, AttackContext(batch)), oracle

    found, oracle = search(labels)
    assert oracle.queries.tolist() == [0, 40, 0, 0, 40, 0] and oracle.shared_queries == 0
    for place, label in enumerate(labels):
        pool = prior.sample(Noise(0, label * 40 + torch.arange(40)).of("pool"))
        with torch.no_grad():
            p = world.target(prior.decode(pool, label.repeat(40))).softmax(1)[:, label]
        own = slice(3 * place, 3 * place + 3)
        torch.testing.assert_close(found.latents[own], pool[p.topk(3).indices])
        assert torch.equal(search(label[None], batch=7)[0].latents, found.latents[own])
    fewer, oracle = search(labels, budget=10)
    assert int(oracle.queries.max()) == 10
    pool = prior.sample(Noise(0, 4 * 40 + torch.arange(10)).of("pool"))  # a part of the larger budget's pool
    assert (fewer.latents[:3, None] == pool).all(dim=2).any(dim=1).all()
    with pytest.raises(BudgetExhausted):
        search(labels, budget=2)


@pytest.mark.parametrize("settings", [{"images": 3000}, {"images": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("prior_search", settings)


def test_it_returns_the_best_of_its_pool_best_first() -> None:
    world = World(6)
    larger = [attack_on(world, "prior_search", images=2, pool=pool) for pool in (10, 100, 1000)]
    with torch.no_grad():
        confidence = [world.target(one.images).softmax(1).gather(1, one.labels[:, None])[:, 0] for one in larger]
    for few, many in itertools.pairwise(confidence):
        assert (many >= few - 1e-6).all()  # a pool holds every smaller one
    assert (confidence[2][0::2] >= confidence[2][1::2]).all()
