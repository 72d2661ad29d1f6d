"""Training seeds in the interval: nothing changes for one, coverage and error rate for several, laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibench.stats.intervals import Interval, difference_of_rates, proportion
from mibench.stats.pairing import Hits, pair
from mibench.stats.seeds import Cells, p_value, spanned


def crossed(seeds: int, people: int, spread: float, draw: torch.Generator, effect: float = 0.0) -> Cells:
    """Differences of cells: one shift of each seed, one of each person, and what is the cell's own."""
    by_seed, by_person = torch.randn(seeds, 1, generator=draw), torch.randn(1, people, generator=draw)
    own = torch.randn(seeds, people, generator=draw)
    values = (effect + spread * by_seed + 0.2 * by_person + 0.3 * own).double().flatten()
    who, when = torch.arange(people).repeat(seeds), torch.arange(seeds).repeat_interleave(people)
    return Cells(who, when, values, torch.ones_like(values))


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_interval_holds_the_one_of_these_networks_and_does_not_depend_on_the_order(
    seed: int, people: int, seeds: int
) -> None:
    cells = crossed(seeds, people, 0.1, torch.Generator().manual_seed(seed))
    known = Interval(float(cells.values.mean()), -0.01, 0.01, len(cells.values), people)
    wide = spanned(known, cells, -9.0, 9.0)
    assert wide.low <= known.low and wide.high >= known.high and wide.value == known.value
    assert (wide == known) == (seeds == 1)
    order = torch.randperm(len(cells.values), generator=torch.Generator().manual_seed(1))
    again = spanned(known, Cells(*(part[order] for part in cells)), -9.0, 9.0)
    assert (again.low, again.high) == pytest.approx((wide.low, wide.high), abs=1e-12)


def test_equal_seeds_add_nothing_to_the_variance_of_people() -> None:
    """s copies of one table: v_seeds is 0, so that the interval is the t interval over people."""
    people = torch.arange(30)
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    twice = Cells(people.repeat(2), torch.arange(2).repeat_interleave(30), values.repeat(2), torch.ones(60).double())
    found = spanned(Interval(float(values.mean()), 0.0, 0.0, 60, 30), twice, -9.0, 9.0)
    half = 2.045230 * float(values.std()) / math.sqrt(30)
    assert found.high == pytest.approx(max(0.0, float(values.mean()) + half), abs=5e-3)


def test_bounds_stay_inside_and_a_rate_keeps_its_width() -> None:
    people, seeds = torch.arange(8).repeat(2), torch.arange(2).repeat_interleave(8)
    whole = Hits(people, torch.ones(16, dtype=torch.bool), seeds)
    assert whole.rate == proportion(whole.hits, people)
    half = Hits(people, seeds == 0, seeds)  # one network gives everything away, the other nothing
    assert (half.rate.low, half.rate.high) == (0.0, 1.0)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_coverage_where_seeds_vary(seeds: int) -> None:
    """Of 400 tables whose seeds vary by 5 points the stated 95% hold 0; over people alone far fewer do."""
    draw, trials, people = torch.Generator().manual_seed(seeds), 400, 100
    inside = alone = wrong = 0
    for _ in range(trials):
        cells = crossed(seeds, people, 0.05, draw)
        known = difference_of_rates(
            cells.values.view(seeds, people).sum(0), torch.full((people,), float(seeds)).double()
        )
        found = spanned(known, cells, -9.0, 9.0)
        inside += found.low <= 0 <= found.high
        alone += known.low <= 0 <= known.high
        wrong += p_value(cells) < 0.05
    assert inside / trials >= 0.93 > alone / trials and wrong / trials <= 0.07, (inside, alone, wrong)


def test_a_real_difference_is_still_seen_with_three_seeds() -> None:
    draw = torch.Generator().manual_seed(0)
    assert sum(p_value(crossed(3, 100, 0.02, draw, effect=0.2)) < 0.05 for _ in range(100)) > 80


def test_the_p_value_of_a_pair_allows_for_seeds() -> None:
    """Ten people gain under one seed and lose as much under the other, but for one: no training would show it."""
    people, seeds = torch.arange(20).repeat(2), torch.arange(2).repeat_interleave(20)
    one, other = Hits(people, seeds == 0, seeds), Hits(people, (seeds == 1) & (people > 9), seeds)
    found = pair(one, other)
    assert found is not None and found.interval.low < 0 < found.interval.high and found.p > 0.2
    alone = pair(Hits(people[:20], one.hits[:20]), Hits(people[:20], other.hits[:20]))
    assert alone is not None and alone.p < 0.001
