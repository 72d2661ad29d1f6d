"""Boxes that hang over the edge, against counting over all centres."""

import pytest
import torch
from defending import mean_is

from mibench.defenses.parts.boxes import clipped_boxes
from mibench.runtime.rng import Noise


@pytest.mark.parametrize("size", [0, 1, 2, 5, 8, 15, 16])
def test_hanging_boxes_are_what_counting_over_all_centres_says(size: int) -> None:
    """Of 16 pixels a side of s loses (s / 2)^2 over the 16 centres if even, (s^2 - 1) / 4 if odd."""
    box = clipped_boxes(Noise(1, torch.arange(8000)), torch.full((8000, 2), size), 16, 16)
    rows, columns = box.any(2), box.any(1)
    lost = size**2 / 4 if size % 2 == 0 else (size**2 - 1) / 4
    mean_is(rows.sum(1).double(), size - lost / 16)
    mean_is(columns.sum(1).double(), size - lost / 16)
    assert torch.equal(box, rows[:, :, None] & columns[:, None, :]), "a product of rows and columns"
    assert ((rows.int().diff(dim=1) == 1).sum(1) + rows[:, 0] <= 1).all(), "in one piece"
    cut = rows.sum(1) < size
    assert (rows[cut, 0] | rows[cut, -1]).all() and int(rows.sum(1).max()) == size, "whole unless it meets an edge"
