"""Sparse coding against the lasso and by hand."""

import math
from typing import Any

import pytest
import torch
from defending import assert_refused, build, meta, preset, train
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.nn import functional as F

from mibench import models
from mibench.defenses.sca import SparseCoding, SparseLayer
from mibench.models.base import Classifier, Prepare
from mibench.plugins import capabilities
from mibench.runtime.errors import UserError


def layer_of(
    inputs: int = 3, outputs: int = 16, kernel: int = 5, stride: int = 2, learn: bool = False, **settings: Any
) -> SparseLayer:
    torch.manual_seed(2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return SparseLayer(conv, **({"lam": 0.5, "iterations": 2000, "tau": 20.0, "learn": learn} | settings))


def dictionary(layer: SparseLayer, shape: tuple[int, ...]) -> Tensor:
    """The matrix whose columns are the atoms at their places: what `code -> padded image` is, spelled out."""
    channels, height, width = shape
    down, across = layer.padding
    padded = (channels, height + 2 * down, width + 2 * across)
    with torch.no_grad():
        return F.conv2d(torch.eye(math.prod(padded)).view(-1, *padded), layer.atoms(), None, layer.stride).flatten(1)


def standard(x: Tensor, layer: SparseLayer | None = None) -> Tensor:
    """Mean 0 and variance 1, with the layer's zeros around it."""
    flat = x.flatten(1)
    s = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    down, across = layer.padding if layer else (0, 0)
    return F.pad(s.view_as(x), (across, across, down, down)).flatten(1)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(5, 2, 8), (3, 1, 6), (3, 2, 9), (7, 4, 12)])
def test_a_long_run_ends_at_the_lasso(kernel: int, stride: int, side: int) -> None:
    layer = layer_of(3, 8, kernel, stride)
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        code = layer(x).flatten(1)
    d, s = dictionary(layer, (3, side, side)), standard(x, layer)
    # The conditions of optimality: the rest correlates by lam with the atoms in use, by no more with any other.
    correlation = (s - code @ d.T) @ d
    used = code > 1e-4
    assert 0 < used.float().mean() < 1
    assert (correlation[used] - layer.lam).abs().max() < 1e-3
    assert correlation.max() < layer.lam + 1e-3
    for row, target in zip(code, s, strict=True):
        # sklearn divides the squared error by the number of pixels.
        lasso = Lasso(layer.lam / len(target), positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000)
        solved = torch.tensor(lasso.fit(d.double().numpy(), target.double().numpy()).coef_).float()
        value, best = (0.5 * (target - d @ a).square().sum() + layer.lam * a.sum() for a in (row, solved))
        torch.testing.assert_close(value, best, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(d @ row, d @ solved, rtol=0, atol=5e-3)


def test_one_atom_is_soft_thresholding_by_hand() -> None:
    """One pixel, stride of its own: atoms +-1, so a = max(|s| - lam, 0) on the atom of the pixel's sign."""
    layer = SparseLayer(nn.Conv2d(1, 2, 1), lam=0.25, iterations=400, tau=10.0, learn=False)
    layer.weight.data = torch.tensor([3.0, -0.5]).view(2, 1, 1, 1)
    x = torch.tensor([[[[0.0, 1.0, 0.5, 0.6]]]])
    s = standard(x).view(4)
    with torch.no_grad():
        code = layer(x).view(2, 4)
    torch.testing.assert_close(code, torch.stack([F.relu(s - 0.25), F.relu(-s - 0.25)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("stride", "golden"), [(1, [8.8449, 2.6238, 2.8000, 3.6365]), (2, [3.0263, 1.1867, 2.1437, 2.4074])]
)
def test_codes_are_the_authors_librarys(stride: int, golden: list[float]) -> None:
    """Golden: each atom's summed code by lca-pytorch's LCAConv2D (lambda .5, tau 10, 51 iterations, of which the last
    changes nothing that it returns). It divides by the unbiased deviation."""
    layer = layer_of(3, 4, 3, stride, lam=0.5, iterations=50, tau=10.0)
    layer.weight.data = torch.sin(1.3 * torch.arange(108.0) ** 1.1).reshape(4, 3, 3, 3)
    x = torch.cos(0.7 * torch.arange(108.0) ** 1.2).reshape(1, 3, 6, 6) * 0.5 + 0.5
    s = F.pad((x - x.mean()) / x.std(), (1, 1, 1, 1))
    u = torch.zeros(1, 4, 6 // stride, 6 // stride)
    code = F.relu(layer._advance(u, s, layer.atoms(), 50) - layer.lam)
    torch.testing.assert_close(code.sum(dim=(0, 2, 3)), torch.tensor(golden), atol=2e-4, rtol=0)
    torch.testing.assert_close(layer(x), code, atol=0.02, rtol=0)


def test_the_defaults_are_two_layers_and_five_time_constants() -> None:
    """The authors' lca2 networks: 500 iterations at the library's tau of 100."""
    ours, theirs = SparseCoding(), preset("sca")
    assert ours.layers == theirs.layers == 2
    assert ours.iterations / ours.tau == theirs.iterations / theirs.tau == 5


def test_the_first_steps_by_hand() -> None:
    """u1 = b / tau; u2 = u1 + (b - u1 - (G - I) a1) / tau, a1 = max(u1 - lam, 0)."""
    x = torch.rand(1, 3, 8, 8)
    one, two = layer_of(iterations=1, tau=2.0, lam=0.1), layer_of(iterations=2, tau=2.0, lam=0.1)
    d, s = dictionary(one, (3, 8, 8)), standard(x, one)
    b = s @ d
    u1 = b / 2
    a1 = F.relu(u1 - 0.1)
    u2 = u1 + (b - u1 - (a1 @ d.T @ d - a1)) / 2
    torch.testing.assert_close(one(x).flatten(1), a1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(two(x).flatten(1), F.relu(u2 - 0.1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("learn", [False, True])
def test_atoms_have_unit_norm_before_and_after_training(learn: bool) -> None:
    defense = SparseCoding(iterations=4, train="backprop" if learn else "random")
    model = build("cnn", defense)
    before = [layer.atoms().detach().clone() for layer in model.modules() if isinstance(layer, SparseLayer)]
    train(model, defense)
    after = [layer.atoms() for layer in model.modules() if isinstance(layer, SparseLayer)]
    assert len(after) == 2
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other.flatten(1).norm(dim=1), torch.ones(len(other)))
        assert torch.equal(one, other) != learn


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_a_flat_image_has_no_code_and_finite_gradients(level: float) -> None:
    layer = layer_of(iterations=30)
    x = torch.full((2, 3, 8, 8), level, requires_grad=True)
    code = layer(x)
    assert torch.equal(code, torch.zeros_like(code))
    (gradient,) = torch.autograd.grad(code.sum(), x)
    assert gradient.isfinite().all()


def test_codes_ignore_brightness_and_contrast_and_get_sparser_with_lam() -> None:
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        codes = [layer_of(iterations=200, lam=lam)(x) for lam in (0.1, 0.5, 1.5)]
        torch.testing.assert_close(layer_of(iterations=200)(0.5 * x + 0.2), codes[1], atol=2e-3, rtol=0)
        used = [(code > 0).float().mean() for code in codes]
    assert used[0] > used[1] > used[2]


@pytest.mark.parametrize("iterations", [1, 2, 7, 20])
def test_recomputing_changes_no_gradient(iterations: int) -> None:
    """Against the same steps kept whole, for the image and for the atoms."""
    layer = layer_of(iterations=iterations, tau=3.0, lam=0.1, learn=True)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    s = F.pad(F.layer_norm(x, x.shape[1:]), (2, 2, 2, 2))
    u = torch.zeros(2, 16, 4, 4)
    plain = F.relu(layer._advance(u, s, layer.atoms(), iterations) - 0.1)
    expected = torch.autograd.grad(plain.square().sum(), [x, layer.weight])
    code = layer(x)
    found = torch.autograd.grad(code.square().sum(), [x, layer.weight])
    torch.testing.assert_close(code, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert other.abs().max() > 0


def test_memory_grows_with_the_root_of_the_iterations() -> None:
    """Tensors kept for the backward pass, counted as autograd saves them."""
    kept = []
    for iterations in (25, 400):
        saved: list[int] = []
        layer = layer_of(iterations=iterations)
        x = torch.rand(1, 3, 8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            layer(x).sum()
        kept.append(sum(saved))
    assert kept[1] < 6 * kept[0]


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir"])
def test_the_default_time_constant_is_stable_for_the_small_nets(name: str) -> None:
    torch.manual_seed(0)
    model = SparseCoding().surgery(models.build(name, 3, (3, 64, 64)))
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            x = torch.randn(1, layer.weight.shape[1], 32, 32)
            with torch.no_grad():
                for _ in range(40):
                    b = F.conv2d(x, layer.atoms(), None, layer.stride, layer.padding)
                    (back,) = torch.autograd.functional.vjp(
                        lambda s, layer=layer: F.conv2d(s, layer.atoms(), None, layer.stride, layer.padding), x, b
                    )[1:]
                    largest, x = back.norm() / x.norm(), back / back.norm()
            assert largest < 2 * layer.tau


def test_layers_keep_their_shape_and_each_is_followed_by_a_norm() -> None:
    for name in ("cnn", "resnet", "ir", "vgg16_bn64", "resnet18"):
        plain, model = meta(name), SparseCoding().surgery(meta(name))
        convs = [layer for layer in plain.modules() if isinstance(layer, nn.Conv2d)]
        leaves = [layer for layer in model.modules() if not list(layer.children())]
        places = [place for place, layer in enumerate(leaves) if isinstance(layer, SparseLayer)]
        assert len(places) == 2 and not any(isinstance(layer, nn.Conv2d) for layer in leaves[: places[0]])
        for place, conv in zip(places, convs, strict=False):
            sparse, norm = leaves[place], leaves[place + 1]
            assert isinstance(sparse, SparseLayer) and isinstance(norm, nn.BatchNorm2d)
            assert sparse.weight.shape == conv.weight.shape and norm.num_features == conv.out_channels
            assert (sparse.stride, sparse.padding) == (conv.stride, conv.padding)


def test_half_precision_outside_changes_no_code() -> None:
    layer, x = layer_of(iterations=20), torch.rand(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.float32 and torch.equal(half, layer(x))


@pytest.mark.parametrize(("name", "count"), [("mobilenet_v3_small", 2), ("vit_b_16", 2), ("convnext_tiny", 2)])
def test_sca_is_refused_where_no_plain_convolutions_begin(name: str, count: int) -> None:
    with pytest.raises(UserError, match=r"sca: with layers=2 .*--model.* cnn, .*resnet"), capabilities.naming_others():
        SparseCoding(layers=count).surgery(meta(name))
    assert any(isinstance(layer, SparseLayer) for layer in SparseCoding(layers=1).surgery(meta(name)).modules())


def test_sca_is_refused_where_there_is_no_convolution() -> None:
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(UserError, match="it has 0"):
        SparseCoding(layers=1).surgery(Classifier(Prepare((3, 2, 2), [0.5], [0.5]), trunk, nn.Linear(4, 2), 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, "layers must be 1 or 2"),
        ({"lam": float("nan")}, "lam must be >= 0"),
        ({"lam": float("inf")}, "lam must be >= 0"),
        ({"iterations": 0}, "iterations must be >= 1"),
        ({"tau": 0.5}, "tau must be >= 1"),
        ({"tau": float("nan")}, "tau must be >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    assert_refused("sca", settings, message)
