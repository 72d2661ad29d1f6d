"""Truncation keeps the largest scores in proportion."""

from typing import Any

import pytest
import torch
from defending import CLASSES, assert_refused, noise, probs

from mibench.defenses.truncate import TopScores


@pytest.mark.parametrize("k", [1, 2, 3, CLASSES, 50])
def test_truncation_keeps_the_largest_in_proportion(k: int) -> None:
    p = probs()
    told = TopScores(k)(p, noise())
    kept = told > 0
    assert (kept.sum(1) == min(k, CLASSES)).all() and torch.equal(told.argmax(1), p.argmax(1))
    assert (torch.where(kept, p, 2.0).amin(1) >= torch.where(kept, -1.0, p).amax(1)).all(), "the largest ones"
    ratio = (told / p)[kept].reshape(len(p), -1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    torch.testing.assert_close(told.sum(1), torch.ones(len(p)))


@pytest.mark.parametrize("settings", [{"k": -1}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("truncate", settings)
