"""Alignment: its noise, its batch, steadier gradients."""

import pytest
import torch
from attacking import PPA_SHORT, erased, run
from torch import Tensor, nn
from worlds import World

from mibench.attacks.align import Align
from mibench.attacks.eot import EOT
from mibench.attacks.parts.views import Viewed
from mibench.core import Access, Oracle, augment
from mibench.core.losses import nll, on_logits
from mibench.runtime.rng import Noise


def test_the_searchs_batch_is_divided_by_the_copies() -> None:
    world, sizes = World(5), []
    world.target.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    features = world.target.features

    def watched(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return features(x)

    world.target.features = watched  # type: ignore[method-assign]
    run(Align(EOT(PPA_SHORT, copies=2), copies=3, select=True), world, work=erased(world, 24))
    assert max(sizes) == 24


def test_noisy_copies_have_the_given_spread_and_are_not_clamped() -> None:
    x = torch.full((3, 3, 40, 40), 0.98)
    noise = Noise(0, torch.arange(3))
    moved = Align(sigma=0.1).view(x, noise) - x
    assert abs(float(moved.mean())) < 0.005 and float(moved.std()) == pytest.approx(0.1, rel=0.05)
    assert float(moved.max()) > 0.3 and not torch.equal(moved[0], moved[1])
    torch.testing.assert_close(
        Align(mode="transform", scale=(0.5, 0.6), degrees=7.0, mirror=False).view(x, noise),
        augment.random_resized_crop(x, noise, (0.5, 0.6), (0.9, 1.1), 0.0, 7.0),
    )


def test_averaged_gradients_are_steadier() -> None:
    """On a target that ripples quickly, the mean gradient over noisy copies points where the plain slope does."""
    torch.manual_seed(0)
    slope = torch.randn(2, 4)

    class Rippled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def features(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return torch.cat([flat, torch.sin(300 * flat) * self.scale / 30], dim=1)

        def head(self, features: Tensor) -> Tensor:
            return features[:, :4] @ slope.T + features[:, 4:].sum(dim=1, keepdim=True)

    oracle, y = Oracle(Rippled(), Access.WHITE_BOX, 2), torch.zeros(50, dtype=torch.int64)
    x = torch.rand(50, 1, 2, 2, requires_grad=True)
    error = []
    for copies in (1, 64):
        viewed = Viewed(oracle, 0, Align(sigma=0.06).view, copies, select=False)
        (gradient,) = torch.autograd.grad(viewed.loss(x, y, on_logits(nll), Noise(0, torch.arange(50))).sum(), x)
        error.append(float((gradient.flatten(1) + slope[0]).square().mean().sqrt()))
    assert error[0] > 5 and error[1] < error[0] / 6  # about sqrt(64)


def test_an_alignment_that_does_not_select_stays_within_a_budget() -> None:
    """It plans as if all were differentiated, so that PPA's selection gets less than it could, but never too much."""
    world, attack = World(4), Align(PPA_SHORT, copies=3)
    cost = attack.cost(world.prior)
    for budget in (cost.shared_queries + cost.queries, cost.shared_queries + cost.queries // 2):
        oracle = world.oracle(budget=budget)
        run(attack, world, oracle=oracle)
        assert budget * 0.6 < int(oracle.queries.max()) + oracle.shared_queries <= budget
