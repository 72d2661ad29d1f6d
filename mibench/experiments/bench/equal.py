"""Time to equal attack accuracy: the authors' steps in their loop against ours, on the same target, prior and people.

A step that is cheaper is worth nothing if more of them are needed. What counts is when as much has been reached: the
seconds until 90% of what the authors' loop ends at is reached, and not lost again afterwards. Both are watched along
one run each; what looking takes is not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mibench.attacks.kedmi import KEDMI
from mibench.attacks.parts.rules import draw_gaussians
from mibench.attacks.plg import PLG
from mibench.attacks.ppa import PPA
from mibench.core import Access, Dataset, Oracle, to_uint8
from mibench.evaluation.model import answers
from mibench.experiments.bench import plain
from mibench.experiments.bench.curve import Curve, Equal
from mibench.experiments.bench.machine import spent
from mibench.experiments.bench.plain import Plain
from mibench.experiments.bench.watched import watch
from mibench.metrics.accuracy import closed_set, top_k
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.plugins import registry
from mibench.runtime.engine import Engine
from mibench.runtime.rng import Noise
from mibench.stages import artifacts, score
from mibench.zoo import Shelf

__all__ = ["RACES", "Race", "equal_accuracy"]

Decode = Callable[[Any, list[Tensor], Tensor], Tensor]


def _points(prior: Any, moved: list[Tensor], y: Tensor) -> Tensor:
    images: Tensor = prior.decode(moved[0], y)
    return images


def _draws(prior: Any, moved: list[Tensor], y: Tensor) -> Tensor:
    z, y = draw_gaussians(torch.cat(moved, dim=1), y, 1, 0, None)
    return _points(prior, [z], y)


@dataclass(frozen=True)
class Race:
    """An attack against its authors' loop.

    Args:
        prior: Of the zoo, or one that ships.
        make: Theirs, with their rates.
        steps: Of their configuration.
        attacks: Ours by name of the preset that has these rates and as many steps.
        decode: Images from what ours moves.
        pool: So many latents are scored for both, who start from the best; 0: starts are drawn.
    """

    prior: str
    make: Callable[[Classifier, Any, Tensor, Tensor], Plain]
    steps: int
    attacks: Mapping[str, PPA | PLG | KEDMI]
    decode: Decode = _points
    pool: int = 0


_PPA = partial(PPA, images=1, candidates=1, pool=2000, betas=(0.9, 0.999))
RACES = {
    "ppa": Race("dcgan", plain.ppa, 50, {"quick": _PPA(steps=50, lr=0.03), "fast": _PPA(steps=15, lr=0.1)}, pool=2000),
    "plg": Race("zoo:plg-none", plain.plg, 600, {"quick": PLG(images=1, steps=60)}),
    "kedmi": Race(
        "zoo:kedmi-none", plain.kedmi, 1500, {"quick": KEDMI(images=1, steps=200, lr=0.05, log_var=-2.0)}, _draws
    ),
}

MARKS = 10
"""Each is looked at so often along its steps, and at its start."""


@dataclass
class _Record:
    """What was seen along a run."""

    judge: Callable[[Tensor], dict[str, Tensor]]
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    seen: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, step: int, seconds: float, images: Tensor) -> None:
        self.steps.append(step)
        self.seconds.append(seconds)
        self.seen.append(self.judge(images))

    def curve(self) -> Curve:
        hits = {name: torch.stack([one[name] for one in self.seen]) for name in self.seen[0]}
        return Curve(tuple(self.steps), tuple(self.seconds), hits)


def equal_accuracy(
    name: str, people: int, device: torch.device, precisions: Sequence[str], target: str = "none"
) -> list[Equal]:
    """Race one attack on a target of the zoo.

    Judged are its attack accuracy, by the zoo's evaluation model `resnet`, closed set, top 1, and its likeness: named
    by `resnet` in the open set and accepted by the verifier `resnet`.

    Args:
        name: Of `RACES`.
        people: How many are attacked, from the first.
        device: Of both.
        precisions: Of ours, each a race against the same run of theirs, which is float32.
        target: In the zoo, perhaps with a seed: `re@1`.

    Raises:
        UserError: If the zoo has no such target.
    """
    race, shelf = RACES[name], Shelf()
    entry = shelf.find(target)
    data = artifacts.dataset(entry.run)
    network = artifacts.load_classifier(entry.run, data).to(device)
    prior = _prior(race.prior, data, shelf).to(device)
    y = torch.arange(people, device=device)
    judge = judged_by(shelf, data, y, Engine(device, "fp32"))
    theirs = _theirs(race, network, prior, y, _Record(judge))
    races = []
    for engine in (Engine(device, precision) for precision in precisions):
        placed: Any = engine.place(prior).requires_grad_(False)
        oracle = Oracle(engine.place(fold(network)), Access.WHITE_BOX, len(data.classes))
        for preset, attack in race.attacks.items():
            record = _Record(judge)
            watch(attack, race.decode, oracle, placed, y, engine, record, _marks(attack.steps))
            races.append(Equal(f"{name} {preset}", target, engine.precision, theirs, record.curve()))
    return races


def judged_by(
    shelf: Shelf, data: Dataset, y: Tensor, engine: Engine
) -> Callable[[Tensor], dict[str, Bool[Tensor, " p"]]]:
    """What is said of one image of each person: whether it is a hit, by measure."""
    named = score.evaluation_model(shelf.find("resnet").run, data, engine)
    verifier = score.verifier(shelf.find("verifier-resnet").run, data, engine)
    assert verifier is not None  # the zoo's data have strangers
    labels = y.cpu()

    def judge(images: Tensor) -> dict[str, Tensor]:
        stored = to_uint8(images.detach().float().clamp(0, 1)).cpu()
        logits = answers(named.label, named.network, stored, engine)[0].cpu()
        accepted = verifier.judge(stored, labels, engine).images["verified"]
        accuracy = top_k(closed_set(logits, len(data.classes)), labels, 1)
        return {"accuracy": accuracy, "likeness": top_k(logits, labels, 1) & accepted}

    return judge


def _prior(reference: str, data: Dataset, shelf: Shelf) -> Any:
    if reference.startswith("zoo:"):
        return artifacts.load_prior(shelf.find(reference).run, data)
    recipe = registry.configure("priors", reference).plugin
    return recipe.build(data.image_shape, len(data.classes), data.public).eval()


def _theirs(race: Race, target: Classifier, prior: Any, y: Tensor, record: _Record) -> Curve:
    torch.manual_seed(0)
    taken, begun = 0.0, torch.randn(len(y), prior.latent_dim, device=y.device)
    if race.pool:
        # The latents that ours takes, so that both choose from the same.
        pool = prior.sample(Noise(0, torch.arange(race.pool, device=y.device)).of("pool"))
        starts: list[Tensor] = []
        taken = spent(lambda: starts.append(_best_start(target, prior, y, pool)), y.device)
        begun = starts[0]
    loop, done = race.make(target, prior, y, begun), 0
    for mark in _marks(race.steps):
        taken += spent(partial(_steps, loop, mark - done), y.device)
        done = mark
        record(mark, taken, loop.images())
    return record.curve()


def _marks(steps: int) -> list[int]:
    return sorted({round(steps * part / MARKS) for part in range(MARKS + 1)})


def _steps(loop: Plain, count: int) -> None:
    for _ in range(count):
        loop.step()


@torch.no_grad()
def _best_start(target: Classifier, prior: Any, y: Tensor, pool: Tensor) -> Tensor:
    """Of a pool the latent whose image and its mirror the target is surest of, as the authors choose it: in batches."""
    sure = []
    for part in pool.split(25):
        x = prior.decode(part)
        sure.append((target(x).softmax(1) + target(x.flip(-1)).softmax(1)) / 2)
    return pool[torch.cat(sure)[:, y].argmax(0)]
