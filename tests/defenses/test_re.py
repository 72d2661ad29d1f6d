"""Laws of random erasing: torchvision's distribution, one rectangle per image, and nothing at zero strength."""

from dataclasses import dataclass, replace

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomErasing as TheirErasing
from worlds import colours, small_net

from mibench.core import Defense, augment, shown_by
from mibench.defenses.none import NoDefense
from mibench.defenses.re import FILLS, RandomErasing, Rectangles
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit

SIDE = 32
DRAWS = 6000
SETTINGS = [(0.1, 0.4, (1.0, 1.0)), (0.1, 0.8, (1.0, 1.0)), (0.02, 0.33, (0.3, 3.3)), (0.5, 1.0, (0.5, 2.0))]


def ours(defense: RandomErasing, n: int = DRAWS, side: int = SIDE) -> Rectangles:
    return defense.rectangles(Noise(11, torch.arange(n)), side, side)


def theirs(low: float, high: float, ratio: tuple[float, float], n: int = DRAWS) -> Rectangles:
    """torchvision's own sampler; an image it leaves whole counts as a rectangle of size 0."""
    torch.manual_seed(12)
    image = torch.zeros(3, SIDE, SIDE)
    drawn = [TheirErasing.get_params(image, (low, high), ratio, [0.0])[:4] for _ in range(n)]
    whole = torch.tensor([[0, 0, 0, 0] if h == SIDE and w == SIDE else [i, j, h, w] for i, j, h, w in drawn])
    return Rectangles(*whole.unbind(1))


def cover(box: Rectangles, side: int = SIDE) -> Tensor:
    """How often each pixel is erased, from the corners alone (no torus)."""
    place = torch.arange(side)
    rows = (place >= box.top[:, None]) & (place < (box.top + box.height)[:, None])
    columns = (place >= box.left[:, None]) & (place < (box.left + box.width)[:, None])
    return (rows[:, :, None] & columns[:, None, :]).double().mean(dim=0)


def same_counts(one: Tensor, other: Tensor) -> float:
    """Chi-square p-value that two samples of whole numbers have one distribution; rare values are pooled."""
    top = int(torch.cat([one, other]).max()) + 1
    table = torch.stack([torch.bincount(one, minlength=top), torch.bincount(other, minlength=top)])
    rare = table.sum(0) < 20
    table = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], dim=1)
    table = table[:, table.sum(0) > 0]
    return 1.0 if table.shape[1] < 2 else float(stats.chi2_contingency(table.numpy()).pvalue)


@pytest.mark.parametrize(("low", "high", "ratio"), SETTINGS)
def test_rectangles_are_distributed_like_torchvisions(low: float, high: float, ratio: tuple[float, float]) -> None:
    """Two samples of 6,000 each. Fixed seeds; p > 1e-4 leaves 14 tests a chance of .001 to fail by bad luck."""
    mine, other = ours(RandomErasing(a_e=high, a_min=low, ratio=ratio)), theirs(low, high, ratio)
    for name, a, b in zip(Rectangles._fields, mine, other, strict=True):
        assert same_counts(a, b) > 1e-4, name
    assert same_counts(mine.height * mine.width, other.height * other.width) > 1e-4
    assert same_counts((mine.height == 0).long(), (other.height == 0).long()) > 1e-4
    # The corner given the size, which the margins above do not see: its place within the room, as a share.
    shares = [((box.top + 0.5) / (SIDE - box.height + 1))[box.height > 0].double().numpy() for box in (mine, other)]
    assert stats.ks_2samp(*shares).pvalue > 1e-4
    # Each pixel's coverage: two binomials of 6,000 draws differ by less than 5 sigma at all 1,024 pixels.
    a, b = cover(mine), cover(other)
    middle = (a + b) / 2
    sigma = (middle * (1 - middle) * 2 / DRAWS).sqrt().clamp(min=1 / DRAWS)
    assert ((a - b).abs() < 5 * sigma).all()


@pytest.mark.parametrize(("a_e", "area", "centre", "quarter"), [(0.4, 0.25, 0.77, 0.27), (0.8, 0.45, 0.90, 0.62)])
def test_the_papers_statistics(a_e: float, area: float, centre: float, quarter: float) -> None:
    """Golden, from 40,000 draws of the authors' sampler at 224 pixels: area, how often centre and quarter points
    are erased."""
    n, side = 40_000, 224
    box = ours(RandomErasing(a_e=a_e), n, side)

    def erased(pixel: int) -> float:
        rows = (box.top <= pixel) & (pixel < box.top + box.height)
        columns = (box.left <= pixel) & (pixel < box.left + box.width)
        return float((rows & columns).double().mean())

    # .005 for what the reference rounds off, 4 sigma of 40,000 draws for ours.
    for measured, expected in (
        (float((box.height * box.width).double().mean()) / side**2, area),
        (erased(side // 2), centre),
        (erased(side // 4), quarter),
        (erased(0), 0.0),
    ):
        assert abs(measured - expected) < 0.005 + 4 * 0.5 / n**0.5


def test_the_mask_is_the_rectangle() -> None:
    for location in ("uniform", "centre", "image"):
        defense = RandomErasing(a_e=0.8, ratio=(0.5, 2.0), location=location)
        noise = Noise(11, torch.arange(500)).of(4)
        mask, box = defense.mask(noise, SIDE, SIDE), defense.rectangles(noise, SIDE, SIDE)
        torch.testing.assert_close(mask.double().mean(0), cover(box))


def test_images_that_are_not_square() -> None:
    defense = RandomErasing(a_e=0.4, a_min=0.3)
    box = defense.rectangles(Noise(0, torch.arange(3000)), 20, 60)
    erased = box.height > 0
    # A square with a side of at least 20 does not fit: sqrt(a 1200) rounds below 20, or the image stays whole.
    assert (box.height < 20).all() and torch.equal(box.height, box.width)
    assert (box.height[erased] == 19).all() and 0 < erased.double().mean() < 1
    assert (box.top + box.height <= 20).all() and (box.left + box.width <= 60).all()
    assert (box.left[erased].max() == 41) and (box.left[erased].min() == 0)


def test_torus_erases_every_pixel_equally_often() -> None:
    covered = RandomErasing(a_e=0.8, location="torus").mask(Noise(2, torch.arange(4000)), 16, 16).double()
    share = covered.mean()
    sigma = (share * (1 - share) / 4000) ** 0.5
    assert (covered.mean(dim=0) - share).abs().max() < 4.5 * sigma
    uniform = RandomErasing(a_e=0.8).mask(Noise(2, torch.arange(4000)), 16, 16)
    assert torch.equal(covered.sum(dim=(1, 2)), uniform.double().sum(dim=(1, 2)))  # the same areas, other places


def test_centre_is_fixed() -> None:
    mask = RandomErasing(a_e=0.4, a_min=0.4, location="centre").mask(Noise(2, torch.arange(50)), 21, 21)
    assert (mask == mask[0]).all()
    assert torch.equal(mask[0], mask[0].flip(0)) and torch.equal(mask[0], mask[0].flip(1)) and mask[0, 10, 10]


@pytest.mark.parametrize("location", ["border", "boundary", "image_border", "image_boundary"])
@pytest.mark.parametrize(("side", "square"), [(9, 3), (10, 4), (8, 3), (7, 2), (16, 7)])
def test_the_border_rules_allow_exactly_the_corners_they_should_each_equally_often(
    location: str, side: int, square: int
) -> None:
    a = square**2 / side**2
    box = ours(RandomErasing(a_e=a, a_min=a, location=location), 20_000, side)
    assert (box.height == square).all() and (box.width == square).all()
    places = [(i, j) for i in range(side - square + 1) for j in range(side - square + 1)]

    def covers_middle(corner: int) -> bool:
        return any(corner <= middle < corner + square for middle in ((side - 1) // 2, side // 2))

    def central(corner: int) -> bool:  # the released rule: wholly between a quarter and three quarters
        return corner >= side / 4 and corner + square <= 3 * side / 4

    refused = covers_middle if location.endswith("border") else central
    allowed = [place for place in places if not all(map(refused, place))]
    drawn = torch.bincount(box.top * side + box.left, minlength=side**2)
    assert set(drawn.nonzero()[:, 0].tolist()) == {i * side + j for i, j in allowed}
    assert stats.chisquare(drawn[drawn > 0].double().numpy()).pvalue > 1e-4


def test_border_never_hides_the_middle_and_the_released_boundary_hardly_changes_it() -> None:
    """Golden: the release's rejection moves the centre from .651 to .646, the quarter points hardly at all."""
    noise = Noise(11, torch.arange(20_000))

    def cover(location: str) -> Tensor:
        return RandomErasing(a_e=0.2, a_min=0.2, location=location).mask(noise, 224, 224).float().mean(0)

    uniform, boundary, border = cover("uniform"), cover("boundary"), cover("border")
    within = 4.5 * (0.25 / 20_000) ** 0.5
    assert abs(float(uniform[112, 112]) - 0.651) < within and abs(float(boundary[112, 112]) - 0.646) < within
    assert abs(float(boundary[56, 56]) - 0.212) < within
    assert (border[111:113, 111:113] == 0).all() and border.max() > 0.4
    assert float(border.mean()) == pytest.approx(float(uniform.mean())), "as much is erased"


def test_rectangles_that_leave_no_place_stay_away() -> None:
    """A square of half the side always covers a middle row and column: the image stays whole."""
    box = ours(RandomErasing(a_e=0.2499, a_min=0.2499, location="border"), 50, 8)
    assert (box.height == 0).all() and (box.top == 0).all()
    with pytest.raises(UserError, match=r"set a_e below .25"):
        RandomErasing(location="border")


def test_rectangles_before_the_augmentation_are_left_alone_after_it() -> None:
    x, noise = images(), Noise(4, torch.arange(8)).of(2)
    for location in ("uniform_before", "image", "image_boundary"):
        defense = RandomErasing(location=location)
        assert torch.equal(defense.transform(x, noise), x)
        assert torch.equal(defense.before(x, noise) != x, defense.mask(noise, SIDE, SIDE)[:, None].expand_as(x))
    for location in ("uniform", "torus", "centre", "image_after", "boundary"):
        defense = RandomErasing(location=location)
        assert torch.equal(defense.before(x, noise), x) and not torch.equal(defense.transform(x, noise), x)


def unseen(defense: RandomErasing, epochs: int = 15, n: int = 200, side: int = 32) -> float:
    """The share of an image's own pixels that no epoch shows, through the real augmentation.

    Channel 0 is marked where a pixel is erased before, channels 1 and 2 tell each pixel's own place.
    """
    place = (torch.arange(side) + 0.5) / side
    x = torch.stack([torch.zeros(side, side), place[:, None].expand(side, side), place.expand(side, side)])
    x = x.expand(n, 3, side, side)
    seen = torch.zeros(n, side * side)
    for epoch in range(epochs):
        noise = Noise(3, torch.arange(n)).of(epoch)
        erased = torch.full((n, 1, side, side), False)
        if defense.location in ("image", "uniform_before"):
            erased = defense.mask(noise.of("before"), side, side)[:, None]
        shown = torch.cat([erased.float(), x[:, 1:]], 1)
        crop = noise.of("augment")
        shown = augment.random_resized_crop(shown, crop, (0.85, 1.0), mirror=0.5)
        visible = shown[:, 0] < 0.5
        if defense.location not in ("image", "uniform_before"):
            visible = ~defense.mask(noise.of("transform"), side, side)
        index = (shown[:, 1] * side).long().clamp(max=side - 1) * side + (shown[:, 2] * side).long().clamp(max=side - 1)
        seen.scatter_add_(1, index.flatten(1), visible.flatten(1).float())
    return float((seen == 0).float().mean())


def test_a_fixed_mask_before_the_augmentation_really_withholds_its_pixels() -> None:
    """The mean erased area is .25. Fixed in the network's input (as `image` was), crops and mirrors show most of it."""
    before, after = unseen(RandomErasing(location="image")), unseen(RandomErasing(location="image_after"))
    assert 0.21 < before < 0.26 and after < 0.14, (before, after)
    assert unseen(RandomErasing(location="uniform_before")) < 0.01


def test_entire_leaves_out_images_and_touches_no_pixel() -> None:
    """The released rate: half of the batches. At the defaults as much is left out as rectangles hide (.25)."""
    x, noise = images(), Noise(4, torch.arange(8))
    half = registry.configure("defenses", "re", "entire").plugin
    assert half.exposure() == 0.5 and RandomErasing(location="entire").exposure() == 0.75
    assert RandomErasing(location="entire", p=0.5).exposure() == 0.875 and RandomErasing().exposure() == 1.0
    assert torch.equal(half.before(x, noise), x) and torch.equal(half.transform(x, noise), x)
    recipe = Training(epochs=2, batch=5, lr=0.01)
    log: list[int] = []

    @dataclass(frozen=True)
    class Count(Defense):
        def before(self, x: Tensor, noise: Noise) -> Tensor:
            log.append(len(x))
            return x

    fit(small_net(), colours(30), 3, recipe, resolve("cpu", "fp32"), 5, Silent(), "toy", [half, Count()])
    assert log == [5] * 6, "3 of 6 batches, twice"


def test_the_released_arms_have_presets() -> None:
    arms = {name: registry.configure("defenses", "re", name).plugin for name in ("fixed", "fixed_boundary")}
    assert arms["fixed"] == RandomErasing(0.2, 0.2, location="image")
    assert arms["fixed_boundary"] == RandomErasing(0.2, 0.2, location="image_boundary")
    random = registry.configure("defenses", "re", "random_boundary").plugin
    assert random == RandomErasing(0.2, 0.2, fill="released", location="boundary")


def test_the_defaults_have_the_settings_they_had() -> None:
    """A run's id hashes these: more of them would make every target of the paper's defense another run."""
    assert registry.defaults("defenses", "re") == {
        "a_e": 0.4,
        "a_min": 0.1,
        "p": 1.0,
        "ratio": (1.0, 1.0),
        "fill": "mean",
        "location": "uniform",
    }


def test_image_policy_hides_the_same_pixels_in_every_epoch() -> None:
    epochs = [Noise(3, torch.arange(40)).of(epoch).of("transform") for epoch in range(3)]
    fixed = [RandomErasing(location="image").mask(noise, SIDE, SIDE) for noise in epochs]
    assert torch.equal(fixed[0], fixed[1]) and torch.equal(fixed[0], fixed[2])
    assert len({tuple(mask.flatten().tolist()) for mask in fixed[0]}) > 30  # but another rectangle for each image
    fresh = [RandomErasing().mask(noise, SIDE, SIDE) for noise in epochs]
    assert not torch.equal(fresh[0], fresh[1])
    # Over images its rectangles are distributed as the uniform policy's.
    image, uniform = ours(RandomErasing(location="image")), ours(RandomErasing(), DRAWS)
    assert all(same_counts(a, b) > 1e-4 for a, b in zip(image, uniform, strict=True))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_p_is_how_many_images_are_erased(p: float) -> None:
    erased = int((ours(RandomErasing(p=p)).height > 0).sum())
    assert erased == round(p * DRAWS) if p in (0, 1) else stats.binomtest(erased, DRAWS, p).pvalue > 1e-3
    box = ours(RandomErasing(p=0.3))
    whole = ours(RandomErasing(p=1.0))
    keep = box.height > 0
    assert torch.equal(box.height[keep], whole.height[keep])  # p decides whether, not what


def images(n: int = 8, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.2


@pytest.mark.parametrize("fill", ["mean", "zero", "released", "noise"])
@pytest.mark.parametrize("channels", [1, 3])
def test_fills_and_untouched_pixels(fill: str, channels: int) -> None:
    x, noise = images(channels=channels), Noise(4, torch.arange(8))
    defense = RandomErasing(fill=fill)
    mask = defense.mask(noise, SIDE, SIDE)[:, None].expand_as(x)
    out = defense.transform(x, noise)
    assert torch.equal(out[~mask], x[~mask])
    assert out.dtype == x.dtype and out.min() >= 0 and out.max() <= 1
    if fill == "noise":
        assert stats.kstest(out[mask].numpy(), "uniform").pvalue > 1e-3
        assert len(out[mask].unique()) > 0.99 * int(mask.sum())  # each pixel, channel and image its own
    else:
        colour = torch.tensor(FILLS[fill])
        colour = colour if channels == 3 else colour.mean()[None]
        assert torch.equal(out[mask], colour[None, :, None, None].expand_as(x)[mask])


def test_the_released_fill_is_the_papers_numbers_after_its_normalisation() -> None:
    """Erasing happens after Normalize(.5, .5), so the value v is the pixel (1 + v) / 2."""
    expected = [(1 + value) / 2 for value in (0.485, 0.456, 0.406)]
    assert pytest.approx(FILLS["released"], abs=1e-9) == expected
    assert pytest.approx(FILLS["mean"]) == (0.485, 0.456, 0.406)


def test_gradients_reach_the_pixels_that_stay_and_no_other() -> None:
    x, noise = images().requires_grad_(), Noise(4, torch.arange(8))
    for fill in ("mean", "noise"):
        defense = RandomErasing(fill=fill)
        gradient = torch.autograd.grad(defense.transform(x, noise).sum(), x)[0]
        assert torch.equal(gradient, (~defense.mask(noise, SIDE, SIDE))[:, None].expand_as(x).float())


@pytest.mark.parametrize("location", ["uniform", "torus", "centre", "image_after", "boundary"])
@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_a_batch_equals_its_images_one_by_one(location: str, fill: str) -> None:
    x, noise = images(), Noise(4, torch.arange(8)).of(2)
    defense = RandomErasing(a_e=0.8, p=0.7, ratio=(0.5, 2.0), location=location, fill=fill)
    single = [defense.transform(x[i : i + 1], noise.rows(torch.tensor([i]))) for i in range(8)]
    assert torch.equal(defense.transform(x, noise), torch.cat(single))


def trained(*defenses: Defense) -> dict[str, Tensor]:
    """Every weight after a whole training."""
    net = small_net()
    recipe = Training(epochs=3, batch=10, lr=0.01)
    fit(net, colours(30), 3, recipe, resolve("cpu", "fp32"), 5, Silent(), "toy", defenses)
    return net.state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_zero_strength_is_no_defense_bit_for_bit_through_a_whole_training() -> None:
    plain = trained()
    assert equal(plain, trained())
    for defense in (
        NoDefense(),
        RandomErasing(p=0.0),
        RandomErasing(a_e=0.0, a_min=0.0),
        RandomErasing(p=0.0, fill="noise"),
        RandomErasing(a_e=0.0, a_min=0.0, location="torus"),
    ):
        assert equal(plain, trained(defense)), defense
    assert not equal(plain, trained(RandomErasing()))


def test_stacking_a_defense_shifts_nobodys_randomness() -> None:
    erasing = trained(RandomErasing())
    assert equal(erasing, trained(NoDefense(), RandomErasing()))
    assert equal(erasing, trained(RandomErasing(), NoDefense()))
    assert equal(erasing, trained(RandomErasing(), RandomErasing(p=0.0)))
    assert not equal(erasing, trained(RandomErasing(), RandomErasing()))  # two of a kind draw apart


@pytest.mark.parametrize(
    "settings",
    [
        {"a_e": 1.1},
        {"a_e": 0.05},
        {"a_min": 0.5},
        {"a_e": -0.1},
        {"p": 1.5},
        {"p": -0.1},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"a_e": float("nan")},
        {"p": float("nan")},
        {"ratio": (float("nan"), 1.0)},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match="re: ") as caught:
        RandomErasing(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        registry.configure("defenses", "re", settings=settings)


def test_presets() -> None:
    assert registry.configure("defenses", "re", "paper").plugin == RandomErasing(0.4, 0.1, 1.0, (1.0, 1.0), "mean")
    assert registry.configure("defenses", "re", "legacy").plugin == replace(RandomErasing(), fill="released")


def test_trap_torchvision_erases_one_rectangle_for_a_whole_batch() -> None:
    """Why there is a vectorised sampler at all: on a batch torchvision hides the same pixels of every image."""
    torch.manual_seed(0)
    out = TheirErasing(p=1.0, scale=(0.1, 0.4), ratio=(1.0, 1.0), value=9.0)(images())
    mask = out[:, 0] == 9.0
    assert mask.any() and (mask == mask[0]).all()
    mine = RandomErasing().mask(Noise(0, torch.arange(8)), SIDE, SIDE)
    assert not (mine == mine[0]).all()


def test_trap_torch_ignores_a_negative_label_smoothing() -> None:
    """Why negative smoothing needs dense targets: cross_entropy treats a negative value as none, or refuses it."""
    logits, y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 4
    alpha = -0.2
    dense = F.one_hot(y, 4) * (1 - alpha) + alpha / 4
    wanted = -(dense * F.log_softmax(logits, 1)).sum(1).mean()
    plain = F.cross_entropy(logits, y)
    try:
        theirs = F.cross_entropy(logits, y, label_smoothing=alpha)
    except RuntimeError:
        return
    torch.testing.assert_close(theirs, plain)
    assert abs(theirs - wanted) > 1e-2


def test_who_knows_the_defense_is_shown_rectangles_of_either_order() -> None:
    """`eot` looks at what an attack makes as the target looked at its training images."""
    x, noise = images(), Noise(4, torch.arange(8)).of(2)
    for location in ("uniform", "image", "image_after"):
        defense = RandomErasing(location=location)
        seen = shown_by([NoDefense(), defense])(x, noise)
        mask = defense.mask(noise.of(1), SIDE, SIDE)[:, None].expand_as(x)
        assert torch.equal(seen != x, mask), location
