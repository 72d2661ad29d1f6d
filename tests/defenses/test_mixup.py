"""Mixup, and what it shares with CutMix: targets, partners, rows of other defenses."""

import math
from typing import Any

import pytest
import torch
from defending import assert_refused, mixing_step, numbered
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from mibench.core import Batch
from mibench.defenses.cutmix import CutMix
from mibench.defenses.mixup import Mixup, symmetric_beta
from mibench.runtime.rng import Noise


def brightness_says(x: Tensor, t: Tensor) -> None:
    """The law of mixup: flat images stay flat, and their brightness is what the target expects."""
    torch.testing.assert_close(x, x[:, :1, :1, :1].expand_as(x))
    torch.testing.assert_close(x[:, 0, 0, 0], t @ torch.arange(1.0, t.shape[1] + 1))
    torch.testing.assert_close(t.sum(1), torch.ones(len(t)))


def test_mixup_targets_are_the_shares_of_light_as_in_torchvision() -> None:
    before = numbered(40)
    mixed = Mixup(0.7).batch(before, mixing_step(40))
    brightness_says(mixed.x, mixed.t)
    assert (mixed.t > 0).sum(1).max() == 2 and mixed.t.diagonal().std() > 0.1, "each image has a share of its own"
    torch.manual_seed(0)
    brightness_says(*v2.MixUp(alpha=0.7, num_classes=40)(before.x, torch.arange(40)))


@pytest.mark.parametrize("defense", [CutMix(1.0), Mixup(1.0)], ids=str)
def test_partners_are_a_permutation_and_anew_in_each_epoch(defense: Any) -> None:
    n, found = 60, []
    for epoch in range(2):
        t = defense.batch(numbered(n), mixing_step(n, epoch)).t.clone()
        t.fill_diagonal_(0)
        partner = t.argmax(1)[t.sum(1) > 0]
        assert len(partner.unique()) == len(partner) > n - 10
        found.append(t)
    assert not torch.equal(*found)
    again = defense.batch(numbered(n), mixing_step(n, 1)).t.clone()
    assert torch.equal(again.fill_diagonal_(0), found[1])


@pytest.mark.parametrize("defense", [CutMix(1.0), Mixup(1.0)], ids=str)
def test_rows_of_other_defenses_are_left_alone_and_targets_mix_linearly(defense: Any) -> None:
    own = numbered(10)
    more = Batch(torch.cat([own.x, own.x[:4] * 9]), torch.cat([own.t, own.t[:4]]), torch.rand(14), 10)
    mixed, alone = defense.batch(more, mixing_step(10)), defense.batch(own, mixing_step(10))
    assert torch.equal(mixed.x[10:], more.x[10:]) and torch.equal(mixed.t[10:], more.t[10:])
    assert torch.equal(mixed.x[:10], alone.x) and torch.equal(mixed.w, more.w) and mixed.clean == 10
    smooth = 0.9 * own.t + 0.1 / 10  # smoothing before or after mixing is the same
    after = 0.9 * alone.t + 0.1 / 10
    torch.testing.assert_close(defense.batch(Batch(own.x, smooth, own.w, 10), mixing_step(10)).t, after)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_the_symmetric_beta_distribution(alpha: float) -> None:
    drawn = symmetric_beta(alpha, Noise(9, torch.arange(20_000)))
    assert stats.kstest(drawn.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert math.isclose(float(drawn.var()), 1 / (4 * (2 * alpha + 1)), rel_tol=0.05)


def test_a_tiny_alpha_stays_in_the_unit_interval() -> None:
    drawn = symmetric_beta(1e-4, Noise(9, torch.arange(5000)))
    assert ((drawn >= 0) & (drawn <= 1)).all() and ((drawn < 0.01) | (drawn > 0.99)).double().mean() > 0.99


@pytest.mark.parametrize("defense", [CutMix(), Mixup()], ids=str)
def test_a_batch_of_one_image_meets_itself(defense: Any) -> None:
    one = defense.batch(numbered(1), mixing_step(1))
    torch.testing.assert_close(one.x, numbered(1).x)
    torch.testing.assert_close(one.t, numbered(1).t)


def test_nothing_to_mix_returns_the_batch_itself() -> None:
    before = numbered(4)
    assert CutMix(0.0).batch(before, mixing_step(4)) is before and Mixup(0.0).batch(before, mixing_step(4)) is before


@pytest.mark.parametrize("settings", [{"alpha": -0.1}, {"alpha": float("nan")}, {"alpha": float("inf")}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("mixup", settings)
