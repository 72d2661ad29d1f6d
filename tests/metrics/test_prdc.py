"""Precision, recall, density, coverage: definition, conventions, invariances, parity, refusals; more in `verify`."""

import math

import pytest
import torch
from features import fixed, pair
from prdc import compute_prdc
from torch import Tensor

from mibench.metrics import prdc


def loops(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Precision, recall, density, coverage, from their definitions."""
    x, y = real.tolist(), generated.tolist()

    def radius(points: list[list[float]], i: int) -> float:
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    r, g = [radius(x, i) for i in range(len(x))], [radius(y, j) for j in range(len(y))]
    inside = [[math.dist(p, q) < r[i] for q in y] for i, p in enumerate(x)]
    return {
        "precision": sum(any(row[j] for row in inside) for j in range(len(y))) / len(y),
        "recall": sum(any(math.dist(p, q) < g[j] for j, q in enumerate(y)) for p in x) / len(x),
        "density": sum(map(sum, inside)) / (k * len(y)),
        "coverage": sum(map(any, inside)) / len(x),
    }


@pytest.mark.parametrize("n, m, k", [(23, 31, 5), (31, 12, 3), (8, 40, 1), (6, 6, 5)])
def test_prdc_is_its_definition(n: int, m: int, k: int) -> None:
    real, generated = pair(n, m, 3)
    assert prdc.prdc(real, generated, k)._asdict() == pytest.approx(loops(real, generated, k), abs=1e-12)


@pytest.mark.parametrize("n, m, d, k", [(120, 90, 16, 5), (40, 200, 4, 3), (200, 30, 64, 10), (12, 12, 2, 5)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_prdc_is_that_of_the_package_prdc(n: int, m: int, d: int, k: int, kind: torch.dtype) -> None:
    real, generated = (side.to(kind) for side in pair(n, m, d))
    expected = compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
    assert prdc.prdc(real, generated, k)._asdict() == pytest.approx(expected, abs=1e-5)


def test_prdc_of_a_set_with_itself_and_of_sets_far_apart() -> None:
    real, _ = pair()
    assert prdc.prdc(real, real) == (1.0, 1.0, 1.0, 1.0)  # k points strictly inside each ball, its centre included
    assert prdc.prdc(real, real + 1e3) == (0.0, 0.0, 0.0, 0.0)


def test_precision_and_recall_change_places_with_the_sides_and_density_does_not() -> None:
    real, generated = pair(60, 90)
    there, back = prdc.prdc(real, generated), prdc.prdc(generated, real)
    assert (there.precision, there.recall) == (back.recall, back.precision) and there.precision != there.recall
    assert there.density != back.density and there.coverage != back.coverage


def test_k_is_counted_without_the_image_itself() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    for k, radii in ((1, [1, 1, 2, 4]), (2, [3, 2, 3, 6]), (3, [7, 6, 4, 7])):
        assert prdc.manifold(line, k).radii.tolist() == radii
    assert prdc.manifold(torch.cat([line, line]), 1).radii.tolist() == [0] * 8  # a second copy is another image


def test_density_is_divided_by_the_number_of_generated_images() -> None:
    real, generated = pair(60, 40)
    found, twice = prdc.prdc(real, generated), prdc.prdc(real, generated.repeat(2, 1))
    assert (twice.precision, twice.density, twice.coverage) == (found.precision, found.density, found.coverage)
    inside = torch.cdist(real, generated) < prdc.manifold(real).radii[:, None]
    assert found.density == pytest.approx(float(inside.sum()) / (5 * 40))
    assert abs(found.density - float(inside.sum()) / (5 * 60)) > 0.1  # what the field's code divides by


def test_a_point_on_the_edge_of_a_ball_lies_outside() -> None:
    real = torch.tensor([[0.0], [2.0], [10.0]])
    found = prdc.prdc(real, torch.tensor([[-2.0], [50.0], [90.0]]), k=1)
    assert (found.precision, found.density, found.coverage) == (0, 0, 0)


def test_sets_have_no_order_and_no_axes() -> None:
    real, generated = pair(70, 50)
    value, turn = prdc.prdc(real, generated), torch.linalg.qr(fixed(19, 16, 16)).Q
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    assert prdc.prdc(real[order], generated.flip(0)) == pytest.approx(value, rel=1e-9)
    assert prdc.prdc(real @ turn, generated @ turn) == pytest.approx(value, rel=1e-8)


def test_prdc_has_the_same_bits_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fixed(20, 40, 7).float().repeat(2, 1)  # every image twice: distances tie with radii all over
    found = prdc.prdc(real, real[:50], 2)
    for chunk in (1, 77, 500):
        monkeypatch.setattr(prdc, "_CHUNK", chunk)
        assert prdc.prdc(real, real[:50], 2) == found


def test_radii_of_many_images_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, which a product cannot tell apart, and features far from zero, where it is least exact."""
    monkeypatch.setattr(prdc, "_CHUNK", 10_000)
    drawn = torch.Generator().manual_seed(0)
    centres = torch.randn(15, 24, generator=drawn).repeat_interleave(20, dim=0)
    for offset, scale in ((0.0, 1.0), (100.0, 1.0), (0.0, 1e-3)):
        x = ((centres + 0.5 * torch.randn(300, 24, generator=drawn)) * scale + offset).double()
        x[40:80] = x[40]
        for k in (1, 5):
            assert torch.equal(prdc._radii_of_many(x, k), prdc._radii(x, k))


def test_balls_of_many_images_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above; and images that lie exactly on a ball's edge, of sizes whose squares float32 does not hold."""
    monkeypatch.setattr(prdc, "_CHUNK", 10_000)
    drawn = torch.Generator().manual_seed(0)
    centres = torch.randn(15, 24, generator=drawn).repeat_interleave(20, dim=0)
    for offset, scale in ((0.0, 1.0), (100.0, 1.0), (0.0, 1e-3), (0.0, 1e-21), (0.0, 1e30)):
        x = ((centres + 0.5 * torch.randn(300, 24, generator=drawn)).double() * scale) + offset
        x[40:80] = x[40]
        y = torch.cat([x[30:60], x[:90] + 0.3 * scale * torch.randn(90, 24, generator=drawn).double()])
        real, made = prdc.manifold(x), prdc.manifold(y)
        for mine, theirs in zip(prdc._within_many(real, made), prdc._within(real, made), strict=True):
            assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        found = prdc.prdc(real, made)
        monkeypatch.setattr(prdc, "MANY", 100)
        assert prdc.prdc(real, made) == found
        monkeypatch.setattr(prdc, "MANY", 4096)


def test_prdc_ignores_scale_and_place_and_reuses_a_side() -> None:
    real, generated = pair(60, 40)
    found = prdc.prdc(real, generated)
    assert prdc.prdc(4 * real, 4 * generated) == found
    assert prdc.prdc(real + 2, generated + 2) == pytest.approx(found, abs=1e-12)
    assert prdc.prdc(prdc.manifold(real), prdc.manifold(generated)) == found


def test_prdc_refuses_broken_mixed_and_huge_features() -> None:
    real, generated = pair()
    with pytest.raises(ValueError, match="prdc: 16 of 1440 features are NaN"):
        prdc.prdc(real, generated.index_fill(0, torch.tensor([4]), math.nan))
    with pytest.raises(ValueError, match="real features have 16 dimensions, generated 9"):
        prdc.prdc(real, generated[:, :9])
    with pytest.raises(ValueError, match="prdc: the features are too large"):
        prdc.prdc(1e200 * real, generated)
    with pytest.raises(ValueError, match="k = 3, the others' with 5"):
        prdc.prdc(prdc.manifold(real, 3), generated)
