"""Laws of the randomness: uniform, normal, independent in every coordinate, and nobody's neighbour's business."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from mibench.runtime import rng
from mibench.runtime.rng import Noise, generator, seed_of, seeded_globals


@pytest.fixture(autouse=True)
def every_generator(type_checks_draw: Callable[[], dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here random's is looked at too."""
    monkeypatch.setattr(rng, "_global_states", type_checks_draw)


N = 20_000
KEYS = torch.arange(N)


def close_to_uniform(sample: torch.Tensor) -> bool:
    return stats.kstest(sample.flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("by", ["keys", "positions", "steps", "seeds"])
def test_uniform_and_normal_along_every_coordinate(by: str) -> None:
    if by == "keys":
        noises, shape = [Noise(3, KEYS)], ()
    elif by == "positions":
        noises, shape = [Noise(3, torch.tensor([5]))], (N,)
    elif by == "steps":
        noises, shape = [Noise(3, torch.tensor([5])).of("step", i) for i in range(800)], ()
    else:
        noises, shape = [Noise(i, torch.tensor([5])) for i in range(800)], ()
    u = torch.cat([noise.uniform(*shape).flatten() for noise in noises])
    g = torch.cat([noise.of("g").normal(*shape).flatten() for noise in noises])
    assert u.min() >= 0 and u.max() < 1
    assert close_to_uniform(u)
    assert stats.kstest(g.double().numpy(), "norm").pvalue > 1e-3


def test_normal_has_the_moments_and_tails_of_a_normal() -> None:
    g = Noise(0, KEYS).normal(25).double().flatten()
    n = len(g)
    assert abs(g.mean()) < 4 / n**0.5
    assert abs(g.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((g**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((g**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for bound in (3.0, 4.0):
        expected = n * 2 * stats.norm.sf(bound)
        assert abs((g.abs() > bound).sum() - expected) < 4 * expected**0.5
    assert g.abs().max() < 6.7


def test_streams_are_independent() -> None:
    """Neighbours in key, position, seed, purpose, step: no correlation, and joint cells equally full (chi-square)."""
    base = Noise(3, KEYS)
    u = base.uniform(3)
    pairs = {
        "keys": (u[:-1, 0], u[1:, 0]),
        "even and odd keys": (u[0::2, 0], u[1::2, 0]),
        "positions": (u[:, 0], u[:, 1]),
        "positions two apart": (u[:, 0], u[:, 2]),
        "seeds": (u[:, 0], Noise(4, KEYS).uniform(1)[:, 0]),
        "purposes": (base.of("a").uniform(1)[:, 0], base.of("b").uniform(1)[:, 0]),
        "steps": (base.of("step", 1).uniform(1)[:, 0], base.of("step", 2).uniform(1)[:, 0]),
        "none and a purpose": (u[:, 0], base.of("a").uniform(1)[:, 0]),
        "key and position": (u[1:, 0], u[:-1, 1]),
        "diagonal of seeds and keys": (u[1:, 0], Noise(4, KEYS).uniform(1)[:-1, 0]),
    }
    for name, (a, b) in pairs.items():
        cells = torch.bincount((a * 16).long() * 16 + (b * 16).long(), minlength=256)
        assert stats.chisquare(cells.numpy()).pvalue > 1e-4, name
        assert abs(torch.corrcoef(torch.stack([a, b]).double())[0, 1]) < 4 / len(a) ** 0.5, name


def test_every_bit_is_fair_and_every_input_bit_moves_half_of_the_output() -> None:
    def bits(words: torch.Tensor) -> torch.Tensor:
        return ((words[:, None] >> torch.arange(64)) & 1).double()

    words = Noise(1, KEYS).bits(1)[:, 0]
    sigma = 0.5 / N**0.5
    assert (bits(words).mean(dim=0) - 0.5).abs().max() < 5 * sigma
    for bit in (0, 1, 7, 31, 62):
        flipped = Noise(1, KEYS ^ (1 << bit)).bits(1)[:, 0]
        assert (bits(words ^ flipped).mean(dim=0) - 0.5).abs().max() < 5 * sigma, bit


def test_no_two_streams_coincide() -> None:
    words = [Noise(seed, torch.arange(200)).of(purpose).bits(20) for seed in (0, 1) for purpose in ("a", "b", 0, 1)]
    assert len(torch.cat(words).unique()) == 8 * 200 * 20


def test_a_batch_equals_its_members_bit_for_bit() -> None:
    keys = torch.tensor([0, 3, -1, 2**62, 3])
    batch = Noise(7, keys).of("view", 2)
    for draw in (lambda noise: noise.bits(9), lambda noise: noise.uniform(3, 4), lambda noise: noise.normal(11)):
        singles = torch.cat([draw(Noise(7, key[None]).of("view", 2)) for key in keys])
        assert torch.equal(draw(batch), singles)
        assert torch.equal(draw(batch)[1], draw(batch)[4])  # equal keys, equal draws
        order = torch.tensor([4, 2, 0])
        assert torch.equal(draw(batch.rows(order)), draw(batch)[order])


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    noise = Noise(7, torch.arange(5))
    assert torch.equal(noise.bits(30)[:, :7], noise.bits(7))


def test_fixed_forgets_the_purpose_and_nothing_else() -> None:
    noise = Noise(7, torch.arange(5))
    assert torch.equal(noise.of("epoch", 3).of("transform").fixed().uniform(4), noise.uniform(4))
    assert not torch.equal(noise.of("epoch", 3).uniform(4), noise.uniform(4))


def test_order_of_purposes_matters() -> None:
    noise = Noise(7, torch.arange(5))
    draws = [noise.of("a").of("b"), noise.of("b").of("a"), noise.of("a", "b"), noise.of("ab")]
    for one, other in itertools.combinations(draws, 2):
        assert not torch.equal(one.bits(1), other.bits(1))


def test_golden_values() -> None:
    """The same numbers on every machine and in every version: results depend on them."""
    assert seed_of("a", 1, 2.5) == 8070418208981732262
    assert Noise(1, torch.tensor([0, 5])).of("view", 3).bits(2).flatten().tolist() == [
        2843806056623173712,
        -5804409880281359723,
        -8246739394776673774,
        6483304977887791090,
    ]
    noise = Noise(1, torch.tensor([0, 5]))
    uniform = [0.217818021774292, 0.4521757960319519, 0.23503714799880981, 0.25077593326568604]
    assert noise.uniform(2).flatten().tolist() == uniform
    normal = [1.745507836341858, -0.670663058757782, -0.9975104331970215, -0.039343561977148056]
    torch.testing.assert_close(noise.normal(2).flatten(), torch.tensor(normal), rtol=1e-6, atol=0)


def test_splitmix_reference() -> None:
    """The mixing function is splitmix64's: its published first outputs from seed 1234567."""
    from mibench.runtime.rng import _GAMMA, _mix

    words = _mix(torch.tensor([1234567]) + _GAMMA * torch.arange(1, 4))
    assert [word % 2**64 for word in words.tolist()] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_seed_of_tells_types_and_boundaries_apart() -> None:
    parts = [(1,), ("1",), (1.0,), (True,), (None,), ("None",), (1, 2), (12,), ("1", "2"), ("12",), (), ("",), ("", "")]
    assert len({seed_of(*one) for one in parts}) == len(parts)
    assert all(0 <= seed_of(*one) < 2**63 for one in parts)


def test_generator_is_the_seed() -> None:
    def draw(*parts: object) -> torch.Tensor:
        return torch.rand(4, generator=generator(*parts))

    assert torch.equal(draw("order", 3), draw("order", 3))
    assert not torch.equal(draw("order", 3), draw("order", 4))
    assert torch.equal(draw("x"), torch.rand(4, generator=torch.Generator().manual_seed(seed_of("x"))))


DRAWS: dict[str, Callable[[], object]] = {
    "random": random.random,
    "numpy": lambda: float(np.random.rand()),
    "torch": lambda: float(torch.rand(())),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_global_generator_is_seeded_its_use_told_and_its_state_put_back(name: str) -> None:
    drawn: list[object] = []
    for before in (1, 2):
        random.seed(before), np.random.seed(before), torch.manual_seed(before)
        expected = [draw() for draw in DRAWS.values()]
        random.seed(before), np.random.seed(before), torch.manual_seed(before)
        with seeded_globals(3, "attack") as used:
            drawn.append(DRAWS[name]())
            assert used == []
        assert used == [name]
        assert [draw() for draw in DRAWS.values()] == expected
    assert drawn[0] == drawn[1] and drawn[0] not in expected
    with seeded_globals(3, "attack") as used:
        Noise(0, torch.arange(3)).normal(2)
        torch.randn(2, generator=generator(1))
    assert used == []
    with seeded_globals(4, "attack"):
        assert DRAWS[name]() != drawn[0]
