"""GMI takes the published steps."""

from typing import Any

import pytest
import torch
from attacking import assert_refused, world_of
from torch import Tensor
from torch.nn import functional as F

from mibench.attacks.gmi import GMI
from mibench.core import AttackContext


def test_gmi_takes_the_published_steps() -> None:
    """v' = .9 v - lr g, z' = clamp(z - .9 v + 1.9 v'), g of (-D + 100 CE) / 100."""
    world, y = world_of(), torch.tensor([0, 0, 1, 1, 2, 2])
    labels, oracle = torch.arange(3), world_of().oracle()

    def gmi(steps: int) -> Tensor:
        return GMI(images=2, steps=steps)(oracle, world.prior, labels, 5, AttackContext()).latents

    z, v = gmi(0), torch.zeros(6, world.prior.latent_dim)
    assert z.abs().max() > 1.0  # the start is not clamped
    for steps in (1, 2, 3):
        point = z.clone().requires_grad_()
        x = world.prior.decode(point)
        loss = -world.prior.critic(x).sum() + 100.0 * F.cross_entropy(world.target(x), y, reduction="sum")
        g = torch.autograd.grad(loss, point)[0] / 100
        old, v = v, 0.9 * v - 0.02 * g
        z = (z - 0.9 * old + 1.9 * v).clamp(-1.0, 1.0)
        torch.testing.assert_close(gmi(steps), z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"images": 0}, {"clip": 0.0}, {"reference_batch": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("gmi", settings)
