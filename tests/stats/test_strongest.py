"""The strongest attack, cross-fitted: no luck in the maximum, nobody counted twice, the same halves for everybody."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibench.stats.intervals import proportion
from mibench.stats.pairing import Hits, pair
from mibench.stats.strongest import _best as best
from mibench.stats.strongest import first_half, of, strongest


def attack(rate: float, people: int, each: int, draw: torch.Generator) -> Hits:
    who = torch.arange(people).repeat_interleave(each)
    return Hits(who, torch.rand(len(who), generator=draw) < rate)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=60, unique=True), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_halves_are_even_and_hang_on_the_people_alone(people: list[int], seed: int) -> None:
    named = torch.tensor(people)
    half = first_half(named)
    assert int(half.sum()) == (len(people) + 1) // 2
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(first_half(named[order]), half[order])


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_every_person_counts_once_under_an_attack_chosen_without_them(seed: int, count: int, people: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    attacks = [attack(0.5, people, 3, draw) for _ in range(count)]
    chosen = strongest(attacks)
    assert torch.cat(chosen.people).sort().values.tolist() == list(range(people))
    assert len(chosen.hits.hits) == 3 * people and 1 <= len(chosen.places) == len(set(chosen.places)) <= 2
    for place, own in zip(chosen.places, chosen.people, strict=True):
        assert torch.equal(of(chosen.hits, own).hits, of(attacks[place], own).hits)
        rest = torch.tensor([who for who in range(people) if who not in own.tolist()], dtype=torch.int64)
        if len(rest):
            rates = [float(of(one, rest).hits.double().mean()) for one in attacks]
            assert rates[place] == max(rates) and rates.index(max(rates)) == place


def test_one_attack_is_itself_and_one_person_cannot_be_split() -> None:
    one = attack(0.4, 7, 2, torch.Generator().manual_seed(0))
    assert strongest([one]).hits is one
    lone = [Hits(torch.zeros(2, dtype=torch.int64), torch.tensor([True, hit])) for hit in (False, True)]
    assert strongest(lone).places == (1,)
    with pytest.raises(ValueError, match="of no attack"):
        strongest([])


def test_a_clearly_stronger_attack_is_chosen_on_both_halves() -> None:
    draw = torch.Generator().manual_seed(0)
    weak, strong = attack(0.2, 40, 2, draw), attack(0.7, 40, 2, draw)
    assert strongest([weak, strong]).places == (1,) and strongest([weak, strong]).hits is strong
    assert strongest([strong, strong]).places == (0,)


def test_the_maximum_of_five_equal_attacks_is_biased_and_the_cross_fitted_one_is_not() -> None:
    """100 people x 2 images, a true rate of .5, attacks independent of each other: 600 tables."""
    draw, trials = torch.Generator().manual_seed(3), 600
    naive, fitted, covered, before = [], [], 0, 0
    for _ in range(trials):
        attacks = [attack(0.5, 100, 2, draw) for _ in range(5)]
        best = max((proportion(one.hits, one.people, resamples=200) for one in attacks), key=lambda one: one.value)
        naive.append(best.value)
        before += best.low <= 0.5 <= best.high
        known = strongest(attacks).hits
        rate = proportion(known.hits, known.people, resamples=200)
        fitted.append(rate.value)
        covered += rate.low <= 0.5 <= rate.high
    assert sum(naive) / trials - 0.5 == pytest.approx(0.041, abs=0.004)  # 1.163 standard deviations of .0354
    assert abs(sum(fitted) / trials - 0.5) < 3 * 0.0354 / trials**0.5
    # Both halves agree on a lucky attack, or disagree on two unlucky ones: the spread is 1.16 times that of one attack.
    assert 0.89 < covered / trials < 0.94 and before / trials < 0.92


def test_two_targets_stay_paired() -> None:
    draw = torch.Generator().manual_seed(1)
    sides = [strongest([attack(0.5, 30, 2, draw) for _ in range(4)]).hits for _ in range(2)]
    found = pair(*sides)
    assert found is not None and found.interval.n == 60 and found.interval.clusters == 30


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(2, 6))
def test_attacks_on_the_same_people_are_compared_at_once_as_one_by_one(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    people = torch.arange(6).repeat_interleave(3)
    attacks = [Hits(people, torch.rand(18, generator=draw) < 0.4) for _ in range(count)]
    # A further person, on whom one more attack was run that hits nobody, leaves nothing to be done at once.
    apart = [*attacks, Hits(torch.cat([people, torch.tensor([6])]), torch.zeros(19, dtype=torch.bool))]
    for own in (torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])):
        assert best(attacks, own) == best(apart, own)
