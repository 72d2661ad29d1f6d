"""Dropped pixels are independent coins."""

from typing import Any

import pytest
import torch
from defending import assert_refused, masks, mean_is

from mibench.defenses.pixel_drop import PixelDrop


def test_dropped_pixels_are_independent_coins() -> None:
    mask = masks(PixelDrop(0.3), 3000, 8, 8).flatten(1)
    correlation = torch.corrcoef(mask.T) - torch.eye(64)
    assert correlation.abs().max() < 5 / 3000**0.5
    mean_is((mask.sum(1) - 64 * 0.3).square(), 64 * 0.3 * 0.7)  # the variance of a binomial


@pytest.mark.parametrize("settings", [{"q": 1.1}, {"q": -0.1}, {"q": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("pixel_drop", settings)
