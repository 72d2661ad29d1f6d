"""Laws of attack accuracy at matched natural accuracy: closed forms, pairing, invariance, coverage."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from mibench.stats.matched import Measured, matched
from mibench.stats.pairing import Hits, combined, pair

PEOPLE, HELD, IMAGES = 60, 5, 2


def exactly(rate: float, images: int, seed: int, people: int = 40) -> Hits:
    """This share of hits, thrown at random over people."""
    count = people * images
    hits = torch.zeros(count, dtype=torch.bool)
    hits[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: round(rate * count)]] = True
    return Hits(torch.arange(people).repeat_interleave(images), hits)


def point(natural: float, attack: float, seed: int = 0) -> Measured:
    return Measured(exactly(attack, 10, seed), exactly(natural, 10, seed + 1))


NONE = point(0.9, 0.8)
PATH = [point(0.85, 0.7, 2), point(0.75, 0.4, 4), point(0.6, 0.1, 6)]


@pytest.mark.parametrize("below", [0.0, 0.02, 0.05, 0.1, 0.15, 0.22, 0.3])
def test_a_monotone_path_is_read_as_numpy_reads_it(below: float) -> None:
    found = matched(NONE, PATH, below)
    expected = float(np.interp(0.9 - below, [0.6, 0.75, 0.85, 0.9], [0.1, 0.4, 0.7, 0.8]))
    assert found is not None and found.rate.value == pytest.approx(expected)
    assert found.difference.value == pytest.approx(expected - 0.8)
    assert found.rate.low < expected < found.rate.high
    assert found.difference.low <= expected - 0.8 <= found.difference.high


def test_nothing_is_extrapolated() -> None:
    assert matched(NONE, PATH, 0.3001) is None and matched(NONE, PATH, -0.01) is None
    assert matched(NONE, PATH[:1], 0.1) is None and matched(NONE, [], 0.0) is None
    gain = matched(NONE, [point(0.95, 0.9, 8)], -0.025)  # a defense that raises natural accuracy is read there
    assert gain is not None and gain.rate.value == pytest.approx(0.85)


def test_at_a_measured_strength_the_difference_is_the_paired_one() -> None:
    found, alone = matched(NONE, PATH, 0.15), pair(PATH[1].attack, NONE.attack)
    assert found is not None and alone is not None and (found.share, found.leaning) == (0.0, (2,))
    assert found.difference.value == pytest.approx(alone.interval.value)
    assert found.difference.n == alone.interval.n and found.difference.clusters == 40
    # Natural accuracy is uncertain too, so that it is wider than where that is taken as known.
    assert found.difference.low < alone.interval.low and found.difference.high > alone.interval.high


def test_a_defense_on_the_line_of_no_defense_changes_nothing() -> None:
    """Attacked with the same success on the same people at every strength: 0, at every natural accuracy."""
    flat = [Measured(NONE.attack, one.natural) for one in PATH]
    for below in (0.0, 0.02, 0.05, 0.1, 0.25):
        found = matched(NONE, flat, below)
        assert found is not None and found.difference.value == 0.0 and found.rate.value == pytest.approx(0.8)
        assert found.difference.low < 0 < found.difference.high and found.p > 0.99


@given(st.permutations(range(4)), st.floats(0.0, 0.3))
@settings(max_examples=25, deadline=None)
def test_the_order_of_strengths_does_not_matter(order: list[int], below: float) -> None:
    tied = [*PATH, point(0.75, 0.5, 9)]  # as accurate as another: both count as one point
    one, other = matched(NONE, tied, below), matched(NONE, [tied[place] for place in order], below)
    assert one is not None and other is not None
    for a, b in zip((*one.rate, *one.difference, one.p), (*other.rate, *other.difference, other.p), strict=True):
        assert a == pytest.approx(b, abs=1e-9)


def test_equal_points_count_as_their_mean() -> None:
    found = matched(NONE, [point(0.75, 0.4, 4), point(0.75, 0.6, 5)], 0.15)
    assert found is not None and found.rate.value == pytest.approx(0.5)


def test_only_what_all_points_have_is_compared() -> None:
    """Seeds that one point lacks, and people who were not attacked everywhere, say nothing."""

    def under(measured: Measured, seed: int) -> Measured:
        return Measured(*(Hits(one.people, one.hits, torch.full_like(one.people, seed)) for one in measured))

    def together(*parts: Measured) -> Measured:
        return Measured(*(combined([getattr(one, name) for one in parts]) for name in Measured._fields))

    alone = matched(under(NONE, 0), [under(one, 0) for one in PATH], 0.1)
    more = matched(together(under(NONE, 0), under(point(0.3, 0.1, 5), 7)), [under(one, 0) for one in PATH], 0.1)
    assert alone == more
    assert matched(under(NONE, 1), [under(one, 0) for one in PATH], 0.1) is None
    few = [Measured(Hits(one.attack.people[:200], one.attack.hits[:200]), one.natural) for one in PATH]
    found = matched(NONE, few, 0.15)
    assert found is not None and found.difference.clusters == 20
    half = pair(few[1].attack, NONE.attack)
    assert half is not None and found.difference.value == pytest.approx(half.interval.value)


def test_unequal_numbers_of_images_count_by_cell() -> None:
    thin = [Measured(Hits(one.attack.people[::2], one.attack.hits[::2]), one.natural) for one in PATH]
    found, alone = matched(NONE, thin, 0.15), pair(thin[1].attack, NONE.attack)
    assert found is not None and alone is not None
    assert found.difference.value == pytest.approx(alone.interval.value)


# --- two defenses at one natural accuracy


@pytest.mark.parametrize("below", [0.02, 0.1, 0.2])
def test_a_rival_is_read_at_the_same_natural_accuracy(below: float) -> None:
    other = [point(0.8, 0.75, 12), point(0.65, 0.2, 14)]
    found, back = matched(NONE, PATH, below, other), matched(NONE, other, below, PATH)
    mine = np.interp(0.9 - below, [0.6, 0.75, 0.85, 0.9], [0.1, 0.4, 0.7, 0.8])
    theirs = np.interp(0.9 - below, [0.65, 0.8, 0.9], [0.2, 0.75, 0.8])
    assert found is not None and back is not None
    assert found.difference.value == pytest.approx(float(mine - theirs))
    assert found.rate == matched(NONE, PATH, below).rate  # type: ignore[union-attr]
    # Trading places turns the difference around, bounds and all.
    assert back.difference[:3] == pytest.approx([-found.difference[0], -found.difference[2], -found.difference[1]])
    assert back.p == pytest.approx(found.p)


def test_a_defense_is_no_better_than_itself() -> None:
    found = matched(NONE, PATH, 0.1, PATH[::-1])
    assert found is not None and found.difference.value == 0.0 and found.p > 0.99
    assert matched(NONE, PATH, 0.2, [point(0.8, 0.5, 9)]) is None  # the rival does not cost that much


# --- coverage, simulated

# Before it was cut to test size, with 300 draws: .970 to .993 of differences and .967 to .987 of rates.
TRUE_X, TRUE_Y = (0.87, 0.84, 0.80, 0.74), (0.60, 0.50, 0.42, 0.30)


def world(seeds: int, draw: torch.Generator, attacked: tuple[float, ...] = TRUE_Y) -> list[Measured]:
    """Points with these true rates: people differ (half of the variance of a Gaussian threshold), networks too."""
    person = torch.randn(2, PEOPLE, 1, generator=draw)

    def hits(rate: float, images: int, shift: float, own: torch.Tensor, seed: int) -> Hits:
        noise = own * math.sqrt(0.5) + math.sqrt(0.5) * torch.randn(PEOPLE, images, generator=draw)
        limit = float(ndtri(rate)) + shift * math.sqrt(2 * math.pi) * math.exp(float(ndtri(rate)) ** 2 / 2)
        who = torch.arange(PEOPLE).repeat_interleave(images)
        return Hits(who, (noise < limit).flatten(), torch.full_like(who, seed))

    made = []
    for x, y in zip(TRUE_X, attacked, strict=True):
        parts = []
        for seed in range(seeds):
            moved = torch.randn(2, generator=draw) * torch.tensor([0.008, 0.03]) * (seeds > 1)
            parts.append(
                Measured(
                    hits(y, IMAGES, float(moved[1]), person[0], seed), hits(x, HELD, float(moved[0]), person[1], seed)
                )
            )
        made.append(Measured(*(combined([getattr(one, name) for one in parts]) for name in Measured._fields)))
    return made


@pytest.mark.parametrize(("seeds", "below"), [(1, 0.02), (1, 0.10), (3, 0.05)])
def test_coverage(seeds: int, below: float) -> None:
    """The stated 95% hold the true difference and the true rate, though the neighbours change from draw to draw."""
    draw, trials = torch.Generator().manual_seed(seeds), 80
    truth = float(np.interp(TRUE_X[0] - below, TRUE_X[::-1], TRUE_Y[::-1]))
    found = [one for one in (matched(first, rest, below) for first, *rest in _worlds(seeds, draw, trials)) if one]
    gaps = sum(one.difference.low <= truth - TRUE_Y[0] <= one.difference.high for one in found)
    rates = sum(one.rate.low <= truth <= one.rate.high for one in found)
    assert len(found) > 0.75 * trials
    # 95% less two standard errors of 80 trials
    assert gaps >= 0.9 * len(found) and rates >= 0.9 * len(found), (gaps, rates, len(found))


def _worlds(seeds: int, draw: torch.Generator, trials: int) -> list[list[Measured]]:
    return [world(seeds, draw) for _ in range(trials)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_error_rate_of_a_defense_without_effect(seeds: int) -> None:
    draw, trials = torch.Generator().manual_seed(10 + seeds), 80
    wrong = 0
    for _ in range(trials):
        first, *rest = world(seeds, draw, (0.6,) * 4)
        found = matched(first, rest, 0.05)
        wrong += found is not None and (found.p < 0.05 or not found.difference.low <= 0 <= found.difference.high)
    assert wrong <= 0.1 * trials, wrong
