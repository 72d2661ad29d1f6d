"""PPA: steps help, the selection, every objective."""

from typing import Any

import pytest
import torch
from attacking import accuracy, assert_refused
from torch import Tensor
from worlds import World, attack_on

from mibench.core import Reconstructions
from mibench.runtime.rng import Noise


def test_ppa_optimises_and_selects() -> None:
    """Steps help over the pool's best; with as many candidates as images nothing is selected; best first."""
    world = World(6)

    def confidence(found: Reconstructions) -> Tensor:
        with torch.no_grad():
            return world.target(found.images).log_softmax(1).gather(1, found.labels[:, None])[:, 0]

    none = attack_on(world, "ppa", pool=60, steps=0)
    some = attack_on(world, "ppa", pool=60, steps=60)
    assert (confidence(some) > confidence(none)).all() and confidence(some).mean() > 0.1 * confidence(none).mean()
    pool = world.prior.sample(Noise(0, torch.arange(60)).of("pool"))
    start = attack_on(world, "ppa", pool=60, steps=0, candidates=2, images=2).latents
    assert (start[:, None] == pool).all(dim=2).any(dim=1).all()  # candidates start at members of the pool


def test_every_objective_of_ppa_succeeds() -> None:
    world = World(6)
    for objective in ("poincare", "max_margin", "cross_entropy", "nll"):
        assert accuracy(world, attack_on(world, "ppa", objective=objective, pool=200, steps=40)) >= 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"images": 5},
        {"candidates": 3000},
        {"view_scale": (0.0, 1.0)},
        {"view_scale": (1.0, 0.9)},
        {"view_scale": (0.5, 1.1)},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9,)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("ppa", settings)
