"""Negative label smoothing: its schedule and what it teaches."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from defending import assert_refused, at_epoch, labels, pixels, preset, trained, weighted_rows

from mibench.defenses.ls import LabelSmoothing, smoothed
from mibench.defenses.nls import NegativeLabelSmoothing
from mibench.plugins import registry
from mibench.runtime.errors import UserError


@pytest.mark.parametrize(
    ("ramp", "epoch", "expected"),
    [
        ("ref", 0, 0.0),
        ("ref", 49, 0.0),
        ("ref", 50, -0.001),
        ("ref", 74, -0.025),
        ("ref", 75, -0.05),
        ("ref", 99, -0.05),
        ("continuous", 49, 0.0),
        ("continuous", 50, -0.002),
        ("continuous", 74, -0.05),
        ("continuous", 75, -0.05),
    ],
)
def test_golden_values_of_the_schedule(ramp: Any, epoch: int, expected: float) -> None:
    """The authors' code divides by E - 50, so it reaches half of alpha and jumps."""
    defense = NegativeLabelSmoothing(-0.05, ramp=ramp)
    assert defense.alpha_at(epoch, 100) == pytest.approx(expected, abs=1e-12)
    batch = weighted_rows()
    assert torch.equal(
        defense.batch(batch, at_epoch(epoch, 100)).t, smoothed(batch.t, expected) if expected else batch.t
    )


@pytest.mark.parametrize("ramp", ["ref", "continuous"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 10, 15, 50])
def test_a_schedule_of_any_length_only_grows_and_never_overshoots(ramp: Any, epochs: int) -> None:
    values = [NegativeLabelSmoothing(-0.1, ramp=ramp).alpha_at(epoch, epochs) for epoch in range(epochs)]
    assert all(-0.1 <= later <= earlier <= 0 for earlier, later in pairwise(values))
    assert values[0] == 0 and (epochs < 4 or values[-1] == -0.1)
    assert sum(value == 0 for value in values) == math.ceil(epochs / 2)


def test_what_negative_smoothing_teaches() -> None:
    """Past certainty the loss still falls with the margin, so that logits grow; positive smoothing stops them."""
    plain, negative, positive = (
        trained(*stack)(pixels()).gather(1, labels()[:, None]).mean() - trained(*stack)(pixels()).mean()
        for stack in ((), (NegativeLabelSmoothing(-0.3, begin=0.0, full=0.0),), (LabelSmoothing(0.3),))
    )
    assert negative > plain > positive


def test_negative_settings_are_allowed_where_they_mean_something() -> None:
    assert registry.configure("defenses", "nls", settings={"alpha": "-0.02"}).plugin == NegativeLabelSmoothing(-0.02)
    with pytest.raises(UserError, match="negative"):
        registry.configure("defenses", "nls", settings={"begin": "-0.5"})


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.1},
        {"alpha": float("nan")},
        {"alpha": -float("inf")},
        {"begin": 0.8},
        {"full": 1.2},
        {"begin": float("nan")},
        {"full": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("nls", settings, f"{next(iter(settings))}|shares")


def test_the_papers_settings() -> None:
    assert preset("nls") == NegativeLabelSmoothing(-0.05, 0.5, 0.75, "ref")
