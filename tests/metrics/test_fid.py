"""Fréchet distance: closed forms, parity with matrix square roots, invariances, refusals; more in `verify`."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from features import fixed, normal, pair
from torch import Tensor

from mibench.metrics import fid


def exactly(seed: int, n: int, mean: Tensor, root: Tensor) -> Tensor:
    """n points with this sample mean and the sample covariance root^T root."""
    x = fixed(seed, n, len(mean))
    return torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1) @ root + mean


@pytest.mark.parametrize("n, m", [(40, 60), (9, 60), (60, 9)])
def test_fid_of_gaussians_with_commuting_covariances(n: int, m: int) -> None:
    a, b, shift = fixed(12, 6).abs() + 0.1, fixed(13, 6).abs() + 0.1, fixed(14, 6)
    turn = torch.linalg.qr(fixed(15, 6, 6)).Q
    real, generated = exactly(16, n, torch.zeros_like(a), a.diag()) @ turn, exactly(17, m, shift, b.diag()) @ turn
    expected = float(shift.square().sum() + (a - b).square().sum())
    assert fid.frechet_distance(real, generated) == pytest.approx(expected, rel=1e-8)
    assert fid.frechet_distance(real, real + shift) == pytest.approx(float(shift.square().sum()), rel=1e-8)


def sqrtm_distance(a: Tensor, b: Tensor) -> float:
    """The textbook formula with SciPy's matrix square root; of a singular product, which some versions of SciPy have no
    root of, with the roots of its eigenvalues, whose sum is the same trace."""
    x, y = a.double().numpy(), b.double().numpy()
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    whole = min(len(x), len(y)) > x.shape[1] and np.linalg.matrix_rank(cx @ cy) == x.shape[1]
    trace = np.trace(scipy.linalg.sqrtm(cx @ cy)) if whole else np.sqrt(scipy.linalg.eigvals(cx @ cy) + 0j).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx) + np.trace(cy) - 2 * trace.real)


@pytest.mark.parametrize("n, m, d", [(200, 150, 16), (40, 300, 64), (300, 40, 64), (20, 30, 64), (5, 5, 64)])
def test_fid_agrees_with_the_matrix_square_root(n: int, m: int, d: int) -> None:
    mix = normal(d, d, seed=9) / math.sqrt(d)
    real, generated = normal(n, d) @ mix, 1.3 * normal(m, d, seed=1) @ mix.T + 0.2
    assert fid.frechet_distance(real, generated) == pytest.approx(sqrtm_distance(real, generated), rel=1e-5)


def test_fid_of_features_with_dead_dimensions_agrees_with_the_eigenvalues() -> None:
    real, generated = normal(80, 24), 2 * normal(90, 24, seed=1)
    real[:, :6], generated[:, 3:9] = 0, 0
    assert fid.frechet_distance(real, generated) == pytest.approx(sqrtm_distance(real, generated), rel=1e-5)


@pytest.mark.parametrize(("size", "theirs"), [((120, 90, 16), 3.4166691583625237), ((300, 40, 32), 11.763616179072535)])
def test_fid_is_what_torch_fidelity_said_of_these_features(size: tuple[int, int, int], theirs: float) -> None:
    # fid_statistics_to_metric of torch-fidelity 0.4.0. `mibench verify` asks it anew where it is installed.
    assert fid.frechet_distance(*pair(*size)) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("n, m", [(60, 50), (7, 50), (60, 7), (7, 6)])
def test_fid_ignores_order_rotation_and_the_order_of_its_sides(n: int, m: int) -> None:
    real, generated = normal(n, 12), normal(m, 12, seed=1) + 0.5
    value = fid.frechet_distance(real, generated)
    rotation = torch.linalg.qr(normal(12, 12, seed=2)).Q
    assert fid.frechet_distance(real.flip(0), generated.flip(0)) == pytest.approx(value, rel=1e-8)
    assert fid.frechet_distance(real @ rotation + 3, generated @ rotation + 3) == pytest.approx(value, rel=1e-8)
    assert fid.frechet_distance(generated, real) == pytest.approx(value, rel=1e-8)
    assert fid.frechet_distance(2 * real, 2 * generated) == pytest.approx(4 * value, rel=1e-8)


@pytest.mark.parametrize("n", [6, 60])
def test_fid_of_a_set_with_itself_is_nothing(n: int) -> None:
    real = normal(n, 12)
    assert 0 <= fid.frechet_distance(real, real) < 1e-6


@pytest.mark.parametrize("n", [8, 80])
def test_cached_statistics_hold_mean_and_covariance_and_give_the_same_distance(n: int) -> None:
    real, generated = normal(n, 10), normal(30, 10, seed=1)
    cached = fid.statistics(real)
    assert len(cached.factor) == min(n, 10)
    np.testing.assert_allclose(cached.covariance.numpy(), np.cov(real.numpy(), rowvar=False), atol=1e-12)
    np.testing.assert_allclose(cached.mean.numpy(), real.numpy().mean(0), atol=1e-12)
    whole = fid.frechet_distance(real, generated)
    assert fid.frechet_distance(cached, generated) == pytest.approx(whole, rel=1e-12)
    assert fid.frechet_distance(cached, fid.statistics(generated)) == pytest.approx(whole, rel=1e-12)


def test_duplicating_both_sides_changes_fid_by_the_known_factor() -> None:
    real, generated = pair()
    n, m = len(real), len(generated)
    mean = float((real.mean(0) - generated.mean(0)).square().sum())
    r, g = (
        fid.statistics(side).factor * math.sqrt(factor)
        for side, factor in ((real, (2 * n - 2) / (2 * n - 1)), (generated, (2 * m - 2) / (2 * m - 1)))
    )
    cross = torch.linalg.svdvals(r @ g.T).sum()
    expected = mean + float(r.square().sum() + g.square().sum() - 2 * cross)
    assert fid.frechet_distance(real.repeat(2, 1), generated.repeat(2, 1)) == pytest.approx(expected, rel=1e-9)


def test_fid_says_why_it_has_no_number() -> None:
    good = normal(10, 4)
    for bad in (good[:1], good[:0]):
        with pytest.raises(ValueError, match=r"fid: . image"):
            fid.frechet_distance(good, bad)
        with pytest.raises(ValueError, match=r"fid: . image"):
            fid.frechet_distance(bad, good)
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="fid: 4 of 40 features"):
            fid.frechet_distance(good, good.index_fill(0, torch.tensor([2]), number))
    with pytest.raises(ValueError, match="4 dimensions, generated 3"):
        fid.frechet_distance(good, good[:, :3])
    with pytest.raises(ValueError, match="fid"):
        fid.frechet_distance(good * 1e200, good)
