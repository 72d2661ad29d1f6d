"""CutMix: targets follow the pixels, as in torchvision."""

from typing import Any

import pytest
import torch
from defending import assert_refused, mean_is, mixing_step, numbered
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from mibench.core import Batch
from mibench.defenses.cutmix import CutMix


def pixels_say(x: Tensor, t: Tensor) -> None:
    """The law of CutMix: a target is the share of pixels that each image has."""
    shares = torch.stack([(x == owner).float().mean((1, 2, 3)) for owner in range(1, t.shape[1] + 1)], dim=1)
    torch.testing.assert_close(t, shares, atol=1e-5, rtol=0)
    torch.testing.assert_close(t.sum(1), torch.ones(len(t)))


def test_cutmix_targets_are_the_pixels_kept_as_in_torchvision() -> None:
    before = numbered(40)
    for p in (0.5, 1.0):
        mixed = CutMix(p).batch(before, mixing_step(40, p))
        pixels_say(mixed.x, mixed.t)
        assert (mixed.t > 0).sum(1).max() == 2 and torch.equal(mixed.w, before.w) and mixed.clean == 40
    torch.manual_seed(0)
    pixels_say(*v2.CutMix(num_classes=40)(before.x, torch.arange(40)))
    pixels_say(before.x, before.t)  # its own input is left alone


def test_cutmix_keeps_areas_like_torchvisions() -> None:
    side, n = 96, 1500
    kept = torch.cat(
        [CutMix(1.0).batch(numbered(50, side), mixing_step(50, part)).t.diagonal() for part in range(n // 50)]
    )
    torch.manual_seed(0)
    theirs = v2.CutMix(num_classes=2)
    drawn = [theirs.make_params([torch.zeros(2, 3, side, side)])["lam_adjusted"] for _ in range(n)]
    # Ours counts an image that met itself as kept whole; there is one of those in a permutation on average.
    kept = kept[kept < 1]
    others = [value for value in drawn if value < 1]
    assert stats.ks_2samp(kept.numpy(), others).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.4, 0.78, 1.0])
def test_the_mean_replaced_share_of_cutmix(p: float) -> None:
    """p (1/2 - 1/5 + 1/48), counted as pixels; a partner that is the image itself replaces nothing visible."""
    n, parts = 200, 20
    shares = torch.cat([1 - CutMix(p).batch(numbered(n), mixing_step(n, part)).t.diagonal() for part in range(parts)])
    mean_is(shares.double(), p * (1 / 2 - 1 / 5 + 1 / 48) * (1 - 1 / n), 1 / (16 * 4))


def test_p_is_how_many_images_cutmix_touches() -> None:
    n = 2000
    x = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 1, 32, 32)
    mixed = CutMix(0.3).batch(Batch(x, torch.eye(n), torch.ones(n), n), mixing_step(n))
    touched = int((mixed.t.diagonal() < 1).sum())
    # A box of less than half a pixel is none: area below (.5 / 32)^2, and the image may meet itself.
    assert stats.binomtest(touched, n, 0.3).pvalue > 1e-3


@pytest.mark.parametrize("settings", [{"p": 1.2}, {"p": -1.0}, {"p": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("cutmix", settings)
