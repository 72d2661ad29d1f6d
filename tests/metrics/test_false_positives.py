"""Identification at a false-positive rate per image: log-odds, claims and their threshold in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mibench.metrics.false_positives import RATE, best_claim, identified, log_odds, threshold


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


# --- identification -------------------------------------------------------------------------------------------------


def test_the_best_claim_is_the_surest_private_person() -> None:
    logits = 3 * draw(30, 7)
    surest, who = best_claim(logits, 4)
    every = torch.stack([log_odds(logits, torch.full((30,), y)) for y in range(4)], dim=1)
    torch.testing.assert_close(surest, every.max(dim=1).values)
    assert torch.equal(who, every.argmax(dim=1)) and torch.equal(who, logits[:, :4].argmax(dim=1))


def test_an_image_identifies_at_most_one_person_and_only_above_the_threshold() -> None:
    logits = 3 * draw(60, 7, seed=2)
    each = torch.stack([identified(logits, torch.full((60,), y), 4, 0.3) for y in range(4)], dim=1)
    assert set(each.sum(dim=1).tolist()) == {0, 1}
    assert torch.equal(each.any(dim=1), best_claim(logits, 4)[0] > 0.3)
    lower = torch.stack([identified(logits, torch.full((60,), y), 4, -math.inf) for y in range(4)], dim=1)
    assert bool((lower.sum(dim=1) == 1).all()) and bool((lower | ~each).all())


def test_of_a_hundred_strangers_five_are_identified_as_anybody_however_many_people_there_are() -> None:
    """The rate is per image: with a rate per claim nearly all would pass."""
    logits = draw(100, 300, seed=3)
    surest, _ = best_claim(logits, 299)
    limit = threshold(surest)
    assert RATE == 0.05 and int((surest > limit).sum()) == 5
    named = sum(int(identified(logits, torch.full((100,), y), 299, limit).sum()) for y in range(299))
    assert named == 5
    claims = torch.stack([log_odds(logits, torch.full((100,), y)) for y in range(299)], dim=1)
    assert int((claims > threshold(claims.flatten(), 0.01)).any(dim=1).sum()) > 80


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
    assert threshold(values, 0.01) == 197.0 and threshold(values[:99], 0.01) == 98.0 and threshold(values) == 189.0


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
    with pytest.raises(ValueError, match="identification"):
        give()  # type: ignore[operator]
