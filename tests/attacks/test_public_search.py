"""The floor without a generator returns the best public images, best first."""

import pytest
import torch
from attacking import assert_refused
from worlds import World, attack_on, quick

from mibench.core import Access, AttackContext
from mibench.priors.public import PublicImages
from mibench.runtime.errors import UserError


def test_it_returns_the_best_of_the_public_images_best_first() -> None:
    world = World(6)
    public = world.public().images
    with torch.no_grad():
        scores = world.target(public.float() / 255).softmax(1)
    found = attack_on(world, "public_search", images=3)
    assert torch.equal(found.latents[:, 0].long().reshape(6, 3), scores.topk(3, dim=0).indices.T)
    torch.testing.assert_close(found.images, public[found.latents[:, 0].long()].float() / 255)


def test_a_pool_of_public_images_that_is_too_small_is_refused() -> None:
    world = World(4)
    prior = PublicImages(world.public(3).images)
    with pytest.raises(UserError, match="4 candidates are wanted from a pool of 3"):
        quick("public_search", images=4)(world.oracle(Access.BLACK_BOX), prior, torch.arange(4), 0, AttackContext())


def test_settings_that_make_no_sense_are_refused() -> None:
    assert_refused("public_search", {"images": 0})
