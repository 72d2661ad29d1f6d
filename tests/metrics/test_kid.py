"""Kernel distance: its definition, no bias, the standard error, invariances, refusals; more in `verify`."""

import math

import numpy as np
import pytest
import torch
from features import normal
from torch import Tensor

from mibench.metrics import kid


def double_sum(x: Tensor, y: Tensor) -> float:
    """The unbiased estimator, pair by pair."""

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(kernel(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m)
    return xx + yy - 2 * xy


def test_kid_is_the_explicit_double_sum() -> None:
    real, generated = normal(9, 5), normal(7, 5, seed=1) + 0.3
    assert kid.kernel_distance(real, generated).value == pytest.approx(double_sum(real, generated), rel=1e-10)


def test_kid_is_unbiased_and_so_sometimes_negative() -> None:
    values = torch.tensor(
        [kid.kernel_distance(normal(12, 4, seed=2 * s), normal(9, 4, seed=2 * s + 1)).value for s in range(400)]
    )
    standard_error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 3 * standard_error
    assert float((values < 0).double().mean()) > 0.3


def test_kid_standard_error_is_the_explicit_jackknife() -> None:
    real, generated = normal(8, 3), normal(6, 3, seed=1) + 1
    variance = 0.0
    for side, n in ((0, 8), (1, 6)):
        left = []
        for i in range(n):
            keep = torch.arange(n) != i
            pair = (real[keep], generated) if side == 0 else (real, generated[keep])
            left.append(double_sum(*pair))
        variance += (n - 1) * float(np.var(left))
    assert kid.kernel_distance(real, generated).error == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_kid_standard_error_matches_the_spread_over_data_sets() -> None:
    results = [kid.kernel_distance(normal(40, 3, seed=2 * s), normal(40, 3, seed=2 * s + 1) + 1) for s in range(300)]
    spread = float(torch.tensor([result.value for result in results]).std())
    claimed = float(torch.tensor([result.error for result in results]).square().mean().sqrt())
    assert claimed == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("chunk", [1, 30, 1 << 22])
def test_kid_ignores_chunks_order_rotation_and_the_order_of_its_sides(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, generated = normal(23, 6), normal(11, 6, seed=1) + 0.5
    value, error = kid.kernel_distance(real, generated)
    monkeypatch.setattr(kid, "_CHUNK", chunk)
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    for pair in (
        (real, generated),
        (real.flip(0), generated.flip(0)),
        (generated, real),
        (real @ rotation, generated @ rotation),
    ):
        assert kid.kernel_distance(*pair) == pytest.approx((value, error), rel=1e-9)


def test_kid_refuses_too_few_broken_mixed_and_huge_features() -> None:
    good = normal(10, 4)
    with pytest.raises(ValueError, match="kid: 10 real, 2 generated"):
        kid.kernel_distance(good, good[:2])
    with pytest.raises(ValueError, match="kid: 4 of 40 generated"):
        kid.kernel_distance(good, good.index_fill(0, torch.tensor([1]), math.nan))
    with pytest.raises(ValueError, match="generated 3"):
        kid.kernel_distance(good, good[:, :3])
    with pytest.raises(ValueError, match="kid"):
        kid.kernel_distance(good * 1e200, good)
