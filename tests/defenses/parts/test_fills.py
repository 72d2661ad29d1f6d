"""Laws of all erasers: what they erase on average, what they leave, what stands there instead."""

from typing import Any

import pytest
import torch
from defending import cutout_share, masks, mean_is
from scipy import stats

from mibench.defenses.cutmix import CutMix
from mibench.defenses.cutout import Cutout
from mibench.defenses.gridmask import GridMask
from mibench.defenses.has import HideAndSeek
from mibench.defenses.parts.fills import FILLS
from mibench.defenses.pixel_drop import PixelDrop
from mibench.defenses.re import RandomErasing
from mibench.plugins import registry
from mibench.runtime.rng import Noise

ERASERS = [PixelDrop(), Cutout(), GridMask(), HideAndSeek()]


STRONG = [PixelDrop(0.7), Cutout(0.9), GridMask(0.6, (0.1, 0.3)), HideAndSeek(0.5, 3)]


NAMES = ["pixel_drop", "cutout", "gridmask", "has", "cutmix", "mixup"]


def formula(defense: Any) -> float:
    """The mean erased share that the docstring states."""
    if isinstance(defense, Cutout):
        return cutout_share(defense.side)
    return defense.p if isinstance(defense, HideAndSeek) else defense.q


@pytest.mark.parametrize("defense", ERASERS + STRONG, ids=str)
def test_the_mean_erased_share_is_the_formulas(defense: Any) -> None:
    # Cutout's square is rounded to whole pixels: half a pixel of 32 changes (s - s^2/4)^2 by less than 1 / 32.
    mean_is(masks(defense).mean((1, 2)), formula(defense), 1 / 32 if isinstance(defense, Cutout) else 0.0)


def test_all_defaults_erase_as_much_as_random_erasing() -> None:
    re = RandomErasing()
    matched = (re.a_min + re.a_e) / 2
    assert matched == 0.25
    for defense in ERASERS:
        assert formula(defense) == pytest.approx(matched, abs=5e-4)
    assert CutMix().p * (1 / 2 - 1 / 5 + 1 / 48) == pytest.approx(matched, abs=5e-4)


@pytest.mark.parametrize("defense", [GridMask(), GridMask(0.6, (0.1, 0.3)), PixelDrop(), HideAndSeek()], ids=str)
def test_every_pixel_is_erased_equally_often(defense: Any) -> None:
    share = formula(defense)
    assert (masks(defense).mean(0) - share).abs().max() < 5 * (share * (1 - share) / 4000) ** 0.5


@pytest.mark.parametrize("defense", ERASERS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_fills_stand_where_the_mask_is_and_nothing_else_changes(defense: Any, channels: int) -> None:
    x = torch.rand(6, channels, 16, 20, generator=torch.Generator().manual_seed(0)) * 0.2
    noise = Noise(3, torch.arange(6)).of(2)
    mask = defense.mask(noise, 16, 20)[:, None].expand_as(x)
    assert mask.any() and not mask.all()
    for fill in ("mean", "zero", "released", "noise"):
        out = type(defense)(fill=fill).transform(x, noise)
        assert torch.equal(out[~mask], x[~mask]) and out.dtype == x.dtype
        if fill == "noise":
            assert stats.kstest(out[mask].numpy(), "uniform").pvalue > 1e-3
        else:
            colour = torch.tensor(FILLS[fill])
            colour = colour if channels == 3 else colour.mean()[None]
            assert torch.equal(out[mask], colour[None, :, None, None].expand_as(x)[mask])


@pytest.mark.parametrize("defense", STRONG, ids=str)
def test_a_batch_equals_its_images_one_by_one(defense: Any) -> None:
    x, noise = torch.rand(8, 3, 15, 15), Noise(4, torch.arange(8)).of(2)
    single = [defense.transform(x[i : i + 1], noise.rows(torch.tensor([i]))) for i in range(8)]
    assert torch.equal(defense.transform(x, noise), torch.cat(single))
    assert not torch.equal(defense.transform(x, noise), defense.transform(x, noise.of("later")))


@pytest.mark.parametrize(
    ("nothing", "all_of_it"),
    [(PixelDrop(0.0), PixelDrop(1.0)), (GridMask(0.0), GridMask(1.0)), (HideAndSeek(0.0), HideAndSeek(1.0))],
)
def test_the_ends_of_the_range(nothing: Any, all_of_it: Any) -> None:
    assert not masks(nothing, 200).any() and masks(all_of_it, 200).all()
    assert not masks(Cutout(0.0), 200).any()


def test_they_are_controls_and_their_grids_grow() -> None:
    for name in NAMES:
        card = registry.card("defenses", name)
        assert card["role"] == "control" and card["grid"] == sorted(card["grid"])
        assert registry.defaults("defenses", name)[card["strength"]] in card["grid"]
