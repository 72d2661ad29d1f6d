"""Laws of power: closed forms, inverses of one another, and what simulated experiments find."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from mibench.stats.power import components, detectable, identities_needed, seeds_needed, spread
from mibench.stats.significance import least_p, paired_test

Z = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_the_textbook_number() -> None:
    # (1.96 + .8416)^2 = 7.849 for a difference of one standard deviation, 31.4 for half, 785 for a tenth.
    assert pytest.approx(7.8489, abs=1e-4) == Z**2
    assert [identities_needed(1.0, size) for size in (1.0, 0.5, -0.5, 0.1)] == [8, 32, 32, 785]
    assert identities_needed(0.4, 0.2, alpha=0.01, power=0.9) == math.ceil(
        (scipy.stats.norm.ppf(0.995) + scipy.stats.norm.ppf(0.9)) ** 2 * 4
    )


def test_what_is_detectable_needs_just_as_many_identities() -> None:
    for count in (6, 20, 100, 1000):
        size = detectable(0.3, count)
        assert size == pytest.approx(Z * 0.3 / math.sqrt(count))
        assert identities_needed(0.3, size) == count
        assert identities_needed(0.3, 0.99 * size) > count


def test_as_many_as_a_sign_flip_test_can_use_at_all() -> None:
    assert identities_needed(0.1, 1.0) == 6 and least_p(6) < 0.05 <= least_p(5)
    assert identities_needed(0.01, 1.0, alpha=0.001) == 11 and least_p(11) < 0.001 <= least_p(10)
    assert math.isnan(detectable(0.1, 5))


def test_what_does_not_vary_says_nothing() -> None:
    assert math.isnan(identities_needed(0.0, 0.5)) and math.isnan(detectable(0.0, 20))
    assert math.isnan(identities_needed(math.nan, 0.5)) and math.isnan(identities_needed(0.3, math.nan))
    assert identities_needed(0.3, 0.0) == math.inf
    assert math.isnan(spread(torch.ones(1)))


def test_the_spread_of_differences_and_why_pairing_helps() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.random(40), rng.random(40)
    sds = [spread(torch.from_numpy(a - (shared * a + (1 - shared) * noise))) for shared in (0.0, 0.5, 0.9)]
    assert sds[0] == pytest.approx(float(np.std(a - noise, ddof=1)))
    # The more both agree on who is easy, the fewer identities.
    needs = [identities_needed(sd, 0.1) for sd in sds]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == 3


# --- simulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.5, 0.65])
def test_the_test_finds_four_of_five(size: float) -> None:
    count = int(identities_needed(1.0, size))
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        difference = torch.from_numpy(rng.normal(size, 1.0, count))
        found += paired_test(difference, torch.zeros(count), torch.arange(count), 499).p < 0.05
    # The normal approximation promises a little much where identities are few (19 for .65).
    assert 0.72 <= found / 400 <= 0.86


def test_the_test_of_hits_finds_four_of_five() -> None:
    rng, images = np.random.default_rng(0), 5

    def draw(count: int) -> tuple[Tensor, Tensor]:
        ease = rng.beta(2, 2, (count, 1))
        a, b = rng.random((count, images)) < ease, rng.random((count, images)) < np.clip(ease - 0.15, 0, 1)
        return torch.from_numpy(a), torch.from_numpy(b)

    a, b = draw(5000)
    sd = spread(a.double().mean(1) - b.double().mean(1))
    count = int(identities_needed(sd, float(a.double().mean() - b.double().mean())))
    found = 0
    for _ in range(400):
        a, b = draw(count)
        found += paired_test(a.reshape(-1), b.reshape(-1), torch.arange(count).repeat_interleave(images), 499).p < 0.05
    assert 0.7 <= found / 400 <= 0.86


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_components_by_hand() -> None:
    # Rows are seeds: purely additive, so nothing is left; means 1 and 3 of seeds, 1 2 3 of identities.
    found = components(torch.tensor([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]))
    assert found is not None and found == pytest.approx((2.0, 1.0, 0.0, 2, 3))
    assert components(torch.ones(1, 5)) is None and components(torch.ones(5, 1)) is None


def test_components_are_those_of_the_two_way_table() -> None:
    x = np.random.default_rng(0).random((3, 4))
    found = components(torch.from_numpy(x))
    rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    ms_rest = (rest**2).sum() / 6
    assert found is not None and found.rest == pytest.approx(ms_rest)
    assert found.seed == pytest.approx(max(0, x.mean(1).var(ddof=1) - ms_rest / 4))
    assert found.identity == pytest.approx(max(0, x.mean(0).var(ddof=1) - ms_rest / 3))


def world(rng: np.random.Generator, seeds: int, people: int, size: float) -> np.ndarray:
    """Differences with standard deviations .1 between seeds, .2 between identities, .3 besides."""
    return (
        size
        + 0.1 * rng.normal(size=(seeds, 1))
        + 0.2 * rng.normal(size=(1, people))
        + 0.3 * rng.normal(size=(seeds, people))
    )


def test_components_are_found_again() -> None:
    rng = np.random.default_rng(0)
    drawn = [components(torch.from_numpy(world(rng, 6, 30, 0.0))) for _ in range(300)]
    means = [float(np.mean([one[place] for one in drawn if one is not None])) for place in range(3)]
    assert means == pytest.approx([0.01, 0.04, 0.09], rel=0.12)


def test_the_seeds_needed_give_the_variance_that_is_allowed() -> None:
    rng = np.random.default_rng(1)
    known = components(torch.from_numpy(world(rng, 400, 400, 0.0)))
    assert known is not None
    true = known._replace(seed=0.01, identity=0.04, rest=0.09, seeds=3, identities=50)
    size = 0.15
    count = int(seeds_needed(true, size))
    assert count == math.ceil((0.01 + 0.09 / 50) / ((size / Z) ** 2 - 0.04 / 50))
    # A z test with these many seeds and 50 people finds it four times out of five.
    error = math.sqrt(0.01 / count + 0.04 / 50 + 0.09 / (50 * count))
    found = [abs(world(rng, count, 50, size).mean()) > 1.96 * error for _ in range(1000)]
    assert 0.77 <= np.mean(found) <= 0.9
    fewer = math.sqrt(0.01 / (count - 1) + 0.04 / 50 + 0.09 / (50 * (count - 1)))
    assert size / fewer < Z


def test_seeds_do_not_replace_identities() -> None:
    known = components(torch.from_numpy(world(np.random.default_rng(0), 5, 10, 0.2)))
    assert known is not None
    wide = known._replace(identity=4.0)
    assert seeds_needed(wide, 0.1) == math.inf and seeds_needed(known._replace(seed=0.0, rest=0.0), 9.0) == 1


# --- refusals -------------------------------------------------------------------------------------------------------


def test_impossible_settings_are_refused() -> None:
    for alpha, power in ((0.0, 0.8), (1.0, 0.8), (0.05, 1.0), (0.05, 0.2)):
        with pytest.raises(ValueError, match="alpha"):
            identities_needed(1.0, 1.0, alpha, power)
    with pytest.raises(ValueError, match="of 0 identities"):
        spread(torch.zeros(0))
    with pytest.raises(ValueError, match="NaN"):
        components(torch.tensor([[0.0, math.nan], [0.0, 0.0]]))
