"""Alignment: its noise, its batch, steadier gradients, the published configurations."""

from typing import Any

import pytest
import torch
from attacking import PPA_SHORT, erased, run
from torch import Tensor, nn
from worlds import World

from mibench.attacks.align import Align
from mibench.attacks.eot import EOT
from mibench.attacks.parts.views import Viewed
from mibench.core import Access, Cost, Oracle, augment
from mibench.core.losses import nll, on_logits
from mibench.plugins import registry
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


def test_the_published_configurations() -> None:
    """FaceScrub_ResNet18_SG1024.yaml; gmi_stylegan-celeba_vgg16-celeba.yaml with prior_loss 0 and gmi_optimize_taa's 30
    copies; ked_dcgan-celeba_vgg16-celeba.yaml: 100 steps under PAA, 200 under TAA."""

    def built(name: str, preset: str) -> Any:
        return registry.configure("attacks", name, preset).plugin

    prior = World(4).prior
    for preset in ("paper", "paper_taa"):
        assert built("ppa+align", preset).cost(prior) == Cost(100 * 70 * 50, 100 * 70 * 50, 2 * 2000)
    for name in ("gmi+align", "lomma_gmi+align"):
        noisy, turned = built(name, "paper"), built(name, "paper_taa")
        assert (noisy.mode, noisy.copies, noisy.sigma) == ("noise", 50, 0.003)
        assert (turned.mode, turned.copies, turned.scale, turned.degrees) == ("transform", 30, (0.9, 1.0), 3.0)
        for one in (noisy.wrapped, turned.wrapped):
            assert (one.realism, one.steps, one.images, one.lr, one.reference_batch) == (0.0, 100, 100, 0.02, 20)
        assert built(name, "quick").wrapped.realism == 0.0
    noisy, turned = built("lomma_kedmi+align", "paper"), built("lomma_kedmi+align", "paper_taa")
    assert (noisy.sigma, noisy.wrapped.steps, turned.mode, turned.wrapped.steps) == (0.05, 100, "transform", 200)
    assert noisy.wrapped.realism == turned.wrapped.realism == 1.0
