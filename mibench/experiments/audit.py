"""What leaks from a model of the user's own: found out what it wants, planned for a budget, run as ordinary runs.

`prepare` opens the model and probes it, `schedule` says what will be done and what it costs, `conduct`ing that is the
business of whoever asked. Nothing here searches or scores: an audit is an imported target and experiments on it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mibench import models
from mibench.core import Access, Cost
from mibench.data import decode
from mibench.data.folder import people_of
from mibench.experiments.experiment import Attacker, Experiment, Targets, Trained
from mibench.experiments.plan import cost_of, plan
from mibench.experiments.reading import read_attackers, read_evaluators, read_floors, read_target
from mibench.models.imported.network import assemble
from mibench.models.imported.opened import Opened
from mibench.models.imported.opening import open_source
from mibench.models.imported.probe import find
from mibench.models.imported.server import Asked as Server
from mibench.models.imported.sources import ModelSource
from mibench.models.imported.ways import NOTHING, Found, Given, Pictures
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import Run
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter, Silent
from mibench.stages import import_target, imported, train_target
from mibench.stages.invert import ACCESS

__all__ = ["Asked", "Prepared", "Schedule", "Step", "pictures", "prepare", "schedule"]

MENU: dict[Access, tuple[str, ...]] = {
    Access.WHITE_BOX: ("ppa", "gmi", "if_gmi"),
    Access.BLACK_BOX: ("mirror_bb", "cma_es", "rlb"),
    Access.LABEL_ONLY: ("brep",),
}
"""Attacks of each access in the order in which a budget takes them in; a choice, not a ranking on the user's data."""

LEAST_PEOPLE = 10
"""People below which the time is rather overrun than fewer attacked."""

SMALLEST, LARGEST = 16, 64
"""Sides of the pictures that are attacked and judged, unless said; a model that wants more gets them enlarged."""

PRIOR_STEPS = {"stylegan2": 1400, "wgan_gp": 500, "tacgan": 700}
"""Guesses, not measurements: so many training steps of an evaluation model are taken to last as long as learning a
prior with its quick preset, and 1000 for a prior that is not named here. Only the estimate of time hangs on them."""

BACKWARD = 3
"""Passes forward that a step of training takes, or a gradient with respect to the image."""


@dataclass(frozen=True)
class Asked:
    """What the user wants to know, about what.

    Args:
        source: The model.
        private: A folder of folders: the people it was trained on.
        public: Other people's pictures, which an attacker could have.
        access: What the attacker is granted; the strongest that the model gives if absent.
        given: What the model wants, as far as the user says.
        minutes: For everything; no limit if absent.
        queries: Of the model, for everything; no limit if absent.
        method: Attacks, comma-separated; those of the menu that fit the budget if absent.
        prior: What all attacks search; each one's own if absent.
        identities: Only the first so many are attacked; as many as fit the time if absent.
        image_size: Side of the pictures that are attacked and judged.
        evaluators: Evaluation models, comma-separated.
        defenses: Trained on the same data, to say what they would buy.
        defense_model: The architecture that they are trained with.
        settings: Of `attack`, `prior`, `evaluator`, `training` and `data`.
        faces: The pictures are photographs of faces.
        seed: Of attacks and priors.
        precision: fp32 or bf16.
    """

    source: ModelSource
    private: Path
    public: Path | None = None
    access: Access | None = None
    given: Given = NOTHING
    minutes: float | None = None
    queries: int | None = None
    method: str | None = None
    prior: str | None = None
    identities: int | None = None
    image_size: int | None = None
    evaluators: str | None = None
    defenses: tuple[str, ...] = ()
    defense_model: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faces: bool = False
    seed: int = 0
    precision: str = "fp32"


@dataclass(frozen=True)
class Prepared:
    """A model that has been found to answer as it should.

    Args:
        asked: What the user wants to know.
        opened: The model.
        found: What it wants.
        data: The private pictures and the public ones.
        target: The run that brings it in.
        access: What the attacker is granted.
    """

    asked: Asked
    opened: Opened
    found: Found
    data: Choice
    target: Run
    access: Access

    @property
    def lines(self) -> list[str]:
        """What was found out, for the user."""
        people, public = self.data.shape.classes, self.data.shape.public
        lines = [self.asked.source.told, *self.found.told]
        lines.append(f"gives {self.found.grants.words} access; attacked with {self.access.words} access")
        lines.append(
            f"{people} people; {public} public pictures for the attacker; attacked and judged at "
            f"{self.data.shape.image_shape[1]} px"
        )
        return lines


@dataclass(frozen=True)
class Step:
    """One thing that will be done.

    Args:
        what: In words.
        queries: Of the user's model.
        seconds: Estimated; NaN where that cannot be told.
        done: It stands in the results folder already.
    """

    what: str
    queries: int
    seconds: float
    done: bool


@dataclass(frozen=True)
class Schedule:
    """What will be done.

    Args:
        experiments: On the imported target, then on defended ones.
        runs: The planned runs of all experiments.
        steps: What they cost.
        untried: What is left out, and why, a sentence each.
        people: How many are attacked.
    """

    experiments: tuple[Experiment, ...]
    runs: tuple[Run, ...]
    steps: tuple[Step, ...]
    untried: tuple[str, ...]
    people: int

    @property
    def queries(self) -> int:
        """Of the user's model, still to be asked."""
        return sum(step.queries for step in self.steps if not step.done)

    @property
    def seconds(self) -> float:
        """Still to be spent, as estimated."""
        return sum(step.seconds for step in self.steps if not step.done and math.isfinite(step.seconds))


def pictures(private: Path, heldout: float = 0.2, most: int = 256, reporter: Reporter | None = None) -> Pictures:
    """Some of the private pictures, every person's first ones first, read at any size.

    Raises:
        UserError: The folder is not one of people's folders, or a picture cannot be read.
    """
    people = people_of(private, "private")
    if len(people) < 2:
        raise UserError(f"{private} has {len(people)} person; a classifier knows at least 2: add folders")
    each = max(2, math.ceil(most / len(people)))
    files = [(file, label) for label, own in enumerate(people.values()) for file in own[:each]]
    labels = torch.tensor([label for _, label in files])
    # The last of each person's pictures stand in for held-out ones: the data set's own draw needs all of them decoded.
    place = torch.tensor([turn for own in people.values() for turn, _ in enumerate(own[:each])])
    counts = torch.tensor([min(len(own), each) for own in people.values()])[labels]
    kept: dict[tuple[int, int], Tensor] = {}

    def at(size: int, channels: int) -> Tensor:
        if (size, channels) not in kept:
            while len(kept) >= 2:
                kept.pop(next(iter(kept)))
            kept[size, channels], _ = decode.decode_all(
                [file for file, _ in files], size, channels == 3, reporter or Silent()
            )
        return kept[size, channels]

    return Pictures(at, labels, tuple(people), place < counts - (counts * heldout).round().clamp(min=1))


def prepare(asked: Asked, results: Path, reporter: Reporter | None = None) -> Prepared:
    """Open the model, find out what it wants, and plan the run that brings it in; nothing is written.

    Raises:
        UserError: The model cannot be opened or does not fit the pictures; no public pictures; an access it does not
            give.
    """
    if asked.public is None:
        raise UserError(
            "an attacker who knows nothing of how such pictures look is not worth defending against: give --public DIR "
            "with pictures of the same kind of other people (one folder, or one for each person; a few hundred do). "
            "Public data sets of the same kind serve as well as your own"
        )
    source = asked.source
    shown, given = pictures(asked.private, reporter=reporter), asked.given
    if source.endpoint is not None:
        source.objects.setdefault("journal", imported.journal_of(results, source.endpoint))
        source.objects["people"] = given.classes or shown.names
        # As large as what is attacked, so that what is asked now is not asked again then.
        given = replace(given, size=given.size or asked.image_size or LARGEST)
    opened = open_source(source)
    if isinstance(opened.module, Server):
        opened.module.require_unchanged()
    found = find(opened, shown, given)
    access = asked.access or found.grants
    if access > found.grants:
        raise UserError(
            f"--access {access.adjective}: {source.told} gives {found.grants.words} access at most; leave it out or "
            "lower it"
        )
    data = _data(asked, found)
    target = import_target.plan(results, data, source, found, opened.family, asked.precision)
    return Prepared(asked, opened, found, data, target, access)


def _data(asked: Asked, found: Found) -> Choice:
    """The private and the public pictures as a data set, at a size that priors can draw."""
    wanted = found.wanted.size or LARGEST
    size = asked.image_size or min(LARGEST, max(SMALLEST, 2 ** math.ceil(math.log2(wanted))))
    settings: dict[str, Any] = {
        "private": str(asked.private),
        "public": str(asked.public),
        "image_size": size,
        "colour": found.wanted.channels == 3,
        "faces": asked.faces,
        **asked.settings.get("data", {}),
    }
    return registry.configure("data", "folder", settings=settings)


# --- what it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speeds:
    """Measured here, in seconds.

    Args:
        forward: One image through the target.
        step: One training step of the slower evaluation model on 50 images.
    """

    forward: float
    step: float

    @classmethod
    def of(cls, prepared: Prepared, engine: Engine, evaluators: Sequence[str]) -> "Speeds":
        """Timed on random images, a few passes each; a server is not timed, since its answers cost."""
        shape = prepared.data.shape.image_shape
        forward = math.nan
        if prepared.asked.source.kind != "endpoint":
            model = engine.place(_bare(prepared, shape))
            x = torch.rand(8, *shape, device=engine.device)
            with torch.no_grad():
                forward = _timed(lambda: model(x)) / len(x)
        steps = []
        for name in evaluators:
            with torch.random.fork_rng():
                net = engine.place(models.build(name, prepared.data.shape.classes, shape)).train()
            x, y = (
                torch.rand(50, *shape, device=engine.device),
                torch.zeros(50, dtype=torch.int64, device=engine.device),
            )
            steps.append(_timed(lambda net=net, x=x, y=y: F.cross_entropy(net(x), y).backward()))
        return cls(forward, max(steps))


def _bare(prepared: Prepared, shape: tuple[int, int, int]) -> torch.nn.Module:
    wanted = prepared.found.wanted
    if wanted.output == "embeddings":
        wanted = replace(wanted, output="logits", order=())
    return assemble(prepared.opened, wanted, shape)


def _timed(work: Any) -> float:
    """Seconds of one call, the better of two after one that warms up."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return min(times[1:])


def schedule(prepared: Prepared, results: Path, engine: Engine) -> Schedule:
    """What will be done within the budget, and what it costs.

    Raises:
        UserError: A setting, attack or defense that does not exist or does not fit; a budget that no attack fits into.
    """
    asked, target = prepared.asked, prepared.target
    given = {owner: dict(own) for owner, own in asked.settings.items()}
    evaluators = read_evaluators(asked.evaluators, given)
    names = evaluators.names or train_target.evaluator_families(target.spec["model"])
    speeds = Speeds.of(prepared, engine, names)
    untried: list[str] = []
    attackers = _attackers(prepared, given, untried)
    people = prepared.data.shape.classes
    count = min(asked.identities or people, people)
    budget = None
    if asked.identities is None and asked.minutes is not None:
        attackers, count = _within(asked.minutes * 60, attackers, prepared, speeds, evaluators.training, untried)
    if asked.queries is not None:
        attackers, budget = _affordable(asked.queries, attackers, prepared, count, untried)
    main = Experiment(
        "scores",
        prepared.data,
        Trained(planned=(target,)),
        tuple(attackers),
        floors=read_floors(),
        identities=count if count < people else None,
        budget=budget,
        evaluators=evaluators,
        seed=asked.seed,
        precision=asked.precision,
        title=f"what leaks from {asked.source.told}",
    )
    experiments = [main, *_defended(prepared, main, given)]
    runs = {run.id: run for one in experiments for run in plan(one, results)}
    untried += _left_out(prepared)
    steps = _steps(prepared, list(runs.values()), speeds, count)
    return Schedule(tuple(experiments), tuple(runs.values()), tuple(steps), tuple(dict.fromkeys(untried)), count)


def _attackers(prepared: Prepared, given: Mapping[str, Mapping[str, Any]], untried: list[str]) -> list[Attacker]:
    """The attacks that were asked for, or the menu of the access and below."""
    asked = prepared.asked
    if asked.method is not None:
        names = asked.method
        made = read_attackers(names, "quick", given.get("attack", {}), asked.prior, given.get("prior", {}))
    elif given.get("attack"):
        raise UserError(
            f"--set {next(iter(given['attack']))}: a setting of which attack? name it with --method, such as "
            f"--method {MENU[prepared.access][0]}"
        )
    else:
        menu = MENU[prepared.access]
        made = tuple(read_attackers(name, "quick", {}, asked.prior, given.get("prior", {}))[0] for name in menu)
    own = [one.on("folder") for one in made]
    for one in own:
        if ACCESS[registry.card("attacks", one.attack.name)["access"]] > prepared.access:
            raise UserError(
                f"{one.attack.name} needs more than {prepared.access.words} access; leave --method out or choose of: "
                f"{', '.join(MENU[prepared.access])}"
            )
    return own


def _cost(attacker: Attacker, prepared: Prepared) -> Cost:
    return cost_of(attacker, prepared.data)


def _seconds(cost: Cost, people: int, speeds: Speeds) -> float:
    """Of the target alone; the prior's own passes are taken for as many again."""
    images = cost.queries * people + cost.shared_queries
    slopes = cost.gradient_images * people * (BACKWARD - 1)
    return 2 * (images + slopes) * speeds.forward


def _within(
    seconds: float,
    attackers: list[Attacker],
    prepared: Prepared,
    speeds: Speeds,
    training: Mapping[str, Any],
    untried: list[str],
) -> tuple[list[Attacker], int]:
    """As many of the attacks as fit the time, the first in any case, and on how many people."""
    everybody = prepared.data.shape.classes
    recipe = train_target.recipe("evaluator", dict(training))
    left = seconds - 2 * _training_steps(prepared, recipe) * speeds.step
    left -= _prior_steps([attackers[0].prior.name]) * speeds.step
    first = _cost(attackers[0], prepared)
    floors = 1.5  # floors ask about half as much again
    count = everybody
    if math.isfinite(speeds.forward):
        each = floors * (_seconds(first, 1, speeds) - _seconds(first._replace(queries=0, gradient_images=0), 1, speeds))
        shared = floors * _seconds(first._replace(queries=0, gradient_images=0), 1, speeds)
        count = int(max(min(everybody, LEAST_PEOPLE), min(everybody, (left - shared) / each if each else everybody)))
        left -= shared + count * each
    kept = [attackers[0]]
    for one in attackers[1:]:
        needs = floors * _seconds(_cost(one, prepared), count, speeds)
        learnt = {other.prior.name for other in kept}
        needs += _prior_steps([one.prior.name] if one.prior.name not in learnt else []) * speeds.step
        if math.isfinite(needs) and needs <= left:
            kept.append(one)
            left -= needs
        else:
            untried.append(
                f"{one.attack.name} (about {needs / 60:.0f} min more; --minutes or --method {one.attack.name})"
            )
    if count < everybody:
        untried.append(f"{everybody - count} of {everybody} people, for want of time")
    return kept, count


def _affordable(
    queries: int, attackers: list[Attacker], prepared: Prepared, count: int, untried: list[str]
) -> tuple[list[Attacker], int]:
    """As many attacks as the queries are enough for, and the budget of each for one identity, shared ones included."""
    spent = _probing(prepared) + _judging(count, len(attackers))
    kept: list[Attacker] = []
    for one in attackers:
        cost = _cost(one, prepared)
        needs = cost.queries * count + cost.shared_queries
        # Floors with a number of queries (random_search or label_search) ask as often as the attack.
        left = queries - spent - sum(2 * _asks(other, prepared, count) for other in kept)
        if kept and 2 * needs > left:
            untried.append(f"{one.attack.name} (about {2 * needs:,} queries more with its floors; --queries)")
            continue
        kept.append(one)
    per = (queries - spent) // max(1, 2 * len(kept))
    budget = per // count if count else per
    if budget < 1:
        raise UserError(
            f"--queries {queries}: finding out what the model wants and judging take {spent:,}, which leaves less than "
            f"one query for each of {count} people; give more, or attack fewer with --identities"
        )
    whole = max(_cost(one, prepared).queries + _cost(one, prepared).shared_queries for one in kept)
    return kept, min(budget, whole)


def _asks(attacker: Attacker, prepared: Prepared, count: int) -> int:
    cost = _cost(attacker, prepared)
    return cost.queries * count + cost.shared_queries


def _probing(prepared: Prepared) -> int:
    """Pictures shown to find out what the model wants and to measure it."""
    return prepared.found.way.n + 3 * prepared.data.shape.classes


def _judging(count: int, attacks: int) -> int:
    """Reconstructions that the target is asked about when they are scored, with floors; two of each person."""
    return (2 * count + 64) * attacks * 4


def _training_steps(prepared: Prepared, recipe: Mapping[str, Any]) -> int:
    """Steps of a whole recipe on about the images there are: the private ones and a third of the public ones."""
    private = sum(len(own) for own in people_of(prepared.asked.private, "private").values())
    images = private + prepared.data.shape.public / 2
    return int(max(recipe["least_steps"], recipe["epochs"] * images / recipe["batch"]))


def _prior_steps(names: Sequence[str]) -> int:
    shipped = {"dcgan", "public", "pixels"}
    return sum(PRIOR_STEPS.get(name, 1000) for name in names if name not in shipped)


def _steps(prepared: Prepared, runs: Sequence[Run], speeds: Speeds, count: int) -> list[Step]:
    """What all runs cost, in the order in which they can be done."""
    from mibench.runs.executor import pending

    ordered: dict[str, Run] = {}

    def visit(run: Run) -> None:
        for parent in run.ancestors():
            visit(parent)
        ordered.setdefault(run.label, run)

    for run in runs:
        visit(run)
    todo = {run.label for run in pending(list(runs))}
    own = prepared.target
    steps = []
    for run in ordered.values():
        queries, seconds = 0, 0.0
        if run.kind == "targets" and imported.is_imported(run):
            what, queries = "bring the model in and measure it", 3 * prepared.data.shape.classes
            seconds = queries * speeds.forward
        elif run.kind == "targets":
            names = "+".join(one["name"] for one in run.spec["defenses"]) or "none"
            what = f"train {run.spec['model']} with defense {names}"
            seconds = _training_steps(prepared, run.spec["training"]) * speeds.step
        elif run.kind in ("evaluators", "backbones", "verifiers"):
            what = f"train the evaluation model {run.spec['model']}"
            seconds = _training_steps(prepared, run.spec["training"]) * speeds.step
        elif run.kind == "priors":
            name = run.spec["prior"]["name"]
            seconds = _prior_steps([name]) * speeds.step
            what = f"learn the prior {name} on the public pictures" if seconds else f"prior {name}"
        elif run.kind == "inversions":
            attack = registry.configure("attacks", run.spec["attack"]["name"], settings=run.spec["attack"]["settings"])
            prior = run.prior
            assert prior is not None
            choice = registry.configure("priors", prior.spec["prior"]["name"], settings=prior.spec["prior"]["settings"])
            cost = cost_of(Attacker(attack, choice), prepared.data)
            asks = cost.queries * count + cost.shared_queries
            if run.spec["budget"] is not None:
                asks = min(asks, run.spec["budget"] * count)
            mine = run.target.id == own.id
            seconds = _seconds(cost, count, speeds) if mine else math.nan
            queries = asks if mine else 0
            floor = registry.card("attacks", attack.name).get("role") == "floor"
            what = f"{'floor' if floor else 'attack'} {attack.name}{'' if mine else ' on ' + run.target.name}"
        else:
            mine = run.inversion.target.id == own.id
            queries = 2 * count + min(64, 2 * count) if mine else 0
            what, seconds = f"score {run.name}", queries * speeds.forward + 4 * speeds.step
        steps.append(Step(what, queries, seconds, run.label not in todo))
    return steps


def _left_out(prepared: Prepared) -> list[str]:
    """What an attacker could also try, and this audit does not."""
    lines = []
    for access in Access.strongest_first():
        if access < prepared.access:
            continue
        if access > prepared.access:
            lines.append(f"{access.words} attacks")
    names = [
        name
        for name in registry.attacks("attack")
        if ACCESS[registry.card("attacks", name)["access"]] == prepared.access and name not in MENU[prepared.access]
    ]
    lines.append(f"other {prepared.access.words} attacks: {', '.join(names)} (--method)")
    size, shape = prepared.found.wanted.size, prepared.data.shape.image_shape
    if size > shape[1]:
        lines.append(f"reconstructions larger than {shape[1]} px (--image-size {2 * shape[1]})")
    lines.append("published settings (quick presets are used), other seeds, and better public pictures than yours")
    return lines


def _defended(prepared: Prepared, main: Experiment, given: Mapping[str, Mapping[str, Any]]) -> list[Experiment]:
    """Targets trained on the same data, undefended and with each defense, under the first attack."""
    asked = prepared.asked
    if not asked.defenses:
        return []
    model = asked.defense_model or "cnn"
    names = ["none", *(name for name in asked.defenses if name != "none")]
    owners = {"training": given.get("training", {})}
    each = tuple(
        read_target(model, name, {**owners, **{key: given.get(key, {}) for key in name.split("+")}}) for name in names
    )
    # Its own first attack: the strongest that a white box would take needs nothing of the imported model.
    return [
        replace(main, subject=Targets(each, (asked.seed,)), attackers=main.attackers[:1], title="what defenses buy")
    ]
