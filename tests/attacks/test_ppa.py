"""PPA: steps help, the selection, every objective."""

from typing import Any

import pytest
import torch
from attacking import ROUNDING, accuracy, assert_refused
from torch import Tensor
from worlds import World, attack_on, workspace

from mibench.attacks.parts.search import keys
from mibench.attacks.ppa import PPA
from mibench.core import Cost, Reconstructions, augment
from mibench.core.losses import poincare
from mibench.plugins import registry
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


def test_the_steps_are_the_authors_loop() -> None:
    """attacks/optimize.py: one unmirrored crop a step, the mean of Poincare's loss over a batch of 25, torch's Adam."""
    world, prior = World(6), World(6).prior
    y, key = keys(torch.arange(5), 5)
    noise = Noise(2, key).of("ppa")
    start = 0.3 * prior.sample(Noise(1, key).of("start"))
    found = PPA(mirror=True)._optimise(world.oracle(), prior, start, y, 20, noise, workspace(world))
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.005, weight_decay=0, betas=(0.1, 0.1))
    for step in range(20):
        x = augment.random_resized_crop(prior.decode(z), noise.of("step", step).of("view"), (0.9, 1.0))
        optimizer.zero_grad()
        poincare(world.target(x), y).mean().backward()
        optimizer.step()
    torch.testing.assert_close(found, z.detach(), rtol=0, atol=ROUNDING)
    assert float((found - start).abs().max()) > 0.05


@pytest.mark.parametrize(
    ("preset", "pool", "steps", "lr", "area"),
    [("paper", 2000, 50, 0.005, 0.9), ("paper_celeba", 5000, 70, 0.005, 0.9), ("paper_dogs", 2000, 100, 0.01, 0.75)],
)
def test_the_published_configurations(preset: str, pool: int, steps: int, lr: float, area: float) -> None:
    """FaceScrub_FFHQ.yaml, CelebA_FFHQ.yaml and Stanford_Dogs_AFHQ.yaml: 200 candidates, 50 kept by 100 views."""
    attack = registry.configure("attacks", "ppa", preset).plugin
    assert isinstance(attack, PPA)
    assert (attack.pool, attack.steps, attack.lr, attack.view_scale) == (pool, steps, lr, (area, 1.0))
    assert (attack.images, attack.candidates, attack.selection_views, attack.betas) == (50, 200, 100, (0.1, 0.1))
    assert attack.cost(World(4).prior) == Cost(200 * (steps + 100), 200 * steps, 2 * pool)


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
        {"reference_batch": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("ppa", settings)
