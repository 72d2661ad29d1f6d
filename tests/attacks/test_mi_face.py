"""MI-FACE by its formula, from its published start, on the prior of raw pixels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import SHAPE, World, workspace

from mibench.attacks.mi_face import MIFace, doubt
from mibench.core import AttackContext, Reconstructions
from mibench.plugins import capabilities
from mibench.priors.pixels import PixelPrior
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

PRIOR = PixelPrior(SHAPE)


def inverted(world: World, attack: MIFace, work: AttackContext | None = None, seed: int = 0) -> Reconstructions:
    return attack(world.oracle(), PRIOR, torch.arange(world.classes), seed, work or AttackContext())


def cost_of(world: World, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return 1 - world.target(x.reshape(-1, *SHAPE)).double().softmax(dim=1).gather(1, y[:, None])[:, 0]


def test_doubt_is_one_minus_the_probability() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [20.0, 0.0, 0.0], [-30.0, 0.0, 1.0]], requires_grad=True)
    y = torch.zeros(3, dtype=torch.int64)
    p = logits.double().softmax(dim=1)[:, 0]
    torch.testing.assert_close(doubt(logits, y).double(), 1 - p, rtol=1e-4, atol=1e-7)
    slope = torch.autograd.grad(doubt(logits, y).sum(), logits)[0]
    torch.testing.assert_close(slope[:, 0].double(), -p * (1 - p), rtol=1e-4, atol=1e-8)
    assert float(slope[2, 0] / -p[2].detach()) == pytest.approx(1.0, rel=1e-4)  # p = 2.6e-14: not rounded away


@pytest.mark.parametrize("lr", [0.1, 20.0])
def test_steps_by_their_formula(lr: float) -> None:
    """x <- clamp(x - lr grad(1 - p_y), 0, 1) from black, the least cost kept: CCS 2015, algorithm 1."""
    world = World(5)
    y = torch.arange(5)
    x = torch.zeros(5, PRIOR.latent_dim)
    best, least = x, cost_of(world, x, y)
    for steps in range(4):
        found = inverted(world, MIFace(steps=steps, lr=lr))
        torch.testing.assert_close(found.latents, best, rtol=0, atol=1e-5)
        assert torch.equal(found.images, found.latents.reshape(-1, *SHAPE))
        leaf = x.clone().requires_grad_()
        p = world.target(leaf.reshape(-1, *SHAPE)).softmax(dim=1).gather(1, y[:, None])
        x = (x - lr * torch.autograd.grad((1 - p).sum(), leaf)[0]).clamp(0, 1)
        cost = cost_of(world, x, y)
        best = torch.where((cost < least)[:, None], x, best)
        least = torch.minimum(cost, least)


def test_the_start_is_black_or_the_public_mean_and_jitter_tells_restarts_apart() -> None:
    world = World(4)
    mean = (world.public().images.double() / 255).mean(dim=0).flatten().float()
    still = MIFace(steps=0)
    assert inverted(world, still).latents.abs().max() == 0
    torch.testing.assert_close(
        inverted(world, replace(still, start="mean"), workspace(world)).latents, mean.expand(4, -1)
    )
    shaken = inverted(world, replace(still, start="mean", images=40, jitter=0.02), workspace(world)).latents
    away = shaken - mean
    assert float(away.std()) == pytest.approx(0.02, rel=0.05) and len(shaken.unique(dim=0)) == 160
    assert float(inverted(world, replace(still, jitter=0.5)).latents.min()) == 0  # clamped
    with pytest.raises(UserError, match="mi_face learns from public images"):
        inverted(world, replace(still, start="mean"))


def test_steps_that_only_make_it_worse_return_the_start_and_say_so() -> None:
    world = World(5)
    start = inverted(world, MIFace(steps=0, jitter=0.3), seed=2)
    assert bool(start.failed.all())
    nothing = inverted(world, MIFace(steps=3, lr=0.0, jitter=0.3), seed=2)
    assert bool(nothing.failed.all()) and torch.equal(nothing.latents, start.latents)
    found = inverted(world, MIFace(steps=30, lr=10.0, jitter=0.3), seed=2)
    y = torch.arange(5)
    assert not bool(found.failed.any())
    assert bool((cost_of(world, found.latents, y) < cost_of(world, start.latents, y)).all())


def test_pixels_are_an_image_and_know_nothing() -> None:
    z = PRIOR.sample(Noise(3, torch.arange(2000)))
    assert z.shape == (2000, 192) and float(z.min()) >= 0 and float(z.max()) < 1
    assert float(z.mean()) == pytest.approx(0.5, abs=0.005) and float(z.var()) == pytest.approx(1 / 12, rel=0.02)
    assert torch.equal(PRIOR.decode(z).flatten(1), z)
    leaf = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 2.0, 0.25]]).repeat(1, 32).requires_grad_()
    assert torch.equal(PRIOR.decode(leaf).unique(), torch.tensor([0.0, 0.25, 0.5, 1.0]))
    slope = torch.autograd.grad(PRIOR.decode(leaf).sum(), leaf)[0]
    assert slope[0, :6].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]  # also at the bounds, where searches start


def test_latents_and_restarts_without_jitter_are_refused() -> None:
    with pytest.raises(UserError, match=r"mi_face needs a prior whose latents are the pixels.*: pixels"):
        capabilities.require(MIFace(), World(3).prior)
    capabilities.require(MIFace(), PRIOR)
    wrong: list[tuple[dict[str, Any], str]] = [({"images": 0}, "images"), ({"images": 2}, "jitter")]
    for setting, word in wrong:
        with pytest.raises(UserError, match=f"mi_face: .*{word}"):
            MIFace(**setting)
