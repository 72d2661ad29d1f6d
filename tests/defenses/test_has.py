"""Hide-and-seek hides whole cells."""

from typing import Any

import pytest
import torch
from defending import assert_refused, masks

from mibench.defenses.has import HideAndSeek


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


@pytest.mark.parametrize("settings", [{"p": 1.2}, {"p": float("nan")}, {"cells": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("has", settings)
