"""Time to equal attack accuracy: the authors' steps in their loop against ours, on the same target, prior and people.

A step that is cheaper is worth nothing if more of them are needed. What counts is when as much has been reached: the
seconds until 90% of the accuracy at which the authors' loop ends is reached, and not lost again afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mibench.attacks.kedmi import KEDMI
from mibench.attacks.plg import PLG
from mibench.attacks.ppa import PPA
from mibench.core import Access, Attack, AttackContext, Dataset, Oracle
from mibench.experiments.bench import plain
from mibench.experiments.bench.machine import spent
from mibench.experiments.bench.plain import Plain
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.plugins import registry
from mibench.runtime.engine import Engine
from mibench.stages import artifacts
from mibench.zoo import Shelf

__all__ = ["RACES", "Equal", "Race", "equal_accuracy", "reached"]

ENOUGH = 0.9


@dataclass(frozen=True)
class Race:
    """An attack against its authors' loop.

    Args:
        prior: Of the zoo, or one that ships.
        attack: Ours.
        make: Theirs.
        steps: Of their configuration.
        marks: Steps of ours after which it is judged.
    """

    prior: str
    attack: Attack
    make: Callable[[Classifier, Any, Tensor, Tensor], Plain]
    steps: int
    marks: tuple[int, ...]


RACES = {
    "ppa": Race(
        "dcgan", PPA(images=1, candidates=1, pool=2000, lr=0.03, betas=(0.9, 0.999)), plain.ppa, 50, (5, 10, 20, 35, 50)
    ),
    "plg": Race("zoo:plg-none", PLG(images=1), plain.plg, 600, (10, 20, 40, 60, 100, 200)),
    "kedmi": Race("zoo:kedmi-none", KEDMI(images=1, lr=0.05, log_var=-2.0), plain.kedmi, 1500, (20, 50, 100, 200, 400)),
}
"""Ours with the rates of its preset `quick`, theirs with their own."""


@dataclass(frozen=True)
class Equal:
    """How long both take to be as good.

    Args:
        attack: Its name.
        precision: Of ours; theirs is float32.
        theirs: (steps, seconds, attack accuracy) of the authors' loop at its marks.
        ours: The same of ours; each mark is a run of its own.
        seconds: Theirs and ours until 90% of the accuracy at which theirs ends is reached and kept; None: never.
    """

    attack: str
    precision: str
    theirs: tuple[tuple[int, float, float], ...]
    ours: tuple[tuple[int, float, float], ...]
    seconds: tuple[float | None, float | None]

    @property
    def ratio(self) -> float | None:
        """How many times sooner ours is there; None if one never is."""
        first, second = self.seconds
        return None if first is None or second is None else first / second


def reached(curve: Sequence[tuple[int, float, float]], least: float) -> float | None:
    """Seconds of the first mark from which on the accuracy is never below `least`; None if there is none."""
    since: float | None = None
    for _, seconds, accuracy in curve:
        if accuracy < least:
            since = None
        elif since is None:
            since = seconds
    return since


def equal_accuracy(name: str, people: int, device: torch.device, precisions: Sequence[str]) -> list[Equal]:
    """Race one attack on the zoo's undefended target; judged by the zoo's evaluation model `resnet`, top 1.

    Args:
        name: Of `RACES`.
        people: How many are attacked, from the first.
        device: Of both.
        precisions: Of ours, each a race against the same run of theirs, which is float32.
    """
    race, shelf = RACES[name], Shelf()
    entry = shelf.find("none")
    data = artifacts.dataset(entry.run)
    target = artifacts.load_classifier(entry.run, data).to(device)
    judge = artifacts.load_classifier(shelf.find("resnet").run, data).to(device)
    y = torch.arange(people, device=device)

    @torch.no_grad()
    def accuracy(images: Tensor) -> float:
        return float((judge(images.float().clamp(0, 1))[:, : len(data.classes)].argmax(1) == y).float().mean())

    prior = _prior(race.prior, data).to(device)
    theirs = _theirs(race, target, prior, y, accuracy)
    least, races = ENOUGH * theirs[-1][2], []
    for engine in (Engine(device, precision) for precision in precisions):
        placed: Any = engine.place(prior).requires_grad_(False)
        oracle = Oracle(engine.place(fold(target)), Access.WHITE_BOX, len(data.classes))
        ours = tuple(_ours(_cut(race.attack, mark), mark, oracle, placed, y, engine, accuracy) for mark in race.marks)
        races.append(Equal(name, engine.precision, theirs, ours, (reached(theirs, least), reached(ours, least))))
    return races


def _cut(attack: Any, steps: int) -> Attack:
    """The attack with so many steps."""
    return replace(attack, steps=steps)


def _prior(reference: str, data: Dataset) -> Any:
    if reference.startswith("zoo:"):
        return artifacts.load_prior(Shelf().find(reference).run, data)
    recipe = registry.configure("priors", reference).plugin
    return recipe.build(data.image_shape, len(data.classes), data.public).eval()


def _theirs(
    race: Race, target: Classifier, prior: Any, y: Tensor, accuracy: Callable[[Tensor], float]
) -> tuple[tuple[int, float, float], ...]:
    torch.manual_seed(0)
    taken, begun = 0.0, torch.randn(len(y), prior.latent_dim, device=y.device)
    if isinstance(race.attack, PPA):
        pool, starts = race.attack.pool, []
        taken = spent(lambda: starts.append(_best_start(target, prior, y, pool)), y.device)
        begun = starts[0]
    loop = race.make(target, prior, y, begun)
    curve, done = [], 0
    for mark in sorted({*race.marks, *(race.steps * part // 8 for part in range(1, 9))}):
        if mark > race.steps:
            break
        taken += spent(partial(_steps, loop, mark - done), y.device)
        done = mark
        curve.append((mark, taken, accuracy(loop.images())))
    return tuple(curve)


def _steps(loop: Plain, count: int) -> None:
    for _ in range(count):
        loop.step()


@torch.no_grad()
def _best_start(target: Classifier, prior: Any, y: Tensor, pool: int) -> Tensor:
    """Of a pool the latent whose image and its mirror the target is surest of, as the authors choose it: in batches."""
    z = torch.randn(pool, prior.latent_dim, device=y.device)
    sure = []
    for part in z.split(25):
        x = prior.decode(part)
        sure.append((target(x).softmax(1) + target(x.flip(-1)).softmax(1)) / 2)
    return z[torch.cat(sure)[:, y].argmax(0)]


def _ours(
    attack: Attack,
    steps: int,
    oracle: Oracle,
    prior: Any,
    y: Tensor,
    engine: Engine,
    accuracy: Callable[[Tensor], float],
) -> tuple[int, float, float]:
    made: list[Tensor] = []

    def work() -> None:
        with engine.autocast():
            made.append(attack(oracle, prior, y, 0, AttackContext(256)).images)

    seconds = spent(work, y.device)
    return steps, seconds, accuracy(made[0])
