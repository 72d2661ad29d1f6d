"""Laws of the metrics: closed forms, invariances, conventions, parity with other programs, and what they refuse."""

import dataclasses
import hashlib
import inspect
import math
import pickle
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import lpips
import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from facenet_pytorch import InceptionResnetV1, fixed_image_standardization
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from mibench.metrics import (
    Unavailable,
    accuracy,
    facenet_distance,
    fid,
    inception,
    inputs,
    kid,
    knn,
    lpips_distance,
    weights,
)
from mibench.runtime.errors import UserError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- attack accuracy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_agrees_with_scikit_learn_and_torch_when_no_logits_tie(k: int) -> None:
    logits, labels = normal(300, 9), torch.arange(300) % 9
    hits = accuracy.top_k(logits, labels, k)
    assert torch.equal(hits, (logits.topk(k).indices == labels[:, None]).any(dim=1))
    if k < 9:
        expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k)
        assert float(hits.double().mean()) == pytest.approx(expected)


def test_a_tie_counts_against_the_attack() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2])
    assert accuracy.top_k(logits, labels, 1).tolist() == [False, False, False]
    assert accuracy.top_k(logits, labels, 2).tolist() == [True, False, False]
    assert accuracy.top_k(logits, labels, 3).tolist() == [True, True, True]


def test_a_constant_evaluation_model_never_scores() -> None:
    assert not accuracy.top_k(torch.zeros(40, 8), torch.arange(40) % 8, 7).any()


def test_open_set_success_must_beat_the_distractors_and_closed_set_need_not() -> None:
    logits = torch.tensor([[3.0, 1.0, 9.0], [3.0, 1.0, 2.0]])
    labels = torch.tensor([0, 0])
    assert accuracy.top_k(logits, labels).tolist() == [False, True]
    assert accuracy.top_k(accuracy.closed_set(logits, 2), labels).tolist() == [True, True]


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_top_k_ignores_shifts_and_grows_with_k_and_shrinks_with_classes(seed: int, k: int) -> None:
    logits, labels = normal(20, 7, seed=seed).round(), torch.arange(20) % 4
    hits = accuracy.top_k(logits, labels, k)
    assert torch.equal(hits, accuracy.top_k(2 * logits + 3, labels, k))
    assert bool((hits <= accuracy.top_k(logits, labels, k + 1)).all())
    closed = accuracy.top_k(accuracy.closed_set(logits, 4), labels, min(k, 4))
    assert k > 4 or bool((hits <= closed).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_accuracy_refuses_numbers_that_are_not_finite(bad: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="accuracy: 1 of 6 logits"):
        accuracy.top_k(logits, torch.tensor([0, 1]))


@pytest.mark.parametrize("label", [-1, 3])
def test_accuracy_refuses_labels_that_are_no_class(label: int) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 2"):
        accuracy.top_k(torch.zeros(1, 3), torch.tensor([label]))


def test_accuracy_refuses_impossible_k_and_private_classes() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match="allowed: 1 to 3"):
            accuracy.top_k(torch.zeros(1, 3), torch.tensor([0]), k)
    for classes in (0, 4):
        with pytest.raises(ValueError, match="private classes"):
            accuracy.closed_set(torch.zeros(1, 3), classes)


# --- KNN distance ---------------------------------------------------------------------------------------------------


def brute_force(f: Tensor, y: Tensor, g: Tensor, z: Tensor, skip_self: bool = False) -> Tensor:
    nearest = []
    for i in range(len(f)):
        distances = [
            float(((f[i] - g[j]) ** 2).sum()) for j in range(len(g)) if z[j] == y[i] and not (skip_self and i == j)
        ]
        nearest.append(min(distances))
    return torch.tensor(nearest, dtype=torch.float64)


def faces(n: int, m: int, d: int = 5, classes: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, z = (torch.arange(n) * 7) % classes, (torch.arange(m) * 3) % classes
    return normal(n, d), y, normal(m, d, seed=1), z


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


def test_knn_is_squared_and_looks_only_at_the_same_label() -> None:
    nearest = knn.knn_distance(
        torch.tensor([[0.0, 0.0]]), torch.tensor([1]), torch.tensor([[0.1, 0.0], [3.0, 4.0]]), torch.tensor([0, 1])
    )
    assert nearest.tolist() == [25.0]


def test_knn_takes_reconstructions_first_and_real_images_second() -> None:
    f, y = torch.tensor([[0.0], [10.0]]), torch.tensor([0, 0])
    g, z = torch.tensor([[1.0]]), torch.tensor([0])
    assert knn.knn_distance(f, y, g, z).tolist() == [1, 81]
    assert knn.knn_distance(g, z, f, y).tolist() == [1]
    assert list(inspect.signature(knn.knn_distance).parameters)[2:] == ["reference_features", "reference_labels"]


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


# --- Fréchet distance -----------------------------------------------------------------------------------------------


def exactly(mean: Tensor, root: Tensor, n: int, seed: int = 0) -> Tensor:
    """n points whose sample mean is `mean` and whose sample covariance is root^T root, to rounding."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(dim=0)
    white = torch.linalg.qr(x).Q * math.sqrt(n - 1)
    return white @ root + mean


def sqrtm_distance(a: Tensor, b: Tensor) -> float:
    """The textbook formula with SciPy's matrix square root; of a singular product, which some versions of SciPy have no
    root of, with the roots of its eigenvalues, whose sum is the same trace."""
    x, y = a.double().numpy(), b.double().numpy()
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    whole = min(len(x), len(y)) > x.shape[1] and np.linalg.matrix_rank(cx @ cy) == x.shape[1]
    trace = np.trace(scipy.linalg.sqrtm(cx @ cy)) if whole else np.sqrt(scipy.linalg.eigvals(cx @ cy) + 0j).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx) + np.trace(cy) - 2 * trace.real)


def test_fid_of_equal_covariances_is_the_squared_distance_of_means() -> None:
    real, shift = normal(50, 6), normal(6, seed=3)
    assert fid.frechet_distance(real, real + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_fid_of_diagonal_gaussians_has_a_closed_form() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.5, 4.0]).double(), torch.tensor([3.0, 0.25, 2.0, 1.0]).double()
    m = torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    real = exactly(torch.zeros(4).double(), a.diag(), 40)
    generated = exactly(m, b.diag(), 60, seed=1)
    expected = float(m.square().sum() + (a - b).square().sum())
    assert fid.frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)


def test_fid_golden_value_fixes_the_unbiased_covariance() -> None:
    # Means 1 and 2, variances 2 and 8 (n - 1): 1 + 2 + 8 - 2 sqrt(16) = 3. Dividing by n would give 2.
    value = fid.frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]]))
    assert value == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("n, m, d", [(200, 150, 16), (40, 300, 64), (300, 40, 64), (20, 30, 64), (5, 5, 64)])
def test_fid_agrees_with_the_matrix_square_root(n: int, m: int, d: int) -> None:
    mix = normal(d, d, seed=9) / math.sqrt(d)
    real, generated = normal(n, d) @ mix, 1.3 * normal(m, d, seed=1) @ mix.T + 0.2
    assert fid.frechet_distance(real, generated) == pytest.approx(sqrtm_distance(real, generated), rel=1e-5)


def test_fid_of_features_with_dead_dimensions_agrees_with_the_eigenvalues() -> None:
    real, generated = normal(80, 24), 2 * normal(90, 24, seed=1)
    real[:, :6], generated[:, 3:9] = 0, 0
    assert fid.frechet_distance(real, generated) == pytest.approx(sqrtm_distance(real, generated), rel=1e-5)


@pytest.mark.parametrize("n, m", [(60, 50), (7, 50), (60, 7), (7, 6)])
def test_fid_ignores_order_rotation_and_the_order_of_its_sides(n: int, m: int) -> None:
    real, generated = normal(n, 12), normal(m, 12, seed=1) + 0.5
    value = fid.frechet_distance(real, generated)
    rotation = torch.linalg.qr(normal(12, 12, seed=2)).Q
    assert fid.frechet_distance(real.flip(0), generated.flip(0)) == pytest.approx(value, rel=1e-8)
    assert fid.frechet_distance(real @ rotation + 3, generated @ rotation + 3) == pytest.approx(value, rel=1e-8)
    assert fid.frechet_distance(generated, real) == pytest.approx(value, rel=1e-8)
    assert fid.frechet_distance(2 * real, 2 * generated) == pytest.approx(4 * value, rel=1e-8)
    assert list(inspect.signature(fid.frechet_distance).parameters) == ["real", "generated"]


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


def test_fid_never_answers_zero_when_it_fails() -> None:
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


# --- kernel distance ------------------------------------------------------------------------------------------------


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


def test_kid_golden_value() -> None:
    # Pairs of {0,1,2}: 29/3; of {1,2,3}: 434/3; across: 597/9.
    real, generated = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    assert kid.kernel_distance(real, generated).value == pytest.approx(65 / 3, rel=1e-12)


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
    assert list(inspect.signature(kid.kernel_distance).parameters) == ["real", "generated"]


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


# --- images and weights ---------------------------------------------------------------------------------------------


def test_images_must_lie_in_the_unit_range() -> None:
    good = uniform(2, 3, 4, 4)
    assert torch.equal(inputs.images("fid", good), good)
    assert torch.equal(inputs.images("fid", good[:, :1]), good[:, :1].repeat(1, 3, 1, 1))
    for bad in (2 * good - 1, 255 * good, good + 1e-3):
        with pytest.raises(UserError, match=r"fid: pixels lie in .* allowed: \[0, 1\]"):
            inputs.images("fid", bad.index_fill(0, torch.tensor([1]), float(bad.max()) + 0.1))
    with pytest.raises(ValueError, match="fid: 48 of 96 pixels"):
        inputs.images("fid", good.index_fill(0, torch.tensor([1]), math.nan))
    with pytest.raises(UserError, match="4 channels"):
        inputs.images("fid", uniform(1, 4, 2, 2))


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("MIBENCH_WEIGHTS", raising=False)
    return tmp_path / "torch"


def no_network(*args: object, **kwargs: object) -> None:
    raise AssertionError("touched the network")


@pytest.mark.parametrize(
    "load, name", [(inception.load, "fid"), (lpips_distance.load, "lpips"), (facenet_distance.load, "facenet")]
)
def test_missing_weights_are_a_value_that_says_where_to_get_them(
    load: object, name: str, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    missing = load()
    assert isinstance(missing, Unavailable) and missing.name == name
    assert "not on this machine" in missing.why
    assert "https://" in missing.how and str(torch_home / "hub" / "checkpoints") in missing.how
    assert not torch_home.exists()


def test_weights_are_found_in_the_users_folder_first_and_in_both_caches(
    torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weights.WeightFile(("a.pth", "b.pth"), "https://example.invalid/a.pth", "")
    for folder in (torch_home / "checkpoints", torch_home / "hub" / "checkpoints", tmp_path / "own"):
        folder.mkdir(parents=True)
        (folder / "b.pth").write_bytes(b"")
        if folder.name == "own":
            monkeypatch.setenv("MIBENCH_WEIGHTS", str(folder))
        assert weights.locate("x", file) == folder / "b.pth"
    monkeypatch.setenv("MIBENCH_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere', not a folder"):
        weights.locate("x", file)


def test_a_download_needs_permission_and_leaves_nothing_behind_when_it_fails(torch_home: Path, tmp_path: Path) -> None:
    (tmp_path / "source.pth").write_bytes(b"weights")
    good = weights.WeightFile(("good.pth",), (tmp_path / "source.pth").as_uri(), "")
    bad = weights.WeightFile(("bad.pth",), (tmp_path / "absent.pth").as_uri(), "")
    assert isinstance(weights.locate("x", good), Unavailable)
    failed = weights.locate("x", bad, allow_download=True)
    assert isinstance(failed, Unavailable) and "download of bad.pth failed" in failed.why
    path = weights.locate("x", good, allow_download=True)
    assert isinstance(path, Path) and path.read_bytes() == b"weights"
    assert [p.name for p in path.parent.iterdir()] == ["good.pth"]


class Hostile:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_damaged_foreign_and_hostile_weight_files_are_refused_and_never_executed(tmp_path: Path) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "executed"
    file = weights.WeightFile(("w.pth",), "https://example.invalid/w.pth", "")
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    assert torch.equal(weights.read(path, file)["a"], torch.zeros(1000))
    right = dataclasses.replace(file, sha256=hashlib.sha256(whole).hexdigest()[:8])
    assert list(weights.read(path, right)) == ["a"]
    flipped = bytes(255 - byte if 200 < i < 400 else byte for i, byte in enumerate(whole))
    for content in (b"", b"<html>404</html>", whole[:500], whole[:-300], flipped):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as weights"):
            weights.read(path, file)
        with pytest.raises(UserError, match="not the published file"):
            weights.read(path, right)
    path.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read(path, file)
    torch.save({"a": Hostile(mark)}, path)
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read(path, file)
    assert not mark.exists()
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="holds a list"):
        weights.read(path, file)


# --- judging networks, with random weights in the published format --------------------------------------------------


def random_weights(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict of the model's keys and shapes whose activations neither vanish nor explode."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if value.dim() > 1:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=draw) * math.sqrt(2 / fan_in)
        elif key.endswith(("running_var", "weight")):
            state[key] = torch.rand(value.shape, generator=draw) * 0.5 + 0.75
        else:
            state[key] = torch.randn(value.shape, generator=draw) * 0.1
    return state


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A TORCH_HOME with all three files; removed afterwards, for they are large."""
    home = tmp_path_factory.mktemp("torch")
    hub = home / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (home / "checkpoints").mkdir()
    with torch.device("meta"):
        net = torchvision.models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        face = InceptionResnetV1(classify=True, num_classes=8631)
        alex = torchvision.models.alexnet()
    alex.classifier = torch.nn.Sequential()  # 90% of the file, and no part of LPIPS
    paths = [
        (hub / inception.WEIGHTS.names[0], net),
        (home / "checkpoints" / facenet_distance.WEIGHTS.names[0], face),
        (hub / lpips_distance.WEIGHTS["alex"].names[0], alex),
    ]
    for seed, (path, model) in enumerate(paths):
        torch.save(random_weights(model, seed), path)
    yield home
    for path, _ in paths:
        path.unlink()


@pytest.fixture
def trusting(published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights cannot have the published hash, so it is not asked for here."""
    monkeypatch.setenv("TORCH_HOME", str(published))
    monkeypatch.delenv("MIBENCH_WEIGHTS", raising=False)
    monkeypatch.setattr(inception, "WEIGHTS", dataclasses.replace(inception.WEIGHTS, sha256=""))
    alex = dataclasses.replace(lpips_distance.WEIGHTS["alex"], sha256="")
    monkeypatch.setattr(lpips_distance, "WEIGHTS", {"alex": alex})
    return published


def test_files_with_another_hash_are_refused(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(published))
    with pytest.raises(UserError, match=r"not the published file.*not 6726825d"):
        inception.load()
    with pytest.raises(UserError, match=r"not the published file.*not 7be5be79"):
        lpips_distance.load()


def test_loading_draws_no_random_numbers_and_freezes(trusting: Path) -> None:
    before = torch.get_rng_state()
    for model in (inception.load(), lpips_distance.load(), facenet_distance.load()):
        assert isinstance(model, torch.nn.Module)
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(part.training for part in model.modules())
        assert all(p.device.type == "cpu" for p in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)


class PatchedFunctional:
    """torch.nn.functional as the FID network sees it: the ninth average pool of a pass is a maximum."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        return getattr(torch.nn.functional, name)

    def avg_pool2d(self, x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        self.calls += 1
        if self.calls == 9:
            return torch.nn.functional.max_pool2d(x, kernel_size, stride, padding)
        return torch.nn.functional.avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)


def test_inception_is_torchvisions_network_with_the_other_pools(
    trusting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = inception.load()
    assert isinstance(model, inception.Inception)
    images = uniform(2, 3, 299, 299)
    images[1] *= 0.5
    plain = torchvision.models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    state = torch.load(trusting / "hub" / "checkpoints" / inception.WEIGHTS.names[0], weights_only=True)
    counters = {k: v for k, v in plain.state_dict().items() if k.endswith("num_batches_tracked")}
    plain.load_state_dict({**state, **counters})
    plain.fc = torch.nn.Identity()
    plain.eval()
    with torch.no_grad():
        ours = model(images)
        theirs = plain(2 * images - 1)
        patched = PatchedFunctional()
        monkeypatch.setattr(torchvision.models.inception, "F", patched)
        expected = plain(2 * images - 1)
    assert patched.calls == 9
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert float((ours - theirs).abs().max()) > 0.01 * float(theirs.abs().max())


def test_inception_resizes_without_antialiasing_and_takes_grey_images(trusting: Path) -> None:
    model = inception.load()
    assert isinstance(model, inception.Inception)
    small = uniform(1, 1, 40, 32)
    large = torch.nn.functional.interpolate(small, size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(model(small), model(large.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
        with pytest.raises(UserError, match="inception: pixels lie in"):
            model(2 * small - 1)


def test_facenet_gets_its_own_scale_and_distances_lie_between_unit_vectors(trusting: Path) -> None:
    model = facenet_distance.load()
    assert isinstance(model, facenet_distance.FaceNet)
    images, real = uniform(3, 3, 160, 160), uniform(4, 3, 160, 160, seed=1)
    images[1:] *= 0.3
    y, z = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1, 0])
    path = trusting / "checkpoints" / facenet_distance.WEIGHTS.names[0]
    state = torch.load(path, weights_only=True)
    plain = InceptionResnetV1()
    plain.load_state_dict({k: v for k, v in state.items() if "logits" not in k}, strict=False)
    plain.eval()
    with torch.no_grad():
        e, r = plain(fixed_image_standardization(images * 255)), plain(fixed_image_standardization(real * 255))
        unscaled = plain(images)
    distance = facenet_distance.facenet_distance(model, images, y, real, z)
    torch.testing.assert_close(distance, brute_force(e.double(), y, r.double(), z), rtol=1e-4, atol=1e-6)
    cosine = (e @ r.T)[y[:, None] == z].reshape(3, 2).max(dim=1).values.double()
    torch.testing.assert_close(distance, 2 * (1 - cosine), rtol=1e-3, atol=1e-5)
    assert float((e - unscaled).abs().max()) > 0.01
    assert float(facenet_distance.facenet_distance(model, images, y, images, y).abs().max()) < 1e-9
    batched = facenet_distance.facenet_distance(model, images, y, real, z, batch=2)
    torch.testing.assert_close(batched, distance, rtol=1e-3, atol=1e-6)


def test_lpips_is_the_packages_distance_to_the_nearest_image_of_the_label(trusting: Path) -> None:
    model = lpips_distance.load()
    assert isinstance(model, lpips_distance.Lpips)
    images, real = uniform(3, 3, 64, 80), uniform(4, 3, 64, 80, seed=1)
    images[0] = real[1] * 0.9
    y, z = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1, 0])
    state = torch.load(trusting / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by an old argument
        plain = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for name, parameter in plain.net.named_parameters():
        parameter.data = state["features." + name.partition(".")[2]]
    with torch.no_grad():
        columns = [plain(images, r.expand(3, -1, -1, -1), normalize=True).flatten() for r in real]
    pairs = torch.stack(columns, dim=1)
    expected = torch.stack([pairs[i][z == y[i]].min() for i in range(3)]).double()
    distance = lpips_distance.lpips_distance(model, images, y, real, z)
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-6)
    assert float(distance.min()) > 0
    torch.testing.assert_close(lpips_distance.lpips_distance(model, images, y, real, z, batch=1), distance)
    assert float(lpips_distance.lpips_distance(model, real, z, real, z).abs().max()) == 0


def test_lpips_enlarges_small_images_and_refuses_mixed_sizes(trusting: Path) -> None:
    model = lpips_distance.load()
    assert isinstance(model, lpips_distance.Lpips)
    small, y = uniform(2, 1, 28, 28), torch.tensor([0, 0])
    large = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        lpips_distance.lpips_distance(model, small[:1], y[:1], small[1:], y[1:]),
        lpips_distance.lpips_distance(model, large[:1], y[:1], large[1:], y[1:]),
    )
    with pytest.raises(UserError, match=r"\(1, 28, 28\), references \(1, 64, 64\)"):
        lpips_distance.lpips_distance(model, small, y, large, y)
    with pytest.raises(UserError, match="label 0 has no reference"):
        lpips_distance.lpips_distance(model, small, y, small, y + 1)
    with pytest.raises(UserError, match="unknown LPIPS network 'alexnet'; did you mean 'alex'"):
        lpips_distance.load("alexnet")


def test_weights_of_another_network_are_named_not_loaded(trusting: Path, tmp_path: Path) -> None:
    path = trusting / "checkpoints" / facenet_distance.WEIGHTS.names[0]
    state = torch.load(path, weights_only=True)
    for change in ({"last_linear.weight": torch.zeros(3, 3)}, {"extra": torch.zeros(1)}):
        with torch.device("meta"):
            net = facenet_distance.FaceNet().net
        kept = {k: v for k, v in state.items() if "logits" not in k}
        with pytest.raises(UserError, match=next(iter(change))):
            weights.fill(net, {**kept, **change}, tmp_path / "w.pt")
    with torch.device("meta"):
        net = facenet_distance.FaceNet().net
    with pytest.raises(UserError, match=r"w.pt does not fit InceptionResnetV1: Missing"):
        weights.fill(net, {}, tmp_path / "w.pt")
