"""Parts beside plain loops (`mibench bench` times attacks and trainings). Skipped in normal runs; to measure:

python -m pytest tests/benchmarks -o addopts="" --benchmark-only --benchmark-group-by=group
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomErasing

from mibench.defenses import re
from mibench.metrics.knn import knn_distance
from mibench.runtime.engine import device_name, set_threads
from mibench.runtime.rng import Noise

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
        return torch.stack(
            [
                min((row - other).square().sum() for other, k in zip(real, labels, strict=True) if k == label)
                for row, label in zip(x, y, strict=True)
            ]
        )

    measure(benchmark, loop, 1)
