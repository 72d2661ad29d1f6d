"""Laws of random_search: brute force, monotone in queries, told the identity, honest when the budget ends."""

import itertools

import pytest
import torch
from torch import Tensor
from worlds import LinearPrior, World, attack_on, quick

from mibench.attacks.random_search import RandomSearch
from mibench.core import Access, AttackContext
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


def confidence(world: World, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return world.target(images).softmax(1).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("batch", [7, 1000])
def test_it_is_brute_force(batch: int) -> None:
    world, labels = World(6), torch.tensor([4, 1])
    found = RandomSearch(3, 50)(world.oracle(Access.BLACK_BOX), world.prior, labels, 9, AttackContext(batch))
    for place, label in enumerate(labels):
        z = world.prior.sample(Noise(9, label * 2**32 + torch.arange(50)).of("random_search"))
        with torch.no_grad():
            best = confidence(world, world.prior.decode(z), label.expand(50)).topk(3).indices
        assert torch.equal(found.latents[3 * place : 3 * place + 3], z[best])
    assert not found.failed.any()


def test_more_queries_never_find_less_and_keep_what_was_found() -> None:
    world = World(6)
    found = [attack_on(world, "random_search", images=2, queries=queries) for queries in (2, 10, 11, 100, 1000)]
    scores = [confidence(world, one.images, one.labels) for one in found]
    for few, many in itertools.pairwise(scores):
        assert (many >= few - 1e-6).all()
    assert (scores[-1] > scores[0]).all() and (scores[-1][0::2] >= scores[-1][1::2]).all()  # best first


def test_identities_do_not_share_samples() -> None:
    found = attack_on(World(6), "random_search", images=10, queries=10)  # all of them are kept
    assert len(found.latents.unique(dim=0)) == 60


class Told(LinearPrior):
    """Draws identity y whatever z is, but for a little of it."""

    conditional = True

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None and len(y) == len(z)
        shown = torch.nn.functional.one_hot(y, z.shape[1]).float()
        return super().decode(3 * shown + 0.01 * z)


def test_a_conditional_prior_is_told_the_identity() -> None:
    world = World(6)
    prior = Told(8, "wgan").eval()
    prior.load_state_dict(world.prior.state_dict())
    labels = torch.tensor([5, 0, 2])
    found = RandomSearch(2, 9)(world.oracle(Access.BLACK_BOX), prior, labels, 0, AttackContext(4))
    assert torch.equal(world.truth(found.images), labels.repeat_interleave(2))


def test_a_budget_below_the_images_leaves_some_unscored() -> None:
    world = World(6)
    oracle = world.oracle(Access.BLACK_BOX, budget=2)
    found = attack_on(world, "random_search", oracle=oracle, images=3, queries=50)
    assert oracle.queries.tolist() == [2] * 6
    assert found.failed.reshape(6, 3).tolist() == [[False, False, True]] * 6


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings in ({"images": 0}, {"images": 3, "queries": 2}):
        with pytest.raises(UserError, match="random_search: 1 <= images <= queries"):
            quick("random_search", **settings)
