"""Laws of the intervals: parity with SciPy, invariances, degenerate data, and coverage measured by simulation."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mibench.stats.intervals import Interval, by_cluster, clustered_interval, paired_interval, proportion, quantiles


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def identities(count: int, images: int) -> Tensor:
    return torch.arange(count).repeat_interleave(images)


def expanded(clusters: int, confidence: float) -> float:
    """Confidence at which a plain percentile interval is the expanded one."""
    t = scipy.stats.t.ppf((1 + confidence) / 2, clusters - 1)
    return float(1 - 2 * scipy.stats.norm.cdf(-math.sqrt(clusters / (clusters - 1)) * t))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n", [8, 60])
def test_singleton_clusters_give_scipys_percentile_bootstrap(n: int, confidence: float) -> None:
    values = normal(n).exp()
    ours = clustered_interval(values, torch.arange(n), confidence, resamples=100_000)
    theirs = scipy.stats.bootstrap(
        (values.numpy(),),
        np.mean,
        confidence_level=expanded(n, confidence),
        n_resamples=100_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(float(values.mean()))
    assert ours.low == pytest.approx(theirs.low, abs=0.015 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.015 * width)


def test_an_interval_of_many_normal_means_has_the_width_of_a_t_interval() -> None:
    values = normal(30)
    ours = clustered_interval(values, torch.arange(30), resamples=50_000)
    t = scipy.stats.t.interval(0.95, 29, loc=values.mean(), scale=scipy.stats.sem(values.numpy()))
    assert ours.high - ours.low == pytest.approx(t[1] - t[0], rel=0.03)


def test_the_unit_is_the_identity_not_the_image() -> None:
    means = normal(12)
    once = clustered_interval(means, torch.arange(12))
    often = clustered_interval(means.repeat_interleave(50), identities(12, 50))
    assert often[:3] == pytest.approx(once[:3])
    assert (often.n, often.clusters, once.n, once.clusters) == (600, 12, 12, 12)
    naive = clustered_interval(means.repeat_interleave(50), torch.arange(600))
    assert naive.high - naive.low < 0.2 * (often.high - often.low)


def test_the_value_is_the_mean_over_images_when_identities_have_different_numbers() -> None:
    values, clusters = torch.tensor([1.0, 1, 1, 0]).double(), torch.tensor([4, 4, 4, 9])
    assert clustered_interval(values, clusters).value == 0.75
    assert proportion(values.bool(), clusters).value == 0.75


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=20, deadline=None)
def test_order_of_images_and_names_of_identities_do_not_matter(seed: int, rate: bool) -> None:
    values, clusters = normal(40, seed=seed), identities(8, 5)
    data = values > 0 if rate else values
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    whole = clustered_interval(data, clusters, resamples=200)
    assert clustered_interval(data[order], clusters[order], resamples=200) == pytest.approx(whole)
    assert clustered_interval(data, 7 * clusters - 3, resamples=200) == pytest.approx(whole)


@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_a_measured_quantity_may_change_its_unit(seed: int, shift: float, scale: float) -> None:
    values, clusters = normal(40, seed=seed), identities(8, 5)
    whole = clustered_interval(values, clusters, resamples=200)
    moved = clustered_interval(scale * values + shift, clusters, resamples=200)
    assert moved[:3] == pytest.approx([scale * x + shift for x in whole[:3]], abs=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(-2, 2))
@settings(max_examples=40, deadline=None)
def test_a_rate_and_its_complement_mirror_each_other_within_bounds(seed: int, count: int, at: float) -> None:
    hits, clusters = normal(4 * count, seed=seed) > at, identities(count, 4)
    yes, no = proportion(hits, clusters, resamples=200), proportion(~hits, clusters, resamples=200)
    assert (no.value, no.low, no.high) == pytest.approx((1 - yes.value, 1 - yes.high, 1 - yes.low), abs=1e-9)
    assert 0 <= yes.low <= yes.value <= yes.high <= 1
    assert yes.high - yes.low > 0.05


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values, clusters = normal(60), identities(12, 5)
    one = clustered_interval(values, clusters, seed=1)
    assert clustered_interval(values, clusters, seed=1) == one
    assert clustered_interval(values, clusters, seed=2) != one


def test_more_confidence_is_wider() -> None:
    values, clusters = normal(60), identities(12, 5)
    for data in (values, values > 0):
        widths = [
            interval.high - interval.low
            for interval in (clustered_interval(data, clusters, c) for c in (0.5, 0.8, 0.95, 0.99))
        ]
        assert widths == sorted(widths) and len(set(widths)) == 4


# --- degenerate data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 20, 300])
def test_no_hit_and_all_hits_get_the_exact_binomial_limit_over_identities(count: int) -> None:
    clusters, none = identities(count, 5), torch.zeros(5 * count, dtype=torch.bool)
    exact = scipy.stats.binomtest(0, count).proportion_ci(0.95, method="exact").high
    low = proportion(none, clusters)
    assert (low.value, low.low, low.high) == pytest.approx((0, 0, exact))
    high = proportion(~none, clusters)
    assert (high.value, high.low, high.high) == pytest.approx((1, 1 - exact, 1))
    assert clustered_interval(none, clusters) == low


def test_identities_that_all_agree_do_not_make_a_rate_certain() -> None:
    hits = torch.tensor([True, False]).repeat(10)
    interval = proportion(hits, identities(10, 2))
    assert interval.low < 0.4 < 0.6 < interval.high


def test_a_constant_measured_quantity_has_no_width() -> None:
    clusters = torch.tensor([0, 1, 1, 2, 2, 2])
    assert clustered_interval(torch.full((6,), 2.5), clusters)[:3] == (2.5, 2.5, 2.5)


def test_one_identity_says_little_about_a_rate_and_nothing_about_a_quantity() -> None:
    one = torch.zeros(4, dtype=torch.int64)
    quantity = clustered_interval(torch.arange(4.0), one)
    assert quantity.value == 1.5 and math.isnan(quantity.low) and math.isnan(quantity.high)
    assert proportion(torch.tensor([True, False, True, False]), one) == Interval(0.5, 0, 1, 4, 1)
    assert proportion(torch.zeros(4, dtype=torch.bool), one) == Interval(0, 0, 0.975, 4, 1)
    pair = paired_interval(torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool), one)
    assert pair == Interval(1, -1, 1, 4, 1)


def test_equal_hits_do_not_make_a_difference_certain() -> None:
    clusters = identities(20, 5)
    hits = normal(100) > 0
    same = paired_interval(hits, hits, clusters)
    assert same.value == 0 and -0.2 < same.low < -0.1 and 0.1 < same.high < 0.2
    every, none = torch.ones(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    most = paired_interval(every, none, clusters)
    assert most.value == 1 == most.high and 0.6 < most.low < 0.8


# --- differences ----------------------------------------------------------------------------------------------------


def test_a_difference_of_quantities_is_the_interval_of_differences_and_changes_sign_with_its_order() -> None:
    a, b, clusters = normal(60) + 1, normal(60, seed=1), identities(12, 5)
    ours = paired_interval(a, b, clusters)
    assert ours == clustered_interval(a - b, clusters)
    assert ours.value == pytest.approx(float((a - b).mean())) and ours.value > 0
    assert paired_interval(b, a, clusters).value == -ours.value


def test_pairing_removes_what_both_share() -> None:
    ease, clusters = 5 * normal(12).repeat_interleave(5), identities(12, 5)
    a, b = ease + 0.3 + 0.1 * normal(60, seed=1), ease + 0.1 * normal(60, seed=2)
    pair = paired_interval(a, b, clusters)
    alone = clustered_interval(a, clusters)
    assert pair.high - pair.low < 0.1 * (alone.high - alone.low)
    assert pair.low > 0


def test_a_difference_of_rates_stays_in_bounds_and_mirrors() -> None:
    clusters = identities(10, 3)
    for seed in range(30):
        a, b = normal(30, seed=seed) > -1, normal(30, seed=seed + 100) > 1
        there, back = paired_interval(a, b, clusters), paired_interval(b, a, clusters)
        assert -1 <= there.low < there.value < there.high <= 1
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-9)


# --- coverage -------------------------------------------------------------------------------------------------------


def rates(count: int, images: int, p: float, correlation: float, seed: int) -> Tensor:
    """Beta-binomial hits: identities differ, with the given intra-cluster correlation."""
    rng = np.random.default_rng(seed)
    strength = 1 / correlation - 1
    each = rng.beta(p * strength, (1 - p) * strength, count)
    return torch.from_numpy(rng.random((count, images)) < each[:, None]).reshape(-1)


@pytest.mark.parametrize("count, p, correlation", [(20, 0.5, 0.3), (20, 0.1, 0.8), (40, 0.9, 0.3), (100, 0.1, 0.3)])
def test_95_percent_intervals_of_rates_cover_95_percent(count: int, p: float, correlation: float) -> None:
    clusters = identities(count, 5)
    covered = 0
    for seed in range(500):
        interval = proportion(rates(count, 5, p, correlation, seed), clusters, resamples=500, seed=seed)
        covered += interval.low <= p <= interval.high
    assert 0.92 <= covered / 500 <= 0.98


def test_an_interval_over_images_would_not_cover() -> None:
    images, covered = torch.arange(100), 0
    for seed in range(500):
        interval = proportion(rates(20, 5, 0.5, 0.8, seed), images, resamples=200, seed=seed)
        covered += interval.low <= 0.5 <= interval.high
    assert covered / 500 < 0.8


def test_rare_hits_are_covered_too_where_the_plain_bootstrap_fails() -> None:
    clusters = identities(20, 5)
    covered = plain = 0
    for seed in range(300):
        hits = rates(20, 5, 0.03, 0.5, seed)
        interval = proportion(hits, clusters, resamples=300, seed=seed)
        covered += interval.low <= 0.03 <= interval.high
        means = hits.double().reshape(20, 5).mean(dim=1).numpy()
        draw = np.random.default_rng(seed).integers(0, 20, (300, 20))
        low, high = np.quantile(means[draw].mean(axis=1), [0.025, 0.975])
        plain += low <= 0.03 <= high
    assert covered / 300 >= 0.93
    assert plain / 300 < 0.8


def test_95_percent_intervals_of_quantities_cover_95_percent() -> None:
    clusters, covered = identities(15, 4), 0
    for seed in range(500):
        values = normal(15, seed=2 * seed).repeat_interleave(4) + normal(60, seed=2 * seed + 1)
        interval = clustered_interval(values, clusters, resamples=500, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert 0.92 <= covered / 500 <= 0.98


@pytest.mark.parametrize("p, q", [(0.9, 0.4), (0.05, 0.02)])
def test_95_percent_intervals_of_differences_of_rates_cover_95_percent(p: float, q: float) -> None:
    clusters, covered = identities(20, 5), 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        ease = rng.normal(size=(20, 1))
        a, b = (
            torch.from_numpy(ease + rng.normal(size=(20, 5)) < math.sqrt(2) * scipy.stats.norm.ppf(rate)).reshape(-1)
            for rate in (p, q)
        )
        interval = paired_interval(a, b, clusters, resamples=500, seed=seed)
        covered += interval.low <= p - q <= interval.high
    assert 0.92 <= covered / 500 <= 0.98


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="interval: 1 of 3 values"):
        clustered_interval(torch.tensor([1.0, bad, 2.0]), torch.arange(3))
    with pytest.raises(ValueError, match="interval: 1 of 3 values"):
        paired_interval(torch.zeros(3), torch.tensor([1.0, bad, 2.0]), torch.arange(3))


def test_no_values_and_impossible_settings_are_refused() -> None:
    values, clusters = torch.zeros(3), torch.arange(3)
    with pytest.raises(ValueError, match="0 values"):
        clustered_interval(values[:0], clusters[:0])
    with pytest.raises(ValueError, match="0 values"):
        proportion(values[:0].bool(), clusters[:0])
    for confidence in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(ValueError, match="confidence"):
            clustered_interval(values, clusters, confidence)
    with pytest.raises(ValueError, match="resamples"):
        clustered_interval(values, clusters, resamples=0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99), count=st.integers(1, 300), low=st.floats(0, 1), high=st.floats(0, 1), ties=st.booleans()
)
def test_quantiles_are_torchs_bit_by_bit(seed: int, count: int, low: float, high: float, ties: bool) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = (2 * values).round() / 3 if ties else values
    assert quantiles(values, low, high) == tuple(
        values.quantile(torch.tensor([low, high], dtype=torch.float64)).tolist()
    )


def test_clusters_of_one_value_each_are_summed_as_others_are() -> None:
    clusters, values, weights = torch.tensor([2, 5, 9]), torch.tensor([0.1, -0.0, 0.3]).double(), torch.ones(3).double()
    order = torch.tensor([1, 2, 0])
    for one, other in zip(
        by_cluster(clusters, values, weights), by_cluster(*(x[order] for x in (clusters, values, weights))), strict=True
    ):
        assert one.tolist() == other.tolist() and not one.signbit()[1]
