"""A share of one keeps every bit."""

from typing import Any

import pytest
from defending import assert_refused, assert_trains_like_none

from mibench.defenses.ssf import WeakSkips


@pytest.mark.parametrize("name", ["resnet", "ir", "resnet18"])
def test_k_of_one_is_no_defense_bit_for_bit(name: str) -> None:
    assert_trains_like_none(name, WeakSkips(1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, r"keep must lie in \(0, 1\], got 0.0.*rolss"),
        ({"keep": 1.5}, "keep must lie in"),
        ({"keep": float("nan")}, "keep must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    assert_refused("ssf", settings, message)
