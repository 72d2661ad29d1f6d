"""Ratios against plain ports, printed and never asserted. Skipped in normal runs; to measure:

python -m pytest tests/benchmarks -o addopts="" --benchmark-only --benchmark-group-by=group
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import RandomErasing

from mibench import models
from mibench.attacks.gmi import GMI
from mibench.core import Access, Oracle, Split, Workspace
from mibench.defenses import re
from mibench.engine import Engine, device_name, fast_bf16, set_threads
from mibench.metrics.knn import knn_distance
from mibench.models.fold import fold
from mibench.priors.wgan_gp import WganGp, WganPrior
from mibench.rng import Noise

BATCH, STEPS, CLASSES = 16, 3, 100
DEVICE = torch.device(device_name("auto"))


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def measure(benchmark: Any, work: Callable[[], object], rounds: int) -> None:
    def once() -> None:
        work()
        wait()

    set_threads(DEVICE.type)
    benchmark.pedantic(once, rounds=rounds, warmup_rounds=1)


def networks() -> tuple[nn.Module, WganPrior]:
    """VGG16-BN for 64 px, GMI's generator and critic at the published width."""
    torch.manual_seed(0)
    target = models.build("vgg16_bn64", CLASSES, (3, 64, 64)).eval()
    nothing = Split(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    prior = WganGp().build((3, 64, 64), CLASSES, nothing)
    return target.to(DEVICE), prior.eval().to(DEVICE)


# --- one GMI step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.benchmark(group=f"gmi, {STEPS} steps of {BATCH}")
def test_gmi(benchmark: Any, precision: str) -> None:
    if precision == "bf16" and not fast_bf16(DEVICE.type):
        pytest.skip("bf16 is not faster here")
    engine = Engine(DEVICE, precision)
    target, prior = networks()
    target, prior = engine.place(fold(target)), engine.place(prior)  # type: ignore[arg-type]
    target.requires_grad_(False)
    prior.requires_grad_(False)
    oracle = Oracle(target, Access.WHITE_BOX, CLASSES)
    labels = torch.arange(BATCH, device=DEVICE)

    def steps() -> None:
        with engine.autocast():
            GMI(images=1, steps=STEPS)(oracle, prior, labels, 0, Workspace())  # type: ignore[arg-type]

    measure(benchmark, steps, 3)


@pytest.mark.benchmark(group=f"gmi, {STEPS} steps of {BATCH}")
def test_gmi_as_published(benchmark: Any) -> None:
    """In float32, channels first, nothing frozen: weights collect gradients too; losses are read each step."""
    target, prior = networks()
    labels = torch.arange(BATCH, device=DEVICE)

    def steps() -> None:
        z, v = torch.randn(BATCH, 100, device=DEVICE), torch.zeros(BATCH, 100, device=DEVICE)
        for _ in range(STEPS):
            z = z.detach().requires_grad_()
            x = prior.generator(z)
            realism, identity = -prior.critic_network(x).mean(), F.cross_entropy(target(x), labels)
            (realism + 100 * identity).backward()
            before, v = v, 0.9 * v - 0.02 * z.grad
            z = (z.detach() - 0.9 * before + 1.9 * v).clamp(-1, 1)
            float(realism.item() + identity.item())
        prior.generator(z)

    measure(benchmark, steps, 3)


# --- random erasing


@pytest.mark.benchmark(group="random erasing of 256 images")
def test_erasing_in_one_batch(benchmark: Any) -> None:
    x, noise = torch.rand(256, 3, 64, 64, device=DEVICE), Noise(0, torch.arange(256, device=DEVICE))
    measure(benchmark, lambda: re.RandomErasing(p=1.0).transform(x, noise), 20)


@pytest.mark.benchmark(group="random erasing of 256 images")
def test_erasing_one_by_one(benchmark: Any) -> None:
    x, erase = torch.rand(256, 3, 64, 64, device=DEVICE), RandomErasing(p=1.0, scale=(0.1, 0.4))
    measure(benchmark, lambda: torch.stack([erase(image) for image in x]), 20)


# --- KNN distance


def features() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    ours, theirs = torch.arange(50).repeat_interleave(5), torch.arange(50).repeat_interleave(16)
    return torch.randn(len(ours), 128), ours, torch.randn(len(theirs), 128), theirs


@pytest.mark.benchmark(group="knn distance, 250 images to 16 of their person")
def test_knn(benchmark: Any) -> None:
    given = features()
    measure(benchmark, lambda: knn_distance(*given), 10)


@pytest.mark.benchmark(group="knn distance, 250 images to 16 of their person")
def test_knn_by_double_loop(benchmark: Any) -> None:
    x, y, real, labels = features()

    def loop() -> Tensor:
        return torch.stack([
            min((row - other).square().sum() for other, k in zip(real, labels, strict=True) if k == label)
            for row, label in zip(x, y, strict=True)
        ])  # fmt: skip

    measure(benchmark, loop, 1)
