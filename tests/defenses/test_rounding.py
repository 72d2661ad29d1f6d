"""Rounding by hand."""

from typing import Any

import pytest
import torch
from defending import assert_refused, noise, probs
from torch.nn import functional as F

from mibench.defenses.rounding import Rounded


def test_rounding_by_hand() -> None:
    p = torch.tensor([[0.62, 0.26, 0.12], [0.449, 0.441, 0.11], [0.96, 0.03, 0.01]])
    told = Rounded(1)(p, noise(3))
    torch.testing.assert_close(told, torch.tensor([[0.6, 0.3, 0.1], [4 / 9, 4 / 9, 1 / 9], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(Rounded(2)(p, noise(3)), p.mul(100).round() / p.mul(100).round().sum(1, keepdim=True))
    # Thirty classes of about .03: nothing is left of them at one decimal, and the argmax is told.
    many = probs(20, 30, 0.1)
    assert torch.equal(Rounded(1)(many, noise(20)), F.one_hot(many.argmax(1), 30).float())


def test_rounding_tells_few_values_and_the_argmax_stays_among_the_largest() -> None:
    p = probs()
    told = Rounded(1)(p, noise())
    assert torch.equal(told.gather(1, p.argmax(1, keepdim=True))[:, 0], told.amax(1))
    assert len(told.unique()) < 100 < len(p.unique())


@pytest.mark.parametrize("settings", [{"digits": -1}, {"digits": 8}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("rounding", settings)
