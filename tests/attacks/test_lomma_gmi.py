"""LOMMA on GMI against the formulas, and that students help."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from attacking import LOMMA_SHORT, LOMMA_VARIANTS, identity_loss, students_of
from torch import Tensor
from worlds import World, workspace

from mibench.attacks.lomma_gmi import LommaGMI
from mibench.attacks.parts.lomma import Lomma
from mibench.plugins import registry
from mibench.runtime.rng import Noise


@pytest.mark.parametrize(("logit_loss", "augmented"), LOMMA_VARIANTS)
@pytest.mark.parametrize("preg", ["mean", "sample"])
def test_gmi_takes_the_published_steps(logit_loss: bool, augmented: bool, preg: Any) -> None:
    """z' = clamp(z - .9 v + 1.9 v'), v' = .9 v - lr g, g of (-D + 100 (mean_i NLL_i + PREG)) / 60."""
    world, y, labels = World(4), torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2])
    attack = LommaGMI(images=2, steps=0, logit_loss=logit_loss, augmented=augmented, preg=preg, **LOMMA_SHORT)
    students = students_of(attack, world)
    assert len(students) == (2 if augmented else 0)
    noise = Noise(5, torch.tensor([0, 1, 4, 5])).of("gmi")

    def found(steps: int) -> Tensor:
        return replace(attack, steps=steps)(world.oracle(), world.prior, labels, 5, workspace(world)).latents

    z, v = found(0), torch.zeros(4, world.prior.latent_dim)
    torch.testing.assert_close(z, noise.of("start").normal(world.prior.latent_dim))
    for step in range(3):
        point = z.clone().requires_grad_()
        x = world.prior.decode(point)
        loss = -world.prior.critic(x) + 100 * identity_loss(attack, world, students, x, y, noise.of("step", step))
        g = torch.autograd.grad(loss.sum(), point)[0] / 60
        old, v = v, 0.9 * v - 0.02 * g
        z = (z - 0.9 * old + 1.9 * v).clamp(-1.0, 1.0)
        torch.testing.assert_close(found(step + 1), z, rtol=0, atol=1e-5)


def test_students_help_with_an_identity_that_the_target_hides() -> None:
    """The target's gradient is zeroed for images (its answers stay): the students alone lead to the identity."""
    world = World(10)
    alone = {"preg_weight": 0.0, "realism": 0.0, "students": ["cnn"]}
    known = registry.configure("attacks", "lomma_gmi", "quick", alone).plugin
    hidden = World(10)
    features = hidden.target.features
    hidden.target.features = lambda x: features(x).detach() + 0 * x.sum()  # type: ignore[method-assign]
    labels = torch.arange(10)

    def accuracy(attack: Lomma) -> float:
        found = attack(hidden.oracle(), world.prior, labels, 0, workspace(world))
        return float((world.truth(found.images) == found.labels).float().mean())

    assert accuracy(known) >= 0.8
    assert accuracy(replace(known, augmented=False)) <= 0.3
