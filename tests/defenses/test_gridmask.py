"""A grid is periodic."""

from typing import Any

import pytest
import torch
from defending import assert_refused, masks

from mibench.defenses.gridmask import GridMask


def test_a_grid_is_periodic() -> None:
    """A period of 8 pixels of 32, q = 1/4: in every row and column that meets squares, 4 on and 4 off."""
    mask = masks(GridMask(0.25, (0.25, 0.25)), 50).bool()
    assert torch.equal(mask[:, 8:], mask[:, :-8]) and torch.equal(mask[:, :, 8:], mask[:, :, :-8])
    assert (mask.any(2).sum(1) == 16).all() and (mask.any(1).sum(1) == 16).all()
    assert torch.equal(mask, mask.any(2)[:, :, None] & mask.any(1)[:, None, :])
    assert len({tuple(one.flatten().tolist()) for one in mask}) > 20  # the offset is each image's own
    runs = (masks(GridMask(), 500).any(2).double().diff(dim=1) != 0).sum(1)
    assert runs.min() >= 2 and len(runs.unique()) > 2  # other periods, other numbers of edges


@pytest.mark.parametrize(
    "settings",
    [{"q": 2.0}, {"q": float("nan")}, {"period": (0.0, 0.5)}, {"period": (0.5, 0.2)}, {"period": (float("nan"), 1.0)}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("gridmask", settings)
