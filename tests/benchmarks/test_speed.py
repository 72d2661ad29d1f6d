"""Ratios against plain ports, printed and never asserted. Skipped in normal runs; to measure:

python -m pytest tests/benchmarks -o addopts="" --benchmark-only --benchmark-group-by=group
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import (
    ColorJitter,
    Compose,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
)

from mibench import models
from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.plg import PLG
from mibench.attacks.ppa import PPA
from mibench.core import Access, Attack, AttackContext, Oracle, PriorTrainer, Split
from mibench.defenses import re
from mibench.metrics.knn import knn_distance
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.priors.kedmi import KedmiRecipe
from mibench.priors.plg import Plg
from mibench.priors.wgan_gp import WganGp
from mibench.runtime.engine import Engine, device_name, fast_bf16, set_threads
from mibench.runtime.rng import Noise

BATCH, CLASSES, ROUNDS = 60, 1000, 5
"""The authors' 60 identities at once (KEDMI, PLG-MI) of their 1000."""

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


def spent(work: Callable[[], object]) -> float:
    """Seconds; on a CPU those of this process, so that others on the machine count less."""
    clock = time.process_time if DEVICE.type == "cpu" else time.perf_counter
    begin = clock()
    work()
    wait()
    return clock() - begin


# --- one step of an attack: VGG16-BN for 64 px, the attack's own generator and critic at the published width


def target_and_prior(recipe: PriorTrainer) -> tuple[Classifier, Any]:
    torch.manual_seed(0)
    target = models.build("vgg16_bn64", CLASSES, (3, 64, 64)).eval()
    nothing = Split(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    prior = recipe.build((3, 64, 64), CLASSES, nothing).eval()
    return target.to(DEVICE), prior.to(DEVICE)


def ours(attack: Attack, target: Classifier, prior: Any, precision: str) -> Callable[[], object]:
    """What `mibench attack` does in one step, the last image included."""
    engine = Engine(DEVICE, precision)
    placed: Any = engine.place(copy.deepcopy(prior)).requires_grad_(False)
    network: Any = engine.place(fold(target))
    oracle = Oracle(network, Access.WHITE_BOX, CLASSES)
    labels = torch.arange(BATCH, device=DEVICE)

    def step() -> None:
        with engine.autocast():
            attack(oracle, placed, labels, 0, AttackContext(BATCH))

    return step


Parameters = list[Tensor]
Loss = Callable[[], tuple[Tensor, Tensor]]


def published(
    parameters: Parameters, loss: Loss, update: Callable[[], None], decode: Callable[[], Tensor]
) -> Callable[[], object]:
    """The authors' loop: float32, channels first, nothing frozen, so that weights collect gradients too."""

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        realism, identity = loss()
        (realism + identity).backward()
        update()
        float(realism.detach()), float(identity.detach())  # the progress line
        with torch.no_grad():
            decode()

    return step


def start(size: int) -> Tensor:
    return torch.randn(BATCH, size, device=DEVICE).requires_grad_()


def gmi_as_published(target: Classifier, prior: Any) -> Callable[[], object]:
    z, v, y = start(100), torch.zeros(BATCH, 100, device=DEVICE), torch.arange(BATCH, device=DEVICE)

    def loss() -> tuple[Tensor, Tensor]:
        x = prior.generator(z)
        return -prior.critic_network(x).mean(), 100 * F.cross_entropy(target(x), y)

    @torch.no_grad()
    def update() -> None:
        before = v.clone()
        v.mul_(0.9).sub_(0.02 * z.grad)
        z.add_(1.9 * v - 0.9 * before).clamp_(-1, 1)

    return published([z], loss, update, lambda: prior.generator(z))


def kedmi_as_published(target: Classifier, prior: Any) -> Callable[[], object]:
    """Minibatch discrimination within the attacked batch."""
    mu, log_var = torch.zeros(2, BATCH, 100, device=DEVICE).unbind()
    log_var = torch.ones_like(mu)
    gaussian, y = [mu.requires_grad_(), log_var.requires_grad_()], torch.arange(BATCH, device=DEVICE)
    adam = torch.optim.Adam(gaussian, lr=0.02)

    def decode() -> Tensor:
        return prior.generator(mu + (0.5 * log_var).exp() * torch.randn_like(mu))

    def loss() -> tuple[Tensor, Tensor]:
        x = decode()
        real = torch.logsumexp(prior.judge(x)[1], dim=1)
        return F.softplus(-real).mean(), 100 * F.cross_entropy(target(x), y)

    return published(gaussian, loss, adam.step, decode)


def plg_as_published(target: Classifier, prior: Any) -> Callable[[], object]:
    """Two views, crop and turn one after the other; torchvision draws one of each for the batch, kornia one an image.

    The generator's shortcuts double their input before the 1x1 convolution, and a norm is followed by its affine map.
    """
    z, y, generator = start(128), torch.arange(BATCH, device=DEVICE), prior.generator
    adam = torch.optim.Adam([z], lr=0.1)
    view = Compose(
        [
            RandomResizedCrop(64, (0.8, 1.0), (1.0, 1.0)),
            ColorJitter(0.2, 0.2),
            RandomHorizontalFlip(),
            RandomRotation(5),
        ]
    )

    def norm(layer: Any, x: Tensor, identities: Tensor) -> Tensor:
        x = layer.norm(x)
        return layer.gain[identities][:, :, None, None] * x + layer.bias[identities][:, :, None, None]

    def decode() -> Tensor:
        x = generator.project(z).reshape(BATCH, generator.top, 4, 4)
        for block in generator.blocks:
            inner = block.convs[0](block.grow(F.relu(norm(block.norms[0], x, y))))
            inner = block.convs[1](F.relu(norm(block.norms[1], inner, y)))
            x = inner + block.shortcut(block.grow(x))
        return torch.tanh(generator.last(F.relu(norm(generator.norm, x, torch.zeros_like(y)))))

    def margin(logits: Tensor) -> Tensor:
        best = logits.scatter(1, y[:, None], -1e9).amax(dim=1)
        return (best - logits.gather(1, y[:, None])[:, 0]).mean()

    def loss() -> tuple[Tensor, Tensor]:
        x = decode()
        return margin(target(view(x))), margin(target(view(x)))

    return published([z], loss, adam.step, decode)


def ppa_as_published(target: Classifier, prior: Any) -> Callable[[], object]:
    """The Poincare loss against dense one-hot rows, under one crop for the whole batch."""
    z, y = start(100), torch.arange(BATCH, device=DEVICE)
    adam = torch.optim.Adam([z], lr=0.005, betas=(0.1, 0.1))
    crop = RandomResizedCrop(64, (0.9, 1.0), (1.0, 1.0), antialias=True)

    def loss() -> tuple[Tensor, Tensor]:
        logits = target(crop(prior.generator(z)))
        u = logits / logits.norm(p=1, dim=1, keepdim=True)
        v = (torch.eye(CLASSES)[y.cpu()].to(DEVICE) - 1e-4).clamp(0, 1)
        gap = (u - v).square().sum(dim=1) / ((1 - u.square().sum(dim=1)) * (1 - v.square().sum(dim=1)))
        identity = torch.arccosh(1 + 2 * gap).mean()
        return identity, torch.zeros_like(identity)

    return published([z], loss, adam.step, lambda: prior.generator(z))


STEPS: dict[str, tuple[PriorTrainer, Attack, Callable[[Classifier, Any], Callable[[], object]]]] = {
    "gmi": (WganGp(), GMI(images=1, steps=1), gmi_as_published),
    "kedmi": (KedmiRecipe(), KEDMI(images=1, steps=1), kedmi_as_published),
    "plg": (Plg(), PLG(images=1, steps=1), plg_as_published),
    "ppa": (WganGp(), PPA(images=1, pool=1, candidates=1, steps=1), ppa_as_published),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.benchmark(group=f"one step of an attack, batch {BATCH}")
def test_step(benchmark: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours in both precisions and the published loop by turns; what is printed is the median of the ratios."""
    set_threads(DEVICE.type)
    recipe, attack, port = STEPS[name]
    target, prior = target_and_prior(recipe)
    plain = port(target, prior)
    mine = {"fp32": ours(attack, target, prior, "fp32")}
    if fast_bf16(DEVICE.type):
        mine["bf16"] = ours(attack, target, prior, "bf16")
    for step in (plain, *mine.values()):
        step()
    turns = [(spent(plain), {precision: spent(step) for precision, step in mine.items()}) for _ in range(ROUNDS)]
    benchmark.pedantic(mine[list(mine)[-1]], rounds=1)
    with capsys.disabled():
        for precision in mine:
            ratio = statistics.median(theirs / own[precision] for theirs, own in turns)
            seconds = statistics.median(own[precision] for _, own in turns)
            benchmark.extra_info[precision] = round(ratio, 2)
            print(f"\n{name} {precision}: {seconds:.2f} s a step, {ratio:.2f} times faster than as published", end="")


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
