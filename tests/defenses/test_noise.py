"""Noise on scores has its distribution and scale."""

from typing import Any

import pytest
import torch
from defending import CLASSES, assert_refused, noise, probs
from scipy import stats
from torch.nn import functional as F

from mibench.defenses.noise import Noisy, laplace


def test_laplace_noise_has_the_laplace_distribution() -> None:
    drawn = laplace(noise(4000), 5)
    assert drawn.isfinite().all() and stats.kstest(drawn.flatten().numpy(), "laplace").pvalue > 1e-3
    assert torch.corrcoef(drawn.T).sub(torch.eye(5)).abs().max() < 5 / 4000**0.5


@pytest.mark.parametrize(("law", "deviation"), [("laplace", 2**0.5), ("gaussian", 1.0)])
def test_the_measured_scale_of_the_noise(law: Any, deviation: float) -> None:
    """Two classes at .5: noise that small is not clipped, and told / (1 - told) gives it back to first order."""
    n, scale = 20_000, 0.001
    told = Noisy(scale, law)(torch.full((n, 2), 0.5), noise(n))
    difference = (told[:, 0] - told[:, 1]).double()  # (n_0 - n_1) scale, to first order
    assert float(difference.std()) == pytest.approx(scale * deviation * 2**0.5, rel=0.03)
    assert abs(float(difference.mean())) < 4 * scale * deviation * 2**0.5 / n**0.5


def test_noisy_scores_are_the_clipped_sum() -> None:
    p = probs()
    told, draw = Noisy(0.3, "laplace")(p, noise()), laplace(noise(), CLASSES)
    expected = (p + 0.3 * draw).clamp(min=0)
    assert (expected == 0).any()
    torch.testing.assert_close(told, expected / expected.sum(1, keepdim=True))
    assert torch.equal(told.argmax(1), (p + 0.3 * draw).argmax(1))
    # Two classes and much noise: often both are clipped away.
    pair, drawn = torch.full((400, 2), 0.5), 50 * laplace(noise(), 2) + 0.5
    gone = (drawn <= 0).all(1)
    assert gone.sum() > 50
    assert torch.equal(Noisy(50.0, "laplace")(pair, noise())[gone], F.one_hot(drawn[gone].argmax(1), 2).float())


@pytest.mark.parametrize("settings", [{"scale": -0.1}, {"scale": float("nan")}, {"scale": float("inf")}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("noise", settings)
