"""KEDMI takes the published steps."""

import pytest
import torch
from attacking import assert_refused
from torch import Tensor
from torch.nn import functional as F
from worlds import World

from mibench.attacks.kedmi import KEDMI
from mibench.core import AttackContext
from mibench.runtime.rng import Noise


@pytest.mark.parametrize("clip", [False, True])
def test_kedmi_takes_the_published_steps(clip: bool) -> None:
    """Adam lr .02 on mu = 0, log_var = 1 for softplus(-lse D) + 100 CE, one draw a step; eps as in a batch of 60."""
    world = World(6, "kp1")
    labels = torch.arange(3)
    noise = Noise(5, labels).of("kedmi")
    shape = (3, world.prior.latent_dim)
    state = {"mu": [torch.zeros(shape), 0.0, 0.0], "log_var": [torch.ones(shape), 0.0, 0.0]}

    def expected_draws(images: int) -> Tensor:
        key = (labels * images)[:, None] + torch.arange(images)
        eps = Noise(5, key.flatten()).of("kedmi-final").normal(world.prior.latent_dim)
        wide = [state[name][0].repeat_interleave(images, 0) for name in ("mu", "log_var")]
        z = wide[0] + torch.exp(0.5 * wide[1]) * eps
        return z.clamp(-1, 1) if clip else z

    for step in range(4):
        attack = KEDMI(images=4, steps=step, clip_in_loop=clip)
        found = attack(world.oracle(), world.prior, labels, 5, AttackContext())
        torch.testing.assert_close(found.latents, expected_draws(4), rtol=0, atol=2e-4)
        mu, log_var = (state[name][0].clone().requires_grad_() for name in ("mu", "log_var"))
        z = mu + torch.exp(0.5 * log_var) * noise.of("step", step).normal(world.prior.latent_dim)
        x = world.prior.decode(z.clamp(-1, 1) if clip else z)
        kp1 = F.softplus(-world.prior.critic(x)).sum()
        loss = kp1 + 100.0 * F.cross_entropy(world.target(x), labels, reduction="sum")
        for name, g in zip(("mu", "log_var"), torch.autograd.grad(loss, (mu, log_var)), strict=True):
            value, m, v = state[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            correct = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 60e-8)
            state[name] = [value - 0.02 * correct, m, v]


def test_settings_that_make_no_sense_are_refused() -> None:
    assert_refused("kedmi", {"images": 0})
