"""Laws of pairing: one difference has one interval, whatever the order, the split into seeds, or who asks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibench.stats.intervals import paired_interval, proportion
from mibench.stats.pairing import Hits, between, combined, pair
from mibench.stats.significance import least_p, paired_test


@st.composite
def sides(draw: st.DrawFn, alike: bool = True) -> tuple[Hits, Hits]:
    """Two targets attacked on the same people; where not alike, each with its own number of images of each."""
    people = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True))
    seeds = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True))
    sizes = st.integers(1, 4)
    counts = [draw(sizes) for _ in range(len(people) * len(seeds))]

    def side(own: list[int]) -> Hits:
        cells = [(who, seed) for seed in seeds for who in people]
        rows = [cell for cell, count in zip(cells, own, strict=True) for _ in range(count)]
        rows = draw(st.permutations(rows))
        hits = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
        who, when = (torch.tensor(part) for part in zip(*rows, strict=True))
        return Hits(who, torch.tensor(hits), when)

    return side(counts), side(counts if alike else [draw(sizes) for _ in counts])


def shuffled(one: Hits, seed: int) -> Hits:
    order = torch.randperm(len(one.hits), generator=torch.Generator().manual_seed(seed))
    return Hits(one.people[order], one.hits[order], None if one.seeds is None else one.seeds[order])


@given(sides())
@settings(max_examples=60, deadline=None)
def test_equal_numbers_of_images_give_the_interval_and_the_p_value_of_images_paired_one_by_one(
    two: tuple[Hits, Hits],
) -> None:
    a, b = two
    found = pair(a, b)
    assert found is not None and a.seeds is not None and b.seeds is not None
    orders = [np.lexsort((side.people.numpy(), side.seeds.numpy())) for side in two]  # type: ignore[union-attr]
    hits = [side.hits[torch.from_numpy(order)] for side, order in zip(two, orders, strict=True)]
    people = a.people[torch.from_numpy(orders[0])]
    known, p = paired_interval(*hits, people), paired_test(*hits, people).p
    if len(a.seeds.unique()) == 1:
        assert found.interval == known and found.p == p
    else:  # other trainings are allowed for as well
        assert found.interval._replace(low=0, high=0) == known._replace(low=0, high=0) and found.p >= p
        assert found.interval.low <= known.low and found.interval.high >= known.high
    assert found.interval.value == pytest.approx(a.rate.value - b.rate.value)


@given(sides(alike=False), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_difference_has_a_width_mirrors_and_does_not_depend_on_the_order_of_images(
    two: tuple[Hits, Hits], seed: int
) -> None:
    a, b = two
    there, back, again = pair(a, b), pair(b, a), pair(shuffled(a, seed), shuffled(b, seed))
    assert there is not None and back is not None and again is not None
    value, low, high, _, _ = there.interval
    assert -1 <= low <= value <= high <= 1 and high - low > 0.01
    assert there.interval == again.interval and there.p == again.p == back.p
    assert (back.interval.value, back.interval.low, back.interval.high) == pytest.approx(
        (-value, -high, -low), abs=0.02
    )


@given(sides())
@settings(max_examples=40, deadline=None)
def test_seeds_apart_and_together_are_the_same_difference(two: tuple[Hits, Hits]) -> None:
    def parts(side: Hits) -> list[Hits]:
        assert side.seeds is not None
        return [
            Hits(side.people[own], side.hits[own], side.seeds[own])
            for own in (side.seeds == seed for seed in side.seeds.unique())
        ]

    whole, again = pair(*two), pair(*(combined(parts(side)) for side in two))
    assert whole is not None and again is not None and whole.interval == again.interval and whole.p == again.p


def test_hits_and_shares_of_hits_that_say_the_same_have_the_same_interval() -> None:
    """The case that had two intervals: two targets that differ in nothing, one image a person, three seeds."""
    people = torch.arange(50).repeat(3)
    seeds = torch.arange(3).repeat_interleave(50)
    hits = people % 7 == 0
    found = pair(Hits(people, hits, seeds), Hits(people, hits, seeds))
    assert found is not None
    u = 1 - 0.025 ** (1 / 50)  # of 50 people none differed
    assert (found.interval.low, found.interval.high) == pytest.approx((-u, u)) and u == pytest.approx(0.0711, abs=1e-4)
    # Twice as many images on one side are shares of hits, and no less uncertain.
    double = pair(Hits(people.repeat(2), hits.repeat(2), seeds.repeat(2)), Hits(people, hits, seeds))
    assert double is not None and (double.interval.low, double.interval.high) == pytest.approx((-u, u))


def test_only_what_both_have_is_compared() -> None:
    one = Hits(torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, False, False]), torch.tensor([0, 1, 0, 1]))
    other = Hits(torch.tensor([0, 1, 2]), torch.tensor([False, True, True]))
    found = pair(one, other)
    # (seed 0, person 0): 1 - 0; (seed 0, person 1): 0 - 1; nothing else is shared.
    assert found is not None and (found.people.tolist(), found.seeds.tolist()) == ([0, 1], [0, 0])
    assert found.by_person.tolist() == [1.0, -1.0] and found.interval.value == 0
    assert (
        pair(one, Hits(other.people + 10, other.hits)) is None
        and between(one, Hits(other.people + 10, other.hits), 0.5) is None
    )


def test_seeds_of_one_identity_are_one_observation() -> None:
    a, b = torch.tensor([True] * 7), torch.tensor([False] * 7)
    once = pair(*(Hits(torch.arange(7), side) for side in (a, b)))
    seeds = torch.tensor([0] * 7 + [1] * 7)
    twice = pair(*(Hits(torch.arange(7).repeat(2), side.repeat(2), seeds) for side in (a, b)))
    assert once is not None and twice is not None and once.p == twice.p == least_p(7)
    assert once.interval.clusters == twice.interval.clusters == 7


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_between_two_rates_lies_a_rate(share: float) -> None:
    people = torch.arange(20).repeat_interleave(5)
    draw = torch.Generator().manual_seed(0)
    a, b = (Hits(people, torch.rand(100, generator=draw) < rate) for rate in (0.2, 0.7))
    found = between(a, b, share)
    assert found is not None and found.value == pytest.approx((1 - share) * a.rate.value + share * b.rate.value)
    if share in (0.0, 1.0):
        assert found == (b if share else a).rate == proportion((b if share else a).hits, people)
    every = between(Hits(people, people >= 0), Hits(people, people >= 0), share)
    assert every is not None and every.value == 1 and every.low < 0.9  # nobody was missed, of twenty people
    assert not math.isnan(every.high)
