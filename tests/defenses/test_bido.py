"""Bilateral dependency: HSIC and COCO against their definitions."""

import math
from typing import Any

import pytest
import torch
from defending import assert_refused, at_epoch, drawn, labels, pixels, preset, trained, weighted_rows
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mibench import models
from mibench.core import Batch, Defense
from mibench.defenses.bido import BilateralDependency, centred, coco, gaussian, hsic, linear, shrunk, stages


def naive_gaussian(z: Tensor, sigma: float) -> Tensor:
    m, d = z.shape
    k = torch.zeros(m, m, dtype=torch.float64)
    for i in range(m):
        for j in range(m):
            k[i, j] = math.exp(
                -sum((float(a) - float(b)) ** 2 for a, b in zip(z[i], z[j], strict=True)) / (2 * sigma**2 * d)
            )
    return k


def naive_hsic(k: Tensor, other: Tensor) -> float:
    """As published: kernels centred on one side only, inverted as they are, multiplied and traced."""
    m = len(k)
    h = torch.eye(m, dtype=torch.float64) - 1.0 / m
    r = [a.double() @ h @ torch.linalg.inv(a.double() @ h + 1e-5 * m * torch.eye(m)) for a in (k, other)]
    return sum(float(r[0][i, j] * r[1][j, i]) for i in range(m) for j in range(m))


@pytest.mark.parametrize("sigma", [0.5, 5.0])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_hsic_is_its_definition(sigma: float, scale: float) -> None:
    m = 14
    x, z = drawn(m, 6).sigmoid(), scale * drawn(m, 5, seed=1) + 2
    y = F.one_hot(torch.arange(m) % 4, 4)
    forms = [shrunk(centred(gram)) for gram in (gaussian(x, sigma), gaussian(z, sigma), linear(y.float()))]
    kernels = [naive_gaussian(x, sigma), naive_gaussian(z, sigma), (y @ y.T).double()]
    for i, j in ((0, 1), (1, 2), (1, 1)):
        assert float(hsic(forms[i], forms[j])) == pytest.approx(naive_hsic(kernels[i], kernels[j]), rel=2e-3)
    # Several layers at once are each alone.
    stack = shrunk(centred(torch.stack([gaussian(x, sigma), gaussian(z, sigma)])))
    torch.testing.assert_close(hsic(stack, forms[2]), torch.stack([hsic(forms[0], forms[2]), hsic(forms[1], forms[2])]))


def test_hsic_of_a_layer_with_itself_is_its_rank() -> None:
    """Golden: a linear kernel of rank 10 gives 10.000; a Gaussian of any layer less than m - 1."""
    gram = linear(drawn(64, 10))
    form, exact = shrunk(centred(gram)), shrunk(centred(drawn(64, 10).double() @ drawn(64, 10).double().T))
    assert float(hsic(exact, exact)) == pytest.approx(10.0, abs=5e-4)
    assert float(hsic(form, form)) == pytest.approx(10.0, abs=2e-3)  # what float32 rounds beside the ridge
    full = shrunk(centred(gaussian(drawn(64, 30), 5.0)))
    assert 0 < float(hsic(full, full)) < 63


def test_the_papers_penalty_is_the_authors_in_numbers() -> None:
    """Golden: hsic_objective and coco_objective of BiDO/hsic.py (sigma 5, linear labels): .05 X - .5 Y and X - 50 Y."""
    m = 16
    x = (torch.sin(torch.arange(m * 12.0)) * 0.4 + 0.5).reshape(m, 3, 2, 2)
    z = (torch.cos(1.7 * torch.arange(m * 7.0)) * 2).reshape(m, 7)
    batch = Batch(x, F.one_hot(torch.arange(m) % 4).float(), torch.ones(m), m)
    for name, golden in (("paper", -0.22335), ("coco", -2.24016)):
        found = preset("bido", name).penalty(batch, torch.zeros(m, 4), [z], at_epoch())
        assert float(found) == pytest.approx(golden, rel=4e-3), name  # they invert in float32
    scaled = BilateralDependency(0.05 * (m - 1), 10.0).penalty(batch, torch.zeros(m, 4), [z], at_epoch())
    torch.testing.assert_close(scaled, preset("bido").penalty(batch, torch.zeros(m, 4), [z], at_epoch()))


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_dependence_does_not_know_the_order_of_the_batch(measure: str) -> None:
    x, z = drawn(20, 12), drawn(20, 7, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))

    def dependence(a: Tensor, b: Tensor) -> Tensor:
        grams = centred(torch.stack([gaussian(a, 1.0), gaussian(b, 1.0)]))
        return hsic(*shrunk(grams)) if measure == "hsic" else coco(*grams)

    torch.testing.assert_close(dependence(x, z), dependence(x[order], z[order]), rtol=1e-4, atol=0)
    torch.testing.assert_close(dependence(x, z), dependence(z, x), rtol=1e-5, atol=0)
    torch.testing.assert_close(dependence(x, z), dependence(x + 100, z), rtol=1e-2, atol=0)  # nor an offset
    assert dependence(x, torch.cat([x[:, :6], z[:, :1]], 1)) > dependence(x, z)


def test_coco_is_the_frobenius_norm_and_bounds_constrained_covariance() -> None:
    m = 24
    x, z = drawn(m, 6), drawn(m, 5, seed=1)
    h = torch.eye(m, dtype=torch.float64) - 1.0 / m
    product = h @ naive_gaussian(x, 5.0) @ h @ h @ naive_gaussian(z, 5.0) @ h
    singular = torch.linalg.svdvals(product)
    found = float(coco(centred(gaussian(x, 5.0)), centred(gaussian(z, 5.0))))
    assert found == pytest.approx(float(singular.square().sum().sqrt().sqrt() / m), rel=1e-3)
    spectral = float(singular[0].sqrt() / m)
    assert spectral * 1.05 < found <= spectral * m**0.25


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_a_constant_layer_has_no_dependence_and_a_finite_gradient(measure: Any) -> None:
    dead, live = torch.ones(6, 5, requires_grad=True), drawn(6, 5).requires_grad_()
    found = BilateralDependency(1.0, 3.0, measure).penalty(weighted_rows(), drawn(6, 4), [dead], at_epoch())
    assert found is not None and abs(float(found.detach())) < 1e-6
    both = BilateralDependency(1.0, 3.0, measure).penalty(weighted_rows(), drawn(6, 4), [dead, live], at_epoch())
    assert both is not None
    gradients = torch.autograd.grad(both, [dead, live])
    assert torch.equal(gradients[0], torch.zeros(6, 5)) and gradients[1].isfinite().all() and gradients[1].any()


def test_the_penalty_adds_up_from_its_terms_on_the_batchs_own_images() -> None:
    batch, logits = weighted_rows(b=12, clean=8), drawn(12, 4)
    taps = [drawn(12, 5, 4, 4, seed=1), drawn(12, 7, seed=2).bfloat16()]
    x, y = centred(gaussian(batch.x[:8].flatten(1), 5.0)), centred(linear(batch.t[:8]))
    z = [centred(gaussian(tap[:8].flatten(1), 5.0)) for tap in taps]
    on_image, on_label = (sum(hsic(shrunk(one), shrunk(other)) for one in z) for other in (x, y))
    for normalise, scale in ((True, 1 / 7), (False, 1.0)):
        found = BilateralDependency(0.2, 3.0, normalise=normalise).penalty(batch, logits, taps, at_epoch())
        torch.testing.assert_close(found, scale * 0.2 * (on_image - 3.0 * on_label))
    found = BilateralDependency(0.2, 3.0, "coco").penalty(batch, logits, taps, at_epoch())
    torch.testing.assert_close(found, 0.2 * sum(coco(one, x) - 3.0 * coco(one, y) for one in z))
    # Rows of other defenses do not count.
    own = Batch(batch.x[:8], batch.t[:8], batch.w[:8], 8)
    alone = BilateralDependency(0.2, 3.0).penalty(own, logits[:8], [tap[:8] for tap in taps], at_epoch())
    torch.testing.assert_close(alone, BilateralDependency(0.2, 3.0).penalty(batch, logits, taps, at_epoch()))
    assert BilateralDependency(0.0).penalty(batch, logits, [], at_epoch()) is None


@pytest.mark.parametrize(("pool_to", "side"), [(2, 2), (3, 3), (4, 3), (6, 6), (9, 6)])
def test_pooling_averages_wide_maps_only(pool_to: int, side: int) -> None:
    """6 pixels in windows of ceil(6 / pool_to): never more than pool_to a side; vectors stay."""
    wide, vector = drawn(6, 2, 6, 6), drawn(6, 5)
    window = 6 // side
    means = wide.reshape(6, 2, side, window, side, window).mean(dim=(3, 5))
    by_hand = BilateralDependency().penalty(weighted_rows(), drawn(6, 4), [means, vector], at_epoch())
    pooled = BilateralDependency(pool_to=pool_to).penalty(weighted_rows(), drawn(6, 4), [wide, vector], at_epoch())
    torch.testing.assert_close(pooled, by_hand)


class Watch(TorchDispatchMode):
    """Notes whatever would make the host wait for a device, or send it something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        moved = name == "_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device)
        waits = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "lift_fresh", "_linalg_check_errors")
        if moved or name in waits:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_the_penalty_stays_on_the_device(measure: Any) -> None:
    """The reference moves matrices to the CPU; here nothing is read back, as the meta device proves, nor moved."""
    defense = BilateralDependency(1.0, measure=measure, pool_to=2)
    for device in ("cpu", "meta"):
        with torch.device(device):
            batch = Batch(torch.rand(6, 3, 8, 8), torch.eye(6), torch.ones(6), 6)
            tap = torch.rand(6, 2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
            logits = torch.rand(6, 6)
        with Watch() as watch:
            found = defense.penalty(batch, logits, [tap], at_epoch())
            assert found is not None
            found.backward()
        assert found.device.type == device and tap.grad is not None and watch.seen == []
    with Watch() as watch:
        torch.linalg.cholesky(torch.eye(3))
        torch.ones(1).item()
    assert len(watch.seen) == 2  # the watch sees


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn", ["stage1", "stage2", "stage3", "stage4"]),
        ("resnet", ["stem", "stage1", "stage2", "stage3"]),
        ("ir", ["stem", "stage1", "stage2", "stage3", "stage4"]),
        ("vgg16_bn64", [f"convolutions.{place}" for place in (6, 13, 23, 33, 43)]),
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("vgg16_bn", [f"features.{place}" for place in (6, 13, 23, 33, 43)]),
        (
            "densenet121",
            [
                f"features.{part}"
                for part in (
                    "denseblock1",
                    "transition1",
                    "denseblock2",
                    "transition2",
                    "denseblock3",
                    "transition3",
                    "denseblock4",
                )
            ],
        ),
        ("vit_b_16", []),
    ],
)
def test_hidden_layers_of_every_architecture(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        model = models.build(name, 10, (3, 64, 64))
    paths = {id(module): path for path, module in model.trunk.named_modules()}
    assert [paths[id(stage)] for stage in stages(model.trunk)] == expected
    assert list(BilateralDependency().taps(model)) == [*stages(model.trunk), model.trunk]
    assert list(BilateralDependency(0.0).taps(model)) == []


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_descending_the_penalty_moves_each_dependence_where_it_should(measure: Any) -> None:
    """Free codes of 12 images: each term alone lowers what they tell of the image, raises what of the label."""
    batch, start = weighted_rows(b=12, clean=12), drawn(12, 5)
    image, label = gaussian(batch.x.flatten(1), 5.0), linear(batch.t)

    def dependence(z: Tensor, other: Tensor) -> float:
        grams = centred(torch.stack([gaussian(z, 5.0), other]))
        return float(hsic(*shrunk(grams)) if measure == "hsic" else coco(*grams))

    def moved(defense: BilateralDependency) -> Tensor:
        z = start.clone().requires_grad_()
        descent = torch.optim.Adam([z], lr=0.03)
        for _ in range(30):
            descent.zero_grad()
            defense.penalty(batch, drawn(12, 4), [z], at_epoch()).backward()
            descent.step()
        return z.detach()

    assert dependence(moved(BilateralDependency(1.0, 0.0, measure)), image) < 0.9 * dependence(start, image)
    assert dependence(moved(BilateralDependency(1e-6, 1e6, measure)), label) > 1.1 * dependence(start, label)


def test_training_moves_each_dependence_where_it_should() -> None:
    """The same through a whole training: features of the images it saw. HSIC with three labels is 2 of 2 anyway."""

    def dependence(*stack: Defense) -> tuple[float, float]:
        z = centred(gaussian(trained(*stack, epochs=4).features(pixels()).detach(), 5.0))
        x, y = centred(gaussian(pixels().flatten(1), 5.0)), centred(linear(F.one_hot(labels()).float()))
        return float(hsic(shrunk(z), shrunk(x))), float(coco(z, y))

    plain = dependence()
    assert dependence(BilateralDependency(5.0, 0.0))[0] < 0.9 * plain[0]
    assert dependence(BilateralDependency(1e-3, 1e5, "coco"))[1] > 1.1 * plain[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"lambda_x": -0.1},
        {"lambda_x": float("nan")},
        {"ratio": -1.0},
        {"ratio": float("nan")},
        {"sigma": 0.0},
        {"sigma": float("nan")},
        {"pool_to": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("bido", settings, next(iter(settings)))


def test_the_papers_settings() -> None:
    assert preset("bido") == BilateralDependency(0.05, 10.0, "hsic", 5.0, normalise=False)
    assert preset("bido", "coco") == BilateralDependency(1.0, 50.0, "coco", 5.0)
