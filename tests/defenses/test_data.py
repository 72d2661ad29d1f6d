"""Laws of the data-centric controls: what they erase on average, what they leave; targets follow the pixels."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torchvision.transforms import v2
from worlds import small_net

from mibench.core import Batch, Step
from mibench.defenses.cutmix import CutMix
from mibench.defenses.cutout import Cutout
from mibench.defenses.gridmask import GridMask
from mibench.defenses.has import HideAndSeek
from mibench.defenses.mixup import Mixup, symmetric_beta
from mibench.defenses.parts.boxes import hanging
from mibench.defenses.parts.fills import FILLS
from mibench.defenses.pixel_drop import PixelDrop
from mibench.defenses.re import RandomErasing
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

ERASERS = [PixelDrop(), Cutout(), GridMask(), HideAndSeek()]
STRONG = [PixelDrop(0.7), Cutout(0.9), GridMask(0.6, (0.1, 0.3)), HideAndSeek(0.5, 3)]
NAMES = ["pixel_drop", "cutout", "gridmask", "has", "cutmix", "mixup"]


def cutout_share(side: float) -> float:
    return (side - side**2 / 4) ** 2


def formula(defense: Any) -> float:
    """The mean erased share that the docstring states."""
    if isinstance(defense, Cutout):
        return cutout_share(defense.side)
    return defense.p if isinstance(defense, HideAndSeek) else defense.q


def masks(defense: Any, n: int = 4000, height: int = 32, width: int = 32) -> Tensor:
    return defense.mask(Noise(7, torch.arange(n)), height, width).double()


def mean_of(shares: Tensor, expected: float, rounding: float = 0.0) -> None:
    """A mean of independent images lies within 4 of its standard errors, plus what whole pixels round off."""
    error = float(shares.std() / len(shares) ** 0.5)
    assert abs(float(shares.mean()) - expected) < 4 * error + rounding + 1e-12


@pytest.mark.parametrize("defense", ERASERS + STRONG, ids=str)
def test_the_mean_erased_share_is_the_formulas(defense: Any) -> None:
    # Cutout's square is rounded to whole pixels: half a pixel of 32 changes (s - s^2/4)^2 by less than 1 / 32.
    mean_of(masks(defense).mean((1, 2)), formula(defense), 1 / 32 if isinstance(defense, Cutout) else 0.0)


def test_all_defaults_erase_as_much_as_random_erasing() -> None:
    re = RandomErasing()
    matched = (re.a_min + re.a_e) / 2
    assert matched == 0.25
    for defense in ERASERS:
        assert formula(defense) == pytest.approx(matched, abs=5e-4)
    assert CutMix().p * (1 / 2 - 1 / 5 + 1 / 48) == pytest.approx(matched, abs=5e-4)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 8, 15, 16])
def test_hanging_boxes_are_what_counting_over_all_centres_says(size: int) -> None:
    """Of 16 pixels a side of s loses (s / 2)^2 over the 16 centres if even, (s^2 - 1) / 4 if odd."""
    box = hanging(Noise(1, torch.arange(8000)), torch.full((8000, 2), size), 16, 16)
    rows, columns = box.any(2), box.any(1)
    lost = size**2 / 4 if size % 2 == 0 else (size**2 - 1) / 4
    mean_of(rows.sum(1).double(), size - lost / 16)
    mean_of(columns.sum(1).double(), size - lost / 16)
    assert torch.equal(box, rows[:, :, None] & columns[:, None, :]), "a product of rows and columns"
    assert ((rows.int().diff(dim=1) == 1).sum(1) + rows[:, 0] <= 1).all(), "in one piece"
    cut = rows.sum(1) < size
    assert (rows[cut, 0] | rows[cut, -1]).all() and int(rows.sum(1).max()) == size, "whole unless it meets an edge"


def test_a_cutout_at_224_pixels_is_the_continuous_formula() -> None:
    for side in (0.5, 0.586):
        mean_of(masks(Cutout(side), 300, 224, 224).mean((1, 2)), cutout_share(side), 1 / 224)
    assert registry.configure("defenses", "cutout", "paper").plugin.side * 32 == 16


def test_dropped_pixels_are_independent_coins() -> None:
    mask = masks(PixelDrop(0.3), 3000, 8, 8).flatten(1)
    correlation = torch.corrcoef(mask.T) - torch.eye(64)
    assert correlation.abs().max() < 5 / 3000**0.5
    mean_of((mask.sum(1) - 64 * 0.3).square(), 64 * 0.3 * 0.7)  # the variance of a binomial


@pytest.mark.parametrize("defense", [GridMask(), GridMask(0.6, (0.1, 0.3)), PixelDrop(), HideAndSeek()], ids=str)
def test_every_pixel_is_erased_equally_often(defense: Any) -> None:
    share = formula(defense)
    assert (masks(defense).mean(0) - share).abs().max() < 5 * (share * (1 - share) / 4000) ** 0.5


def test_a_grid_is_periodic() -> None:
    """A period of 8 pixels of 32, q = 1/4: in every row and column that meets squares, 4 on and 4 off."""
    mask = masks(GridMask(0.25, (0.25, 0.25)), 50).bool()
    assert torch.equal(mask[:, 8:], mask[:, :-8]) and torch.equal(mask[:, :, 8:], mask[:, :, :-8])
    assert (mask.any(2).sum(1) == 16).all() and (mask.any(1).sum(1) == 16).all()
    assert torch.equal(mask, mask.any(2)[:, :, None] & mask.any(1)[:, None, :])
    assert len({tuple(one.flatten().tolist()) for one in mask}) > 20  # the offset is each image's own
    runs = (masks(GridMask(), 500).any(2).double().diff(dim=1) != 0).sum(1)
    assert runs.min() >= 2 and len(runs.unique()) > 2  # other periods, other numbers of edges


def test_cells_are_hidden_whole_and_independently() -> None:
    mask = masks(HideAndSeek(0.25, 4), 3000)
    cells = mask.reshape(3000, 4, 8, 4, 8).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(cells.min(3).values, cells.max(3).values)
    assert (torch.corrcoef(cells[..., 0].flatten(1).T) - torch.eye(16)).abs().max() < 5 / 3000**0.5
    odd = masks(HideAndSeek(0.5, 3), 200, 10, 7)  # 10 = 4 + 3 + 3 rows, 7 = 3 + 2 + 2 columns
    starts = [torch.tensor([0, 4, 7]), torch.tensor([0, 3, 5])]
    sizes = [torch.tensor([4, 3, 3]), torch.tensor([3, 2, 2])]
    small = odd[:, starts[0]][:, :, starts[1]]
    assert torch.equal(small.repeat_interleave(sizes[0], 1).repeat_interleave(sizes[1], 2), odd)


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


# --- mixing ---------------------------------------------------------------------------------------------------------


def step(count: int, *purpose: object) -> Step:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    noise = Noise(5, torch.arange(count) + 100).of(*purpose)
    return Step(model, nn.Module(), optimizer, noise, 0, 1, resolve("cpu", "fp32"))


def flat(count: int, side: int = 16) -> Batch:
    """Image i is i + 1 everywhere and class i: who stands where can be read off the pixels."""
    x = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 3, side, side).clone()
    return Batch(x, torch.eye(count), torch.ones(count), count)


def pixels_say(x: Tensor, t: Tensor) -> None:
    """The law of CutMix: a target is the share of pixels that each image has."""
    shares = torch.stack([(x == owner).float().mean((1, 2, 3)) for owner in range(1, t.shape[1] + 1)], dim=1)
    torch.testing.assert_close(t, shares, atol=1e-5, rtol=0)
    torch.testing.assert_close(t.sum(1), torch.ones(len(t)))


def brightness_says(x: Tensor, t: Tensor) -> None:
    """The law of mixup: flat images stay flat, and their brightness is what the target expects."""
    torch.testing.assert_close(x, x[:, :1, :1, :1].expand_as(x))
    torch.testing.assert_close(x[:, 0, 0, 0], t @ torch.arange(1.0, t.shape[1] + 1))
    torch.testing.assert_close(t.sum(1), torch.ones(len(t)))


def test_cutmix_targets_are_the_pixels_kept_as_in_torchvision() -> None:
    before = flat(40)
    for p in (0.5, 1.0):
        mixed = CutMix(p).batch(before, step(40, p))
        pixels_say(mixed.x, mixed.t)
        assert (mixed.t > 0).sum(1).max() == 2 and torch.equal(mixed.w, before.w) and mixed.clean == 40
    torch.manual_seed(0)
    pixels_say(*v2.CutMix(num_classes=40)(before.x, torch.arange(40)))
    pixels_say(before.x, before.t)  # its own input is left alone


def test_mixup_targets_are_the_shares_of_light_as_in_torchvision() -> None:
    before = flat(40)
    mixed = Mixup(0.7).batch(before, step(40))
    brightness_says(mixed.x, mixed.t)
    assert (mixed.t > 0).sum(1).max() == 2 and mixed.t.diagonal().std() > 0.1, "each image has a share of its own"
    torch.manual_seed(0)
    brightness_says(*v2.MixUp(alpha=0.7, num_classes=40)(before.x, torch.arange(40)))


def test_cutmix_keeps_areas_like_torchvisions() -> None:
    side, n = 96, 1500
    kept = torch.cat([CutMix(1.0).batch(flat(50, side), step(50, part)).t.diagonal() for part in range(n // 50)])
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
    shares = torch.cat([1 - CutMix(p).batch(flat(n), step(n, part)).t.diagonal() for part in range(parts)])
    mean_of(shares.double(), p * (1 / 2 - 1 / 5 + 1 / 48) * (1 - 1 / n), 1 / (16 * 4))


def test_p_is_how_many_images_cutmix_touches() -> None:
    n = 2000
    x = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 1, 32, 32)
    mixed = CutMix(0.3).batch(Batch(x, torch.eye(n), torch.ones(n), n), step(n))
    touched = int((mixed.t.diagonal() < 1).sum())
    # A box of less than half a pixel is none: area below (.5 / 32)^2, and the image may meet itself.
    assert stats.binomtest(touched, n, 0.3).pvalue > 1e-3


@pytest.mark.parametrize("defense", [CutMix(1.0), Mixup(1.0)], ids=str)
def test_partners_are_a_permutation_and_anew_in_each_epoch(defense: Any) -> None:
    n, found = 60, []
    for epoch in range(2):
        t = defense.batch(flat(n), step(n, epoch)).t.clone()
        t.fill_diagonal_(0)
        partner = t.argmax(1)[t.sum(1) > 0]
        assert len(partner.unique()) == len(partner) > n - 10
        found.append(t)
    assert not torch.equal(*found)
    again = defense.batch(flat(n), step(n, 1)).t.clone()
    assert torch.equal(again.fill_diagonal_(0), found[1])


@pytest.mark.parametrize("defense", [CutMix(1.0), Mixup(1.0)], ids=str)
def test_rows_of_other_defenses_are_left_alone_and_targets_mix_linearly(defense: Any) -> None:
    own = flat(10)
    more = Batch(torch.cat([own.x, own.x[:4] * 9]), torch.cat([own.t, own.t[:4]]), torch.rand(14), 10)
    mixed, alone = defense.batch(more, step(10)), defense.batch(own, step(10))
    assert torch.equal(mixed.x[10:], more.x[10:]) and torch.equal(mixed.t[10:], more.t[10:])
    assert torch.equal(mixed.x[:10], alone.x) and torch.equal(mixed.w, more.w) and mixed.clean == 10
    smooth = 0.9 * own.t + 0.1 / 10  # smoothing before or after mixing is the same
    after = 0.9 * alone.t + 0.1 / 10
    torch.testing.assert_close(defense.batch(Batch(own.x, smooth, own.w, 10), step(10)).t, after)


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
    one = defense.batch(flat(1), step(1))
    torch.testing.assert_close(one.x, flat(1).x)
    torch.testing.assert_close(one.t, flat(1).t)


def test_nothing_to_mix_returns_the_batch_itself() -> None:
    before = flat(4)
    assert CutMix(0.0).batch(before, step(4)) is before and Mixup(0.0).batch(before, step(4)) is before


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pixel_drop", {"q": 1.1}),
        ("pixel_drop", {"q": -0.1}),
        ("pixel_drop", {"q": NAN}),
        ("cutout", {"side": 1.5}),
        ("cutout", {"side": -0.5}),
        ("cutout", {"side": NAN}),
        ("gridmask", {"q": 2.0}),
        ("gridmask", {"q": NAN}),
        ("gridmask", {"period": (0.0, 0.5)}),
        ("gridmask", {"period": (0.5, 0.2)}),
        ("gridmask", {"period": (NAN, 1.0)}),
        ("has", {"p": 1.2}),
        ("has", {"p": NAN}),
        ("has", {"cells": 0}),
        ("cutmix", {"p": 1.2}),
        ("cutmix", {"p": -1.0}),
        ("cutmix", {"p": NAN}),
        ("mixup", {"alpha": -0.1}),
        ("mixup", {"alpha": NAN}),
        ("mixup", {"alpha": math.inf}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{name}: ") as caught:
        registry.load("defenses", name)(**settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        registry.configure("defenses", name, settings=settings)


def test_they_are_controls_and_their_grids_grow() -> None:
    for name in NAMES:
        card = registry.card("defenses", name)
        assert card["role"] == "control" and card["grid"] == sorted(card["grid"])
        assert registry.defaults("defenses", name)[card["strength"]] in card["grid"]
