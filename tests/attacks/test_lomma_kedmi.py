"""LOMMA on KEDMI against the formulas."""

from dataclasses import replace

import pytest
import torch
from attacking import LOMMA_SHORT, LOMMA_VARIANTS, identity_loss, students_of
from torch.nn import functional as F
from worlds import World, workspace

from mibench.attacks.lomma_kedmi import LommaKEDMI
from mibench.runtime.rng import Noise


@pytest.mark.parametrize(("logit_loss", "augmented"), LOMMA_VARIANTS)
def test_kedmi_takes_the_published_steps(logit_loss: bool, augmented: bool) -> None:
    """Adam .02 on mu = 0, log_var = 1 for softplus(-lse D) + 100 (mean_i NLL_i + PREG), z clamped in and after."""
    world, labels = World(4, "kp1"), torch.tensor([0, 2])
    attack = LommaKEDMI(images=3, steps=0, logit_loss=logit_loss, augmented=augmented, **LOMMA_SHORT)
    students = students_of(attack, world)
    noise = Noise(5, labels).of("kedmi")
    shape = (2, world.prior.latent_dim)
    mu, log_var = torch.zeros(shape, requires_grad=True), torch.ones(shape, requires_grad=True)
    adam = torch.optim.Adam([mu, log_var], lr=0.02)
    final = Noise(5, (labels[:, None] * 3 + torch.arange(3)).flatten()).of("kedmi-final").normal(shape[1])
    for step in range(4):
        found = replace(attack, steps=step)(world.oracle(), world.prior, labels, 5, workspace(world))
        with torch.no_grad():
            wide = [value.repeat_interleave(3, 0) for value in (mu, log_var)]
            expected = (wide[0] + torch.exp(wide[1] / 2) * final).clamp(-1, 1)
        torch.testing.assert_close(found.latents, expected, rtol=0, atol=1e-4)
        drawn = noise.of("step", step)
        z = mu + torch.exp(log_var / 2) * drawn.normal(shape[1])
        x = world.prior.decode(z.clamp(-1, 1))
        loss = F.softplus(-world.prior.critic(x)) + 100 * identity_loss(attack, world, students, x, labels, drawn)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
