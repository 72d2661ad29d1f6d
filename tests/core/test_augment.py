"""Laws of the augmentation: identities, parity with torchvision, and every image with randomness of its own."""

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mibench.core import augment
from mibench.runtime.rng import Noise

KEYS = torch.arange(6)


def images(n: int = 6, channels: int = 3, height: int = 16, width: int = 12) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def full(n: int, value: float) -> Tensor:
    return torch.full((n,), value)


def test_the_whole_image_is_the_identity() -> None:
    x, noise = images(), Noise(0, KEYS)
    torch.testing.assert_close(augment.random_resized_crop(x, noise, (1.0, 1.0)), x, rtol=0, atol=2e-6)
    one, nil = full(6, 1.0), full(6, 0.0)
    for place in (0.0, 0.3, 1.0):
        out = augment.crop(x, one, one, full(6, place), full(6, place), nil)
        torch.testing.assert_close(out, x, rtol=0, atol=2e-6)


def test_mirroring_is_a_flip() -> None:
    x, noise = images(), Noise(0, KEYS)
    mirrored = augment.random_resized_crop(x, noise, (1.0, 1.0), mirror=1.0)
    torch.testing.assert_close(mirrored, x.flip(3), rtol=0, atol=2e-6)
    assert torch.equal(augment.flip(x, noise, 1.0), x.flip(3)) and torch.equal(augment.flip(x, noise, 0.0), x)
    # A mirrored crop is the mirror image of the crop.
    plain = augment.random_resized_crop(x, noise, (0.3, 0.6), (0.8, 1.2))
    both = augment.random_resized_crop(x, noise, (0.3, 0.6), (0.8, 1.2), mirror=1.0)
    torch.testing.assert_close(both, plain.flip(3), rtol=0, atol=2e-6)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_images_are_mirrored_with_the_probability_asked(probability: float) -> None:
    n = 4000
    x = torch.zeros(n, 1, 2, 2)
    x[..., 0] = 1.0
    noise = Noise(0, torch.arange(n))
    for out in (
        augment.flip(x, noise, probability),
        augment.random_resized_crop(x, noise, (1.0, 1.0), mirror=probability),
    ):
        count = int((out[:, 0, 0, 0] < 0.5).sum())
        assert stats.binomtest(count, n, probability).pvalue > 1e-3


@pytest.mark.parametrize(("top", "left", "height", "width"), [(0, 0, 8, 6), (8, 6, 8, 6), (3, 2, 10, 8), (5, 0, 4, 12)])
def test_crops_of_whole_pixels_are_torchvisions(top: int, left: int, height: int, width: int) -> None:
    """Equal where the box's own pixels decide; torchvision repeats the box's edge, here the image goes on there."""
    x = images()
    _, _, rows, columns = x.shape
    out = augment.crop(
        x,
        full(6, height / rows),
        full(6, width / columns),
        full(6, top / max(rows - height, 1)),
        full(6, left / max(columns - width, 1)),
        full(6, 0.0),
    )
    theirs = TF.resized_crop(x, top, left, height, width, [rows, columns], antialias=False)

    def inside(size: int, box: int) -> Tensor:
        place = (torch.arange(size) + 0.5) * box / size - 0.5
        return (place >= 0) & (place <= box - 1)

    same = inside(rows, height)[:, None] & inside(columns, width)
    assert same.float().mean() > 0.4
    torch.testing.assert_close(out[:, :, same], theirs[:, :, same], rtol=0, atol=3e-6)


def measured(
    noise: Noise, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Height, width, and centre of each box, read off a picture of coordinates (its slope and middle)."""
    side = 64
    place = (torch.arange(side) + 0.5) / side
    x = torch.stack([place[:, None].expand(side, side), place.expand(side, side)])
    x = x.expand(len(noise.keys), -1, -1, -1)
    out = augment.random_resized_crop(x, noise, scale, ratio).double()
    low, high = side // 2 - 8, side // 2 + 7
    y, z = out[:, 0, :, side // 2], out[:, 1, side // 2, :]
    span = (high - low) / side
    return (
        (y[:, high] - y[:, low]) / span,
        (z[:, high] - z[:, low]) / span,
        (y[:, high] + y[:, low]) / 2,
        (z[:, high] + z[:, low]) / 2,
    )


def test_area_ratio_and_place_have_the_distributions_they_should() -> None:
    low, high = 0.3, 0.6
    height, width, y, x = measured(Noise(1, torch.arange(1500)), (low, high), (0.75, 4 / 3))
    area = (height * width - low) / (high - low)
    assert stats.kstest(area.numpy(), "uniform").pvalue > 1e-3
    stretch = ((width / height).log() / torch.log(torch.tensor(4 / 3)) + 1) / 2
    assert stats.kstest(stretch.numpy(), "uniform").pvalue > 1e-3
    for middle, size in ((y, height), (x, width)):
        place = (middle - size / 2) / (1 - size)
        assert stats.kstest(place.clamp(0, 1).numpy(), "uniform").pvalue > 1e-3
    values = torch.stack([area, stretch, (y - height / 2) / (1 - height), (x - width / 2) / (1 - width)])
    assert (torch.corrcoef(values) - torch.eye(4)).abs().max() < 4 / 1500**0.5


def test_a_box_that_would_stick_out_is_cut() -> None:
    height, width, _, _ = measured(Noise(1, torch.arange(200)), (0.9, 0.9), (2.0, 2.0))
    torch.testing.assert_close(width, torch.ones_like(width), rtol=0, atol=1e-4)
    torch.testing.assert_close(height, torch.full_like(height, 0.45**0.5), rtol=0, atol=1e-4)


def test_every_image_has_randomness_of_its_own_whoever_is_beside_it() -> None:
    x = images(1).expand(6, -1, -1, -1)
    noise = Noise(3, KEYS)
    transforms = [
        lambda x, noise: augment.random_resized_crop(x, noise, (0.3, 0.9), (0.8, 1.2), 0.5),
        lambda x, noise: augment.colour_jitter(x, noise, 0.2, 0.2, 0.1),
        lambda x, noise: augment.base(x, noise, True),
    ]
    for transform in transforms:
        out = transform(x, noise)
        assert all((out[i] - out[j]).abs().max() > 1e-3 for i in range(6) for j in range(i))
        for i in range(6):
            single = transform(x[i : i + 1], noise.rows(torch.tensor([i])))[0]
            torch.testing.assert_close(out[i], single, rtol=0, atol=1e-6)


def factors(noise: Noise, *strength: float) -> Tensor:
    """What colour_jitter documents: 1 + (2u - 1) a."""
    return 1.0 + (2.0 * noise.uniform(3) - 1.0) * torch.tensor(strength)


def test_brightness_and_contrast_are_torchvisions() -> None:
    noise = Noise(5, KEYS)
    x = images()
    out = augment.colour_jitter(x, noise, 0.5, 0.0, 0.0)
    for i, factor in enumerate(factors(noise, 0.5, 0.0, 0.0)[:, 0].tolist()):
        torch.testing.assert_close(out[i], TF.adjust_brightness(x[i], factor), rtol=0, atol=1e-6)
    out = augment.colour_jitter(x, noise, 0.0, 0.8, 0.0)
    for i, factor in enumerate(factors(noise, 0.0, 0.8, 0.0)[:, 1].tolist()):
        torch.testing.assert_close(out[i], TF.adjust_contrast(x[i], factor), rtol=0, atol=2e-4)  # its red is .2989
    out = augment.colour_jitter(x, noise, 0.0, 0.0, 0.8)
    for i, factor in enumerate(factors(noise, 0.0, 0.0, 0.8)[:, 2].tolist()):
        torch.testing.assert_close(out[i], TF.adjust_saturation(x[i], factor), rtol=0, atol=2e-4)


def test_grey_is_luma_and_pulls_colours_by_it() -> None:
    """Red, green and blue are worth .299, .587 and .114: at contrast 0 a pure red image is .299 everywhere."""
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        x = torch.zeros(1, 3, 4, 4)
        x[:, channel] = 1.0
        torch.testing.assert_close(augment.grey(x), torch.full((1, 1, 4, 4), weight))
    one = torch.rand(2, 1, 4, 4)
    assert torch.equal(augment.grey(one), one)


def test_jitter_at_zero_is_the_identity_and_grey_images_have_no_saturation() -> None:
    noise = Noise(5, KEYS)
    torch.testing.assert_close(augment.colour_jitter(images(), noise, 0.0, 0.0, 0.0), images(), rtol=0, atol=1e-6)
    grey = images(channels=1)
    without = augment.colour_jitter(grey, noise, 0.2, 0.2, 0.0)
    assert torch.equal(augment.colour_jitter(grey, noise, 0.2, 0.2, 0.9), without)


def test_pixels_stay_in_range_and_pass_gradients() -> None:
    x = images().round().requires_grad_()
    out = augment.base(x, Noise(5, KEYS), True)
    assert out.min() >= 0 and out.max() <= 1 and out.shape == x.shape
    gradient = torch.autograd.grad(augment.random_resized_crop(x, Noise(5, KEYS), (0.5, 0.9)).sum(), x)[0]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_base_mirrors_only_where_asked() -> None:
    x = torch.zeros(400, 3, 8, 8)
    x[..., :4] = 0.6
    noise = Noise(5, torch.arange(400))

    def facing_left(mirror: bool) -> int:
        out = augment.base(x, noise, mirror)
        return int((out[..., 0].mean(dim=(1, 2)) > out[..., 7].mean(dim=(1, 2))).sum())

    assert facing_left(False) == 400
    assert stats.binomtest(facing_left(True), 400, 0.5).pvalue > 1e-3


@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [((6, 3, 64, 64), True), ((6, 3, 64, 64), False), ((6, 1, 28, 28), True), ((6, 3, 92, 112), True)],
)
@pytest.mark.parametrize("mirror", [True, False])
def test_the_base_augmentation_is_the_crop_and_the_jitter(
    shape: tuple[int, int, int, int], channels_last: bool, mirror: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, noise = images(*shape).contiguous(memory_format=layout), Noise(5, KEYS)
    cut = augment.random_resized_crop(x, noise.of("crop"), (0.85, 1.0), mirror=0.5 if mirror else 0.0)
    apart = augment.colour_jitter(cut, noise.of("jitter"), 0.2, 0.2, 0.1)
    torch.testing.assert_close(augment.base(x, noise, mirror), apart, rtol=0, atol=3e-5)


def test_hue_is_torchvisions_and_turns_nothing_at_zero() -> None:
    x = torch.rand(6, 3, 9, 7, generator=torch.Generator().manual_seed(4))
    x[0, :, 0, 0], x[0, :, 1, 1] = 0.5, 0.0  # greys have no hue
    noise = Noise(3, torch.arange(6))
    factors = (2 * noise.uniform(1)[:, 0] - 1) * 0.1
    mine = augment.hue(x, noise, 0.1)
    for place, factor in enumerate(factors.tolist()):
        torch.testing.assert_close(mine[place], TF.adjust_hue(x[place], factor), atol=2e-6, rtol=0)
    assert factors.unique().numel() == 6, "every image has a turn of its own"
    torch.testing.assert_close(augment.hue(x, noise, 0.0), x, atol=1e-6, rtol=0)
    assert torch.equal(augment.hue(x[:, :1], noise, 0.1), x[:, :1])
