"""KNN distance: its definition pair by pair, invariances, precision, refusals; further laws are checks of `verify`."""

import math

import pytest
import torch
from features import brute_force, faces, fixed
from hypothesis import given, settings
from hypothesis import strategies as st

from mibench.metrics import knn
from mibench.runtime.errors import UserError


def test_knn_is_the_brute_force_minimum() -> None:
    f, y, g, z = faces(23, 31)
    torch.testing.assert_close(knn.knn_distance(f, y, g, z), brute_force(f, y, g, z), rtol=1e-12, atol=0)


def test_leave_one_out_is_the_brute_force_minimum_without_the_image_itself() -> None:
    _, _, g, z = faces(1, 31)
    expected = brute_force(g, z, g, z, skip_self=True)
    torch.testing.assert_close(knn.leave_one_out(g, z), expected, rtol=1e-12, atol=0)
    assert bool((knn.leave_one_out(g, z) > 0).all())


def test_leave_one_out_counts_a_second_copy() -> None:
    g = torch.tensor([[0.0], [0.0], [5.0]])
    assert knn.leave_one_out(g, torch.tensor([0, 0, 0])).tolist() == [0, 0, 25]


def test_between_unit_vectors_it_is_twice_one_minus_the_cosine() -> None:
    y = torch.tensor([0])
    a, b = torch.nn.functional.normalize(fixed(18, 2, 5), dim=1).float()[:, None]
    cosine = float((a.double() * b.double()).sum())
    assert float(knn.knn_distance(a, y, b, y)) == pytest.approx(2 * (1 - cosine), rel=1e-5)  # as FaceNet's distance is


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
def test_knn_does_not_depend_on_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    f, y, g, z = faces(23, 31)
    whole = knn.knn_distance(f, y, g, z)
    monkeypatch.setattr(knn, "_CHUNK", chunk)
    torch.testing.assert_close(knn.knn_distance(f, y, g, z), whole, rtol=1e-14, atol=0)


@given(st.integers(0, 10_000), st.integers(0, 20), st.integers(4, 30))
@settings(max_examples=30, deadline=None)
def test_knn_ignores_order_duplicates_and_translation(seed: int, n: int, m: int) -> None:
    f, y, g, z = faces(n, m)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    whole = knn.knn_distance(f, y, g, z)
    torch.testing.assert_close(knn.knn_distance(f, y, g[order], z[order]), whole)
    torch.testing.assert_close(knn.knn_distance(f, y, torch.cat([g, g]), torch.cat([z, z])), whole)
    torch.testing.assert_close(knn.knn_distance(f + 1, y, g + 1, z), whole)
    torch.testing.assert_close(knn.knn_distance(3 * f, y, 3 * g, z), 9 * whole)


def test_knn_batches_do_not_matter() -> None:
    f, y, g, z = faces(23, 31)
    parts = [knn.knn_distance(f[i : i + 5], y[i : i + 5], g, z) for i in range(0, 23, 5)]
    torch.testing.assert_close(torch.cat(parts), knn.knn_distance(f, y, g, z), rtol=1e-14, atol=0)


def test_knn_keeps_small_distances_between_large_features() -> None:
    f = torch.full((1, 512), 1000.0)
    g = f.clone()
    g[0, 0] += 0.125
    assert knn.knn_distance(f, torch.tensor([0]), g, torch.tensor([0])).tolist() == [0.015625]
    assert knn.knn_distance(f, torch.tensor([0]), f, torch.tensor([0])).tolist() == [0.0]


def test_knn_refuses_a_label_without_reference() -> None:
    f, y, g, z = faces(8, 8)
    with pytest.raises(UserError, match=r"knn: 1 label\(s\) have no reference image: \[2\]"):
        knn.knn_distance(f, y, g[z != 2], z[z != 2])
    with pytest.raises(UserError, match="no other image"):
        knn.leave_one_out(g[:4], z[:4])
    with pytest.raises(UserError, match="no reference image"):
        knn.knn_distance(f, y, g[:0], z[:0])


def test_knn_refuses_features_of_two_models_and_broken_ones() -> None:
    f, y, g, z = faces(8, 8)
    with pytest.raises(ValueError, match="knn: features have 5 dimensions, references 4"):
        knn.knn_distance(f, y, g[:, :4], z)
    with pytest.raises(ValueError, match="knn: 1 of 40 features"):
        knn.knn_distance(f.where(f != f[3, 2], math.nan), y, g, z)


# --- closeness ------------------------------------------------------------------------------------------------------


def test_closeness_is_0_at_a_strangers_distance_and_1_at_a_photographs() -> None:
    squared = torch.tensor([9.0, 4.0, 0.0, 6.25, 16.0], dtype=torch.float64)
    found = knn.closeness(squared, 2.0, 3.0)
    assert found.tolist() == [0.0, 1.0, 3.0, 0.5, -1.0]
    with pytest.raises(ValueError, match=r"photograph is 3\.0 away and a stranger 3\.0; no scale"):
        knn.closeness(squared, 3.0, 3.0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_closeness_does_not_depend_on_the_scale_of_features_and_falls_with_distance(
    distances: list[float], scale: float
) -> None:
    d = torch.tensor(sorted(distances), dtype=torch.float64)
    found = knn.closeness(d.square(), 1.0, 4.0)
    torch.testing.assert_close(knn.closeness((scale * d).square(), scale, 4 * scale), found)
    assert bool((found.diff() <= 0).all())
