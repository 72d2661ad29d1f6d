"""A table of this machine: what one step of an attack and one image of a training take, beside plain loops."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from mibench import models
from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.plg import PLG
from mibench.attacks.ppa import PPA
from mibench.core import Access, Attack, AttackContext, Defense, Oracle, PriorTrainer, Split
from mibench.defenses.re import RandomErasing
from mibench.experiments.bench import plain
from mibench.experiments.bench.machine import by_turns, floating_point, memory, middle, peak
from mibench.experiments.bench.plain import Plain
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.priors.kedmi import KedmiRecipe
from mibench.priors.plg import Plg
from mibench.priors.wgan_gp import WganGp
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit

__all__ = ["ATTACKS", "Row", "attack_rows", "epoch_of", "peaks", "step_of", "training_rows"]

PEOPLE, BATCH = 1000, 60
"""The published setting of 64 px: 60 of 1000 identities at once (KEDMI, PLG-MI)."""

IMAGES, KNOWN = 960, 100
"""Of the training rows: ten steps of 96 images."""


@dataclass(frozen=True)
class Row:
    """What a piece of work takes here.

    Args:
        what: The work.
        seconds: Of one step; on a CPU of all cores together. Median over the turns.
        images: A second.
        flops: Floating-point operations a second; None where they were not counted.
        share: The same as a share of the machine's measured peak in that precision.
        memory: Bytes at most beyond what stood there before; None where the system does not tell.
        ratio: Plain loop's seconds divided by these, turn by turn: median, least, most; None without a plain loop.
    """

    what: str
    seconds: float
    images: float
    flops: float | None
    share: float | None
    memory: int | None
    ratio: tuple[float, float, float] | None


Make = Callable[[Classifier, Any, Tensor, Tensor], Plain]
ATTACKS: dict[str, tuple[PriorTrainer, Attack, Make]] = {
    "gmi": (WganGp(), GMI(images=1, steps=1), plain.gmi),
    "kedmi": (KedmiRecipe(), KEDMI(images=1, steps=1), plain.kedmi),
    "plg": (Plg(), PLG(images=1, steps=1), plain.plg),
    "ppa": (WganGp(), PPA(images=1, pool=1, candidates=1, steps=1), plain.ppa),
}
"""Attack -> the published prior at its width, the attack cut down to a step, the plain loop."""


def step_of(
    attack: Attack,
    target: Classifier,
    prior: Any,
    people: int,
    engine: Engine,
    classes: int = PEOPLE,
    public: Split | None = None,
) -> Callable[[], object]:
    """What `mibench attack` does: of one restart for each of so many people, the last image included."""
    placed: Any = engine.place(prior).requires_grad_(False)
    network: Any = engine.place(fold(target))
    oracle = Oracle(network, Access.WHITE_BOX, classes)
    labels = torch.arange(people, device=engine.device)

    def work() -> object:
        with engine.autocast():
            return attack(oracle, placed, labels, 0, AttackContext(people, public=public))

    return work


def peaks(device: torch.device, precisions: Sequence[str]) -> dict[str, float]:
    """Precision -> floating-point operations a second at most, see `peak`."""
    return {precision: peak(device, _dtype(precision)) for precision in precisions}


def attack_rows(
    device: torch.device, most: Mapping[str, float], turns: int = 3, only: Sequence[str] = ()
) -> Iterator[Row]:
    """One step of each attack on VGG16-BN at 64 px: 60 people of 1000, the attack's own generator and critic.

    Args:
        device: Where.
        most: `peaks` in the precisions of ours; the authors' loop is float32.
        turns: How often each is timed.
        only: Names of `ATTACKS`; all if empty.
    """
    for name in only or ATTACKS:
        recipe, attack, make = ATTACKS[name]
        torch.manual_seed(0)
        shape = (3, 64, 64)
        target = models.build("vgg16_bn64", PEOPLE, shape).eval().to(device)
        nothing = Split(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
        prior: Any = recipe.build(shape, PEOPLE, nothing).eval().to(device)
        start = torch.randn(BATCH, prior.latent_dim, device=device)
        loop = make(target, prior, torch.arange(BATCH, device=device), start)

        def authors(loop: Plain = loop) -> None:
            loop.step()
            loop.images()

        for network in (target, prior):
            network.requires_grad_(False)
        operations = floating_point(authors)  # only what the attack needs: no gradients of weights
        for network in (target, prior):
            network.requires_grad_(True)
        works = [step_of(attack, target, copy.deepcopy(prior), BATCH, Engine(device, one)) for one in most]
        ours = dict(zip(most, works, strict=True))
        yield from _rows(f"{name} step", authors, ours, operations, BATCH, most, turns, device)


def training_rows(device: torch.device, most: Mapping[str, float], turns: int = 3) -> Iterator[Row]:
    """An epoch of 960 images of 64 px: the default target without a defense and with random erasing, beside a loop
    that augments image by image, with the same optimiser; and what the erasing alone takes of it."""
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 64, 64), dtype=torch.uint8, generator=drawn)
    split = Split(images, torch.arange(IMAGES) % KNOWN)
    recipe = Training(epochs=1, batch=96, lr=0.1, optimizer="muon", schedule="linear")
    for name, defenses in (("none", ()), ("re", (RandomErasing(),))):
        works = {one: epoch_of("cnn", KNOWN, split, recipe, defenses, Engine(device, one)) for one in most}
        authors = _plain_epoch(split, recipe, device, name == "re")
        operations = floating_point(authors)
        epochs = list(_rows(f"{name} epoch", authors, works, operations, IMAGES, most, turns, device))
        yield from epochs
    seconds = middle(by_turns([_erasing(split, recipe.batch, device)], device, turns)[0])[0]
    for precision, epoch in zip(most, epochs, strict=True):
        share = f"{seconds / epoch.seconds:.1%} of that epoch"
        yield Row(f"re alone, {precision}: {share}", seconds, IMAGES / seconds, None, None, None, None)


def _erasing(split: Split, batch: int, device: torch.device) -> Callable[[], object]:
    """What random erasing adds to an epoch: every image once, in batches; the same in every precision."""
    engine = Engine(device, "fp32")
    parts = [engine.images(part) for part in split.images.split(batch)]
    noises = [Noise(0, part.to(device)) for part in torch.arange(len(split)).split(batch)]
    erasing = RandomErasing()

    def epoch() -> None:
        for x, noise in zip(parts, noises, strict=True):
            erasing.transform(
                x, noise
            )  # dropped, as in a training: to keep all would be to ask for new memory each time

    return epoch


def epoch_of(
    architecture: str, classes: int, split: Split, recipe: Training, defenses: Sequence[Defense], engine: Engine
) -> Callable[[], object]:
    """What `mibench train` does with so many images: its epochs, from a network without weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        channels, height, width = split.images.shape[1:]
        network: Any = models.build(architecture, classes, (channels, height, width))
        for defense in defenses:
            network = defense.surgery(network)
    return lambda: fit(network, split, classes, recipe, engine, 0, Silent(), "", defenses, public=split)


def _plain_epoch(split: Split, recipe: Training, device: torch.device, erase: bool) -> Callable[[], object]:
    """One image after the other through torchvision's transforms, as a data loader without workers does."""
    torch.manual_seed(0)
    network = models.build("cnn", KNOWN, (3, 64, 64)).to(device)
    optimizer = recipe.optimizer_for(network)
    parts = [
        v2.RandomResizedCrop(64, (0.85, 1.0), (1.0, 1.0)),
        v2.ColorJitter(0.2, 0.2, 0.1, 0.1),
        v2.RandomHorizontalFlip(),
    ]
    view = v2.Compose([*parts, v2.RandomErasing(1.0, (0.1, 0.4), (1.0, 1.0))] if erase else parts)

    def epoch() -> None:
        network.train()
        for chosen in torch.randperm(len(split)).split(recipe.batch):
            x = torch.stack([view(split.images[place].float() / 255) for place in chosen]).to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), split.labels[chosen].to(device))
            loss.backward()
            optimizer.step()
            float(loss.detach())

    return epoch


def _rows(
    what: str,
    authors: Callable[[], object],
    works: dict[str, Callable[[], object]],
    operations: int,
    images: int,
    most: Mapping[str, float],
    turns: int,
    device: torch.device,
) -> Iterator[Row]:
    taken = [memory(work, device) for work in works.values()]
    plain_times, *times = by_turns([authors, *works.values()], device, turns)
    for precision, own, held in zip(works, times, taken, strict=True):
        seconds = middle(own)[0]
        yield Row(
            f"{what}, {precision}",
            seconds,
            images / seconds,
            operations / seconds,
            operations / seconds / most[precision],
            held,
            middle([theirs / ours for theirs, ours in zip(plain_times, own, strict=True)]),
        )


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
