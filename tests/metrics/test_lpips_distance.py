"""LPIPS: the package's distance, to the nearest image of the label."""

import warnings
from pathlib import Path

import lpips
import pytest
import torch
from features import uniform

from mibench.metrics import lpips_distance
from mibench.runtime.errors import UserError


def test_lpips_is_the_packages_distance_to_the_nearest_image_of_the_label(trusting: Path) -> None:
    model = lpips_distance.load()
    assert isinstance(model, lpips_distance.Lpips)
    images, real = uniform(3, 3, 64, 80), uniform(4, 3, 64, 80, seed=1)
    images[0] = real[1] * 0.9
    y, z = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1, 0])
    state = torch.load(trusting / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by an old argument
        plain = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for name, parameter in plain.net.named_parameters():
        parameter.data = state["features." + name.partition(".")[2]]
    with torch.no_grad():
        columns = [plain(images, r.expand(3, -1, -1, -1), normalize=True).flatten() for r in real]
    pairs = torch.stack(columns, dim=1)
    expected = torch.stack([pairs[i][z == y[i]].min() for i in range(3)]).double()
    distance = lpips_distance.lpips_distance(model, images, y, real, z)
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-6)
    assert float(distance.min()) > 0
    torch.testing.assert_close(lpips_distance.lpips_distance(model, images, y, real, z, batch=1), distance)
    assert float(lpips_distance.lpips_distance(model, real, z, real, z).abs().max()) == 0


def test_lpips_enlarges_small_images_and_refuses_mixed_sizes(trusting: Path) -> None:
    model = lpips_distance.load()
    assert isinstance(model, lpips_distance.Lpips)
    small, y = uniform(2, 1, 28, 28), torch.tensor([0, 0])
    large = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        lpips_distance.lpips_distance(model, small[:1], y[:1], small[1:], y[1:]),
        lpips_distance.lpips_distance(model, large[:1], y[:1], large[1:], y[1:]),
    )
    with pytest.raises(UserError, match=r"\(1, 28, 28\), references \(1, 64, 64\)"):
        lpips_distance.lpips_distance(model, small, y, large, y)
    with pytest.raises(UserError, match="label 0 has no reference"):
        lpips_distance.lpips_distance(model, small, y, small, y + 1)
    with pytest.raises(UserError, match="unknown LPIPS network 'alexnet'; did you mean 'alex'"):
        lpips_distance.load("alexnet")
