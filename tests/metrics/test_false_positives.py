"""Calibrated success: log-odds, impostors and their threshold in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mibench.metrics.false_positives import impostor_scores, log_odds, threshold


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the score ------------------------------------------------------------------------------------------------------


def test_log_odds_are_those_of_softmax() -> None:
    logits, labels = 4 * draw(50, 7), torch.arange(50) % 7
    p = logits.double().softmax(dim=1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(log_odds(logits, labels), (p / (1 - p)).log())


def test_log_odds_stay_exact_where_a_probability_rounds_to_one() -> None:
    """A network sure beyond float64 is still ranked: softmax itself would say 1 of both."""
    logits = torch.tensor([[200.0, 0.0, 0.0], [300.0, 0.0, 0.0], [-300.0, 0.0, 0.0]])
    wanted = torch.tensor([200.0, 300.0, -300.0], dtype=torch.float64) - math.log(2)
    torch.testing.assert_close(log_odds(logits, torch.zeros(3, dtype=torch.int64)), wanted)


def test_log_odds_do_not_change_with_a_shift_of_all_logits() -> None:
    logits, labels = draw(20, 5), torch.arange(20) % 5
    torch.testing.assert_close(log_odds(logits.double() + 3.0, labels), log_odds(logits.double(), labels))


def test_impostors_are_everybody_claimed_as_everybody_else() -> None:
    logits, labels = draw(4, 6), torch.tensor([0, 2, 5, -1])
    found = impostor_scores(logits, labels, 3)
    wanted = [
        log_odds(logits[i : i + 1], torch.tensor([y]))
        for i, own in enumerate(labels.tolist())
        for y in range(3)
        if y != own
    ]
    torch.testing.assert_close(found, torch.cat(wanted))
    assert len(found) == 2 + 2 + 3 + 3


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=400), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_never_more_than_the_rate_pass_whatever_the_ties(scores: list[int], rate: float) -> None:
    values = torch.tensor(scores, dtype=torch.float64)
    limit = threshold(values, rate)
    assert int((values > limit).sum()) <= rate * len(values) + 1e-9
    lower = values[values < limit]
    if len(lower):  # it is the smallest such value among them
        assert int((values > lower.max()).sum()) > rate * len(values) + 1e-9


def test_one_percent_of_two_hundred_is_two() -> None:
    values = torch.arange(200, dtype=torch.float64)
    assert threshold(values) == 197.0 and threshold(values[:99]) == 98.0


@pytest.mark.parametrize(
    "give",
    [
        lambda: threshold(torch.zeros(0, dtype=torch.float64)),
        lambda: threshold(torch.zeros(3, dtype=torch.float64), 1.0),
        lambda: log_odds(torch.tensor([[1.0, math.nan]]), torch.tensor([0])),
        lambda: log_odds(draw(1, 3), torch.tensor([3])),
        lambda: log_odds(draw(1, 1), torch.tensor([0])),
    ],
)
def test_what_cannot_be_judged_is_refused(give: object) -> None:
    with pytest.raises(ValueError, match="calibrated success"):
        give()  # type: ignore[operator]
