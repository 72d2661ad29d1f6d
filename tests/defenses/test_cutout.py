"""Cutout against its continuous formula."""

from typing import Any

import pytest
from defending import assert_refused, cutout_share, masks, mean_is

from mibench.defenses.cutout import Cutout
from mibench.plugins import registry


def test_a_cutout_at_224_pixels_is_the_continuous_formula() -> None:
    for side in (0.5, 0.586):
        mean_is(masks(Cutout(side), 300, 224, 224).mean((1, 2)), cutout_share(side), 1 / 224)
    assert registry.configure("defenses", "cutout", "paper").plugin.side * 32 == 16


@pytest.mark.parametrize("settings", [{"side": 1.5}, {"side": -0.5}, {"side": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("cutout", settings)
