"""Laws of the tests: parity with SciPy, exact small cases, the right share of false calls, corrections by hand."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mibench.stats.intervals import paired_interval
from mibench.stats.significance import adjusted, gap_test, least_p, paired_test


def identities(count: int, images: int) -> Tensor:
    return torch.arange(count).repeat_interleave(images)


def hits(seed: int, count: int = 20, images: int = 5, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Hits of two targets that find other people easy: identities differ, images of one agree."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(1, 1, count), np.clip(rng.beta(1, 1, count) + shift, 0, 1)
    a, b = (torch.from_numpy(rng.random((count, images)) < rate[:, None]).reshape(-1) for rate in rates)
    return a, b


def scipys(means: Tensor, resamples: float) -> float:
    found = scipy.stats.permutation_test(
        (means.numpy(), np.zeros(len(means))),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=resamples,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


# --- one test -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 7, 12])
@pytest.mark.parametrize("rate", [True, False])
def test_few_identities_give_scipys_exact_p_value(count: int, rate: bool) -> None:
    clusters = identities(count, 4)
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(len(clusters), dtype=torch.float64, generator=draw) + shift for shift in (0.3, 0.0))
        a, b = (a > 0, b > 0) if rate else (a, b)
        means = (a.double() - b.double()).view(count, 4).mean(1)
        found = paired_test(a, b, clusters)
        assert found.p == pytest.approx(scipys(means, math.inf)) and found.exact
        assert found.difference == pytest.approx(float(means.mean())) and found.clusters == count


def test_many_identities_give_scipys_p_value_up_to_chance() -> None:
    for seed, shift in ((0, 0.0), (1, 0.1), (2, 0.2)):
        a, b = hits(seed, shift=shift)
        found = paired_test(a, b, identities(20, 5), resamples=50_000)
        wanted = scipys((a.double() - b.double()).view(20, 5).mean(1), 50_000)
        assert not found.exact and found.patterns == 50_000
        assert found.p == pytest.approx(wanted, abs=4 * math.sqrt(2 * wanted * (1 - wanted) / 50_000) + 1e-4)


def test_the_p_value_by_hand() -> None:
    # Differences 1, 1, 1, 0: of 8 patterns of three signs only +++ and --- are as far from zero.
    a, b = torch.tensor([True, True, True, False]), torch.zeros(4, dtype=torch.bool)
    assert paired_test(a, b, torch.arange(4))[:2] == (0.75, 0.25)
    # One who leaks less beside them: +-+-... |sum| >= 2 in 2 + 8 of 16 patterns.
    c = torch.tensor([False, False, False, True])
    assert paired_test(a, c, torch.arange(4)).p == 10 / 16
    assert paired_test(a, a, torch.arange(4)).p == 1.0
    assert paired_test(a, b, torch.zeros(4, dtype=torch.int64)).p == 1.0  # one identity says nothing of others


def test_identities_that_do_not_differ_need_no_patterns() -> None:
    a, b = torch.zeros(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    a[:7] = True
    found = paired_test(a, b, torch.arange(100))
    assert found.exact and found.patterns == 2**7 and found.p == 2 / 2**7 and found.clusters == 100


def test_p_is_never_zero_and_the_least_is_what_so_many_identities_give() -> None:
    for count in (5, 6, 12):
        every, none = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        assert paired_test(every, none, torch.arange(count)).p == least_p(count)
    every, none = torch.ones(60, dtype=torch.bool), torch.zeros(60, dtype=torch.bool)
    assert paired_test(every, none, torch.arange(60), resamples=999).p == 1 / 1000
    assert least_p(5) == 0.0625 and least_p(6) < 0.05 and least_p(6, 3) == 0.09375 and least_p(2, 9) == 1


@given(st.integers(0, 10_000), st.integers(2, 20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_order_sides_and_names_do_not_matter(seed: int, count: int, rate: bool) -> None:
    a, b = hits(seed, count)
    if not rate:
        a, b = a + 0.25 * b, b * 0.75
    clusters = identities(count, 5)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    whole = paired_test(a, b, clusters, 999)
    assert 0 < whole.p <= 1
    assert paired_test(b, a, clusters, 999).p == whole.p
    assert paired_test(a[order], b[order], clusters[order], 999).p == whole.p
    assert paired_test(a, b, 7 * clusters - 3, 999).p == whole.p
    assert paired_test(8 * a.double(), 8 * b.double(), clusters, 999).p == whole.p


def test_the_identity_is_the_observation_however_many_images_and_seeds() -> None:
    a, b = hits(3, 15, 1, 0.2)
    once = paired_test(a, b, torch.arange(15)).p
    assert paired_test(a.repeat(4), b.repeat(4), torch.arange(15).repeat(4)).p == once
    assert paired_test(a.repeat(4), b.repeat(4), torch.arange(60)).p != once


def test_same_seed_same_p_value() -> None:
    a, b = hits(0)
    one = paired_test(a, b, identities(20, 5), seed=1)
    assert paired_test(a, b, identities(20, 5), seed=1) == one
    assert paired_test(a, b, identities(20, 5), seed=2).p != one.p


# --- how often it is wrong ------------------------------------------------------------------------------------------


def test_a_true_null_is_rejected_one_time_in_twenty() -> None:
    rng, clusters, rejected = np.random.default_rng(0), identities(20, 5), 0
    for _ in range(1500):
        a = torch.from_numpy(rng.normal(size=100) + rng.normal(size=20).repeat(5))
        rejected += paired_test(a, torch.from_numpy(rng.normal(size=100)), clusters, 499).p <= 0.05
    assert 0.036 <= rejected / 1500 <= 0.064


def test_hits_are_rejected_no_more_often_and_images_are_no_observations() -> None:
    clusters, rejected, naive = identities(20, 5), 0, 0
    for seed in range(600):
        a, b = hits(seed)
        rejected += paired_test(a, b, clusters, 499).p <= 0.05
        naive += paired_test(a, b, torch.arange(100), 499).p <= 0.05
    assert 0.02 <= rejected / 600 <= 0.065
    assert naive / 600 > 0.12


@pytest.mark.parametrize(("shift", "least"), [(0.0, 0.95), (0.2, 0.95), (0.35, 0.9)])
def test_the_interval_says_mostly_the_same(shift: float, least: float) -> None:
    clusters, agree = identities(20, 5), 0
    for seed in range(200):
        a, b = hits(seed, shift=shift)
        interval = paired_interval(a, b, clusters, resamples=400)
        agree += (paired_test(a, b, clusters, 999).p < 0.05) == (interval.low > 0 or interval.high < 0)
    assert agree / 200 >= least


# --- many tests -----------------------------------------------------------------------------------------------------

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .06 (never below the one before).
    found = adjusted(torch.tensor([0.04, 0.01, 0.03, 0.02], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert adjusted(torch.tensor([0.9, 0.4, 0.5])).tolist() == [1.0, 1.0, 1.0]
    assert adjusted(torch.tensor([0.25])).tolist() == [0.25] and adjusted(torch.tensor([])).tolist() == []


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_holm_is_the_step_down_procedure(values: list[float]) -> None:
    found = adjusted(torch.tensor(values, dtype=torch.float64)).tolist()
    order = sorted(range(len(values)), key=values.__getitem__)
    for place, index in enumerate(order):
        steps = [(len(values) - j) * values[order[j]] for j in range(place + 1)]
        assert found[index] == pytest.approx(min(1.0, max(steps)))


@given(values=VALUES)
@settings(max_examples=60, deadline=None)
def test_the_correction_keeps_the_order_and_never_lowers_a_p_value(values: list[float]) -> None:
    p = torch.tensor(values, dtype=torch.float64)
    found = adjusted(p)
    assert bool((found >= p).all()) and bool((found <= 1).all())
    assert bool((found[p.argsort()].diff() >= 0).all())
    bonferroni = (len(p) * p).clamp(max=1)
    assert bool((found <= bonferroni + 1e-12).all())


def test_holm_calls_a_wrong_difference_in_one_table_of_twenty_where_no_correction_calls_one_in_half() -> None:
    p = torch.from_numpy(np.random.default_rng(0).random((2000, 15)))
    assert (p.amin(1) < 0.05).double().mean() > 0.5
    wrong = sum(bool((adjusted(row) < 0.05).any()) for row in p)
    assert 0.035 <= wrong / 2000 <= 0.065


# --- groups ---------------------------------------------------------------------------------------------------------


def test_the_largest_gap_is_called_one_time_in_twenty_where_there_is_none() -> None:
    clusters, rejected = identities(24, 5), 0
    for seed in range(250):
        rejected += gap_test(hits(seed, 24)[0], clusters, clusters % 3, 199) <= 0.05
    assert 0.02 <= rejected / 250 <= 0.09


def test_a_real_gap_is_seen_and_groups_are_of_identities() -> None:
    clusters = identities(20, 5)
    groups = (clusters >= 10).long()
    values = groups == 1
    assert gap_test(values, clusters, groups) == pytest.approx(1e-4, abs=1e-4)
    with pytest.raises(ValueError, match="each identity to one"):
        gap_test(values, clusters, torch.arange(100) % 2)
    with pytest.raises(ValueError, match="two groups"):
        gap_test(values, clusters, torch.zeros(100, dtype=torch.int64))
    # 1 of 3 shuffles of (1, 0, 0) gives the lone member the hit, and that is the largest gap.
    few = gap_test(torch.tensor([True, False, False]), torch.arange(3), torch.tensor([0, 1, 1]), 9999)
    assert few == pytest.approx(1 / 3, abs=0.02)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_tested_is_refused() -> None:
    values, clusters = torch.zeros(3), torch.arange(3)
    with pytest.raises(ValueError, match="0 and 0 values"):
        paired_test(values[:0], values[:0], clusters[:0])
    with pytest.raises(ValueError, match="1 of 3 values"):
        paired_test(values, torch.tensor([0.0, math.nan, 0.0]), clusters)
    with pytest.raises(ValueError, match="resamples"):
        paired_test(values, values, clusters, resamples=10)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="lie in"):
            adjusted(torch.tensor([0.5, bad]))
