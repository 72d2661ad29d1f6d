"""The own-ball gate: its definition image by image, and what it lets through."""

import math

import pytest
import torch
from features import faces, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from mibench.metrics.own_ball import own_ball
from mibench.metrics.prdc import manifold


def test_it_is_the_definition_pair_by_pair() -> None:
    f, y, g, z = faces(40, 30)
    real = manifold(g, 3)
    found = own_ball(f, y, real, z)
    for i in range(40):
        near = False
        for j in range(30):
            radius = sorted(float((g[j] - g[k]).norm()) for k in range(30) if k != j)[2]
            near |= bool(z[j] == y[i]) and float((f[i] - g[j]).norm()) < radius
        assert bool(found[i]) is near
    assert 0 < int(found.sum()) < 40


def test_private_images_lie_in_their_own_balls_and_whoever_is_far_away_in_none() -> None:
    _, _, g, z = faces(1, 30)
    real = manifold(g, 5)
    assert bool(own_ball(g, z, real, z).all())
    assert not bool(own_ball(g + 1000, z, real, z).any())
    assert not bool(own_ball(g, z + 4, real, z).any())  # people without images have no ball


def test_the_ball_of_another_person_does_not_count() -> None:
    """Two people far apart on a line: what lies at one is no image of the other."""
    real = manifold(torch.tensor([[0.0], [1.0], [2.0], [100.0], [101.0], [102.0]]), 2)
    owners = torch.tensor([0, 0, 0, 1, 1, 1])
    x = torch.tensor([[1.0], [1.0], [101.0], [50.0]])
    assert own_ball(x, torch.tensor([0, 1, 1, 0]), real, owners).tolist() == [True, False, True, False]


@given(st.integers(0, 10_000), st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_scale_shift_and_order_do_not_matter(seed: int, scale: float) -> None:
    f, g, z = normal(12, 4, seed=seed), normal(24, 4, seed=seed + 1), torch.arange(24) % 3
    y, order = torch.arange(12) % 3, torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    whole = own_ball(f, y, manifold(g, 5), z)
    assert torch.equal(own_ball(scale * f + 1, y, manifold(scale * g[order] + 1, 5), z[order]), whole)
    wider = own_ball(f, y, manifold(g, 9), z)
    assert bool((wider | ~whole).all())  # a larger ball holds what a smaller one held


def test_broken_features_are_refused() -> None:
    real = manifold(normal(8, 2), 5)
    with pytest.raises(ValueError, match="own ball: 1 of 2 features"):
        own_ball(torch.tensor([[math.inf, 0.0]]).double(), torch.tensor([0]), real, torch.zeros(8, dtype=torch.int64))
