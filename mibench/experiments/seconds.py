"""How long runs take on this machine: one step of each distinct kind is timed with random weights, then multiplied.

A step is timed at a batch that the machine can afford now, and its time taken as proportional to the batch; what takes
too long to be timed even so is scaled by its floating-point operations from what was timed. Nothing is kept.

    targets, evaluation models, verifiers    steps x one step of their training, defenses included, and the passes that
                                             measure them
    priors                                   for each of their phases: steps x one step
    inversions                               pictures x one: of those that are differentiated, those that serve everybody,
                                             and the others, as the attack declares them (`Attack.cost`)
    scores                                   pictures x one pass of each judge

What such a model does not know: a target that has not converged is trained again for twice as long (`most`), attacks
may ask for less than they declare, and others may work on the machine at the same time.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mibench import models, zoo
from mibench.core import Attack, Cost, Oracle, PriorTrainer, Split, TrainingContext
from mibench.data.published.source import STRANGERS
from mibench.experiments.audit.costs import attacker_of, images_of
from mibench.experiments.audit.speeds import LENGTHS
from mibench.experiments.bench.machine import floating_point, memory, peak, spent
from mibench.experiments.bench.rows import epoch_of, step_of
from mibench.experiments.plan import cost_of
from mibench.experiments.sizes import Sizes, sizes_of
from mibench.models.fold import fold
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import KINDS, Run
from mibench.runs.executor import pending
from mibench.runtime.engine import Engine, at_once
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, import_images, import_prior, imported
from mibench.stages.invert import ACCESS, batch_of
from mibench.training import Training

__all__ = ["ALLOWANCE", "Estimate", "Known", "Rate", "Stopwatch", "Taken", "estimate"]

ALLOWANCE, PATIENCE = 12.0, 60.0
"""Seconds of work, and by the clock, that may go into timing unless all is to be timed; a busy machine counts less."""

PIECE = 0.5
"""Seconds that one piece should take at most."""

MOST = {"cpu": 32, "cuda": 64, "mps": 32}
"""Pictures of a step that is timed, where the machine can afford them."""

REACHED = 0.3
"""Share of the machine's peak that loops are taken to reach before anything was timed."""

Known = Literal["measured", "scaled", "unknown"]
"""A step was timed here; or its operations were counted; or neither."""


@dataclass(frozen=True)
class Rate:
    """Of one picture, or of one step where that is said.

    Args:
        seconds: Processor seconds on a CPU, of all threads; seconds elsewhere.
        known: How.
        memory: Bytes at most for the pictures that were timed, per picture; 0 is unknown.
    """

    seconds: float
    known: Known
    memory: float = 0.0


NOTHING = Rate(0.0, "unknown")


@dataclass(frozen=True)
class Taken:
    """What one run takes.

    Args:
        run: It.
        seconds: As of `Rate`; 0 where nothing is known.
        most: The same if it is trained again as often as it may be.
        known: The least of what went into it.
        memory: Bytes, at most; 0 is unknown.
    """

    run: Run
    seconds: float
    most: float
    known: Known
    memory: float


@dataclass(frozen=True)
class Estimate:
    """What all runs take that are still to do.

    Args:
        runs: Each.
        reached: Floating-point operations a second that the timed steps reached, median; NaN where nothing was counted.
        spent: Seconds that the timing took.
    """

    runs: tuple[Taken, ...]
    reached: float
    spent: float

    def of(self, kind: str) -> list[Taken]:
        """The runs of a kind."""
        return [one for one in self.runs if one.run.kind == kind]

    @property
    def seconds(self) -> float:
        """Of all."""
        return math.fsum(one.seconds for one in self.runs)

    @property
    def most(self) -> float:
        """Of all, if every target is trained again as often as it may be."""
        return math.fsum(one.most for one in self.runs)

    @property
    def memory(self) -> float:
        """Bytes of the largest."""
        return max((one.memory for one in self.runs), default=0.0)


def estimate(runs: Sequence[Run], engine: Engine, everything: bool = False) -> Estimate:
    """What is still to do of some planned runs, costed.

    Args:
        runs: As planned.
        engine: Where they will run.
        everything: Time every step, however long that takes.
    """
    todo = pending(list(runs))
    watch = Stopwatch(engine, math.inf if everything else ALLOWANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are copied into networks without any
        # Small ones first, so that the large ones can be scaled from them; in the order of the runs at last.
        taken = {run.label: watch.run(run) for run in sorted(todo, key=watch.order)}
    reached = median(watch.reached) if watch.reached else math.nan
    return Estimate(tuple(taken[run.label] for run in todo), reached, time.monotonic() - watch.began)


class Stopwatch:
    """Times each distinct piece of work once.

    Args:
        engine: Where.
        allowance: Seconds after which no further piece is timed.
    """

    def __init__(self, engine: Engine, allowance: float) -> None:
        self.engine, self.allowance = engine, allowance
        self.began, self.spent = time.monotonic(), 0.0
        self.reached: list[float] = []
        self._known: dict[Any, Any] = {}

    # --- runs

    def order(self, run: Run) -> tuple[int, float]:
        """Trainings first, of small networks before large ones; then what searches and judges with them."""
        if "model" not in run.spec:
            return KINDS.index(run.kind), 0.0
        data = sizes_of(_data(run))
        return 0, self._passes(run.spec["model"], data.classes, data.shape)

    def run(self, run: Run) -> Taken:
        """What one run takes."""
        if zoo.origin(run) or import_prior.is_imported(run) or import_images.imported(run) or imported.is_imported(run):
            return Taken(run, 0.0, 0.0, "scaled", 0.0)  # files are read and copied
        if run.kind == "priors":
            return self._of_prior(run)
        if run.kind == "inversions":
            return self._of_inversion(run)
        if run.kind == "scores":
            return self._of_score(run)
        return self._of_training(run)

    def _of_training(self, run: Run) -> Taken:
        data = sizes_of(_data(run))
        images, classes = data.learnt(run.kind)
        recipe = Training(**run.spec["training"]).for_images(images)
        steps, batch = recipe.epochs * recipe.steps_per_epoch(images), min(recipe.batch, images)
        defenses = artifacts.defenses(run)
        step = self.training(run.spec["model"], classes, data.shape, recipe, defenses)
        passes = self.forward(run.spec["model"], classes, data.shape)
        measuring = passes.seconds * (data.heldout + data.train + (data.public if run.kind == "targets" else 0))
        seconds = steps * batch * step.seconds + measuring
        again = sum(2**number for number in range(1, recipe.doublings + 1)) if run.kind == "targets" else 0
        weights = 16.0 * self.parameters(run.spec["model"], classes, data.shape)
        held = step.memory * batch + weights if step.memory else 0.0
        return Taken(run, seconds, seconds * (1 + again), _least(step, passes), held)

    def _of_prior(self, run: Run) -> Taken:
        choice, data = run.spec["prior"], sizes_of(_data(run))
        plugin = registry.configure("priors", choice["name"], settings=choice["settings"]).plugin
        if type(plugin).train is PriorTrainer.train:  # shipped
            return Taken(run, 0.0, 0.0, "measured", 0.0)
        target = run.target.spec["model"] if "target" in run.parents else ""
        seconds, known = self.prior(plugin, data, target)
        return Taken(run, seconds, seconds, known, 0.0)

    def _of_inversion(self, run: Run) -> Taken:
        data = _data(run.target)
        attacker, size = attacker_of(run), sizes_of(data)
        cost, people = _within(cost_of(attacker, data), run.spec["budget"]), run.spec["identities"] or size.classes
        rates = self.attack(attacker.attack.plugin, attacker.prior, run.target.spec["model"], size)
        own, slopes, shared = rates
        counts = ((cost.queries - cost.gradient_images) * people, cost.gradient_images * people, cost.shared_queries)
        seconds = math.fsum(count * rate.seconds for count, rate in zip(counts, rates, strict=True))
        used = [rate for count, rate in zip(counts, rates, strict=True) if count]
        prior = self._prior_of(attacker.prior, size)
        batch = batch_of(self.engine, size.shape, prior) if prior is not None else 1
        largest = max((one.memory for one in (own, slopes, shared)), default=0.0)
        held = largest * min(batch, max(people * images_of(attacker.attack), 1)) if largest else 0.0
        return Taken(run, seconds, seconds, _least(*used) if used else "measured", held)

    def _of_score(self, run: Run) -> Taken:
        inversion = run.inversion
        if inversion.prior is None:
            return Taken(run, 0.0, 0.0, "unknown", 0.0)
        size = sizes_of(_data(inversion.target))
        pictures = (inversion.spec["identities"] or size.classes) * images_of(attacker_of(inversion).attack)
        judges = [one for one in run.ancestors() if one.kind in ("evaluators", "verifiers")]
        passes = [self.forward(one.spec["model"], size.learnt(one.kind)[1], size.shape) for one in judges]
        target = self.forward(inversion.target.spec["model"], size.classes, size.shape)
        seconds = (pictures + size.heldout) * math.fsum(one.seconds for one in [*passes, target])
        for judge, one in zip(judges, passes, strict=True):
            if judge.label not in self._known:  # what it says of real images is asked once a process
                seconds += (size.train + size.heldout + min(size.public, STRANGERS)) * one.seconds
                self._known[judge.label] = True
        return Taken(run, seconds, seconds, _least(target, *passes), 0.0)

    # --- pieces

    def training(
        self,
        architecture: str,
        classes: int,
        shape: tuple[int, int, int],
        recipe: Training,
        defenses: Sequence[Any] = (),
    ) -> Rate:
        """One picture of a step of training, forward and backward, with its defenses."""
        short = replace(recipe, epochs=1, least_steps=0, doublings=0)
        operations = 3 * self._passes(architecture, classes, shape)

        def measure() -> Rate:
            batch = min(self._affordable(operations, 12), recipe.batch)
            works = [
                epoch_of(architecture, classes, _pictures(count * batch, classes, shape), part, defenses, self.engine)
                for count in (1, 3)
                for part in [replace(short, batch=batch)]
            ]
            one, three = self._timed(works)
            held = memory(works[0], self.engine.device) or 0
            return Rate(max(three - one, 0.0) / (2 * batch), "measured", held / batch)

        kinds = tuple(type(one).__name__ for one in defenses)  # one of another strength takes as long
        key = ("training", architecture, classes, shape, recipe.batch, recipe.optimizer, recipe.augmentation, kinds)
        return self._rate(key, operations, 12, measure)

    def forward(self, architecture: str, classes: int, shape: tuple[int, int, int]) -> Rate:
        """One picture through a network, which keeps nothing for a gradient."""
        operations = self._passes(architecture, classes, shape)

        def measure() -> Rate:
            batch = self._affordable(operations, 4)
            network: Any = self.engine.place(fold(_network(architecture, classes, shape)))
            x = self.engine.images(_pictures(batch, classes, shape).images)

            def work() -> object:
                with torch.no_grad(), self.engine.autocast():
                    return network(x)

            return Rate(self._timed([work])[0] / batch, "measured")

        return self._rate(("forward", architecture, classes, shape), operations, 4, measure)

    def attack(
        self, attack: Attack, prior: Choice, architecture: str, size: Sizes
    ) -> tuple[Rate, Rate, Rate]:
        """One picture that the target is asked for: of those not differentiated, the differentiated, the shared.

        The attack itself is run at its smallest; then again with more of each kind, by the setting that adds to that
        kind alone. Where there is no such setting, the passes of target and prior stand in.
        """
        model = self._prior_of(prior, size)
        operations = self._passes(architecture, size.classes, size.shape) + self._drawing(prior, size)
        key = ("attack", repr(attack), prior.name, repr(prior.spec()), architecture, size)
        if key not in self._known:
            self._known[key] = None
            if model is not None and self._may(operations, 40):
                with suppress(UserError, RuntimeError, NotImplementedError, AssertionError, ValueError):
                    self._known[key] = self._attacked(attack, model, architecture, size, operations)
        passes = self.passes(prior, architecture, size)
        timed: dict[str, Rate] = self._known[key] or {}
        slope = replace(passes, seconds=3 * passes.seconds, known=_least(passes, Rate(0, "scaled")))
        return timed.get("own", passes), timed.get("slopes", slope), timed.get("shared", passes)

    def passes(self, prior: Choice, architecture: str, size: Sizes) -> Rate:
        """One picture drawn and asked about, without a gradient."""
        target = self.forward(architecture, size.classes, size.shape)
        operations = self._drawing(prior, size)

        def measure() -> Rate:
            batch, network = self._affordable(operations, 4), self._prior_of(prior, size)
            assert network is not None
            placed: Any = self.engine.place(network)
            z = torch.randn(batch, placed.latent_dim, device=self.engine.device)
            y = torch.zeros(batch, dtype=torch.int64, device=self.engine.device)

            def work() -> object:
                with torch.no_grad(), self.engine.autocast():
                    return placed.decode(z, y)

            return Rate(self._timed([work])[0] / batch, "measured")

        drawn = self._rate(("drawing", prior.name, repr(prior.spec()), size.shape), operations, 4, measure)
        return Rate(target.seconds + drawn.seconds, _least(target, drawn))

    def _attacked(
        self, attack: Attack, prior: nn.Module, architecture: str, size: Sizes, operations: float
    ) -> dict[str, Rate]:
        people = min(self._affordable(3 * operations, 40), size.classes)
        smallest, more = _smallest(attack, prior, size.public)
        public = _pictures(64, size.classes, size.shape)
        target = _network(architecture, size.classes, size.shape)

        def asked(one: Attack) -> Callable[[], object]:
            return step_of(one, target, prior, people, self.engine, size.classes, public)

        kinds = list(more)
        base, *longer = self._timed([asked(smallest), *(asked(more[kind][0]) for kind in kinds)])
        rates = {}
        for kind, seconds in zip(kinds, longer, strict=True):
            added = more[kind][1] * (1 if kind == "shared" else people)
            rates[kind] = Rate(max(seconds - base, 0.0) / added, "measured")
        if "slopes" in rates:
            held = memory(asked(more["slopes"][0]), self.engine.device) or 0
            rates["slopes"] = replace(rates["slopes"], memory=held / people)
        return rates

    def prior(self, plugin: PriorTrainer, size: Sizes, architecture: str) -> tuple[float, Known]:
        """Seconds of a whole training, its phases timed one by one; large batches in small."""
        key = ("prior", repr(plugin), size, architecture)
        if key not in self._known:
            self._known[key] = 0.0, "unknown"
            if self.left > 0:
                with suppress(UserError, RuntimeError, NotImplementedError, AssertionError):
                    self._known[key] = self._learnt(plugin, size, architecture), "measured"
        seconds, known = self._known[key]
        return seconds, known

    def _learnt(self, plugin: Any, size: Sizes, architecture: str) -> float:
        names = [name for name in (*LENGTHS, "tune_steps") if isinstance(getattr(plugin, name, None), int)]
        lengths = {name: getattr(plugin, name) for name in names if getattr(plugin, name) > 0}
        whole = getattr(plugin, "batch", 0)
        batch = min(whole, MOST[self.engine.device.type] // (4 if size.shape[1] > 32 else 1)) or whole
        smallest = replace(plugin, **dict.fromkeys(lengths, 1), **({"batch": batch} if whole else {}))
        public = _pictures(max(64, batch), size.classes, size.shape)
        helper: Any = None
        if architecture:
            network: Any = self.engine.place(fold(_network(architecture, size.classes, size.shape)))
            helper = Oracle(network, plugin.target_access, size.classes)

        def work(one: Any) -> Callable[[], object]:
            def learn() -> object:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    placed: Any = self.engine.place(one.build(size.shape, size.classes, public))
                    return one.train(placed, public, helper, TrainingContext(self.engine, 0, Silent(), ""))

            return learn

        first = self._spent(work(smallest))
        further = max(2, min(8, int(PIECE / max(first, 1e-3))))
        works = [work(smallest), *(work(replace(smallest, **{name: 1 + further})) for name in lengths)]
        base, *longer = [self._spent(one) for one in works]
        steps = {name: max(one - base, 0.0) / further for name, one in zip(lengths, longer, strict=True)}
        scale = whole / batch if whole else 1.0
        return base + scale * math.fsum(lengths[name] * one for name, one in steps.items())

    # --- what pieces are made of

    def parameters(self, architecture: str, classes: int, shape: tuple[int, int, int]) -> int:
        """Numbers that a network learns."""
        self._passes(architecture, classes, shape)
        return int(self._known["sizes", architecture, classes, shape][1])

    def _passes(self, architecture: str, classes: int, shape: tuple[int, int, int]) -> float:
        """Floating-point operations of one picture through a network, counted without weights."""
        key = ("sizes", architecture, classes, shape)
        if key not in self._known:
            with torch.device("meta"):
                network = models.build(architecture, classes, shape).eval()
                count = floating_point(lambda: network(torch.zeros(1, *shape)))
            self._known[key] = float(count), sum(one.numel() for one in network.parameters())
        return float(self._known[key][0])

    def _drawing(self, prior: Choice, size: Sizes) -> float:
        """Floating-point operations of one picture of a prior; 0 where that cannot be counted."""
        key = ("drawing of", prior.name, repr(prior.spec()), size.shape, size.classes)
        if key not in self._known:
            self._known[key] = 0.0
            with suppress(NotImplementedError, RuntimeError, UserError), torch.device("meta"):
                network = prior.plugin.build(size.shape, size.classes, _pictures(2, size.classes, size.shape)).eval()
                z, y = torch.zeros(1, network.latent_dim), torch.zeros(1, dtype=torch.int64)
                self._known[key] = float(floating_point(lambda: network.decode(z, y)))
        return float(self._known[key])

    def _prior_of(self, prior: Choice, size: Sizes) -> Any:
        """A prior with random weights; None where it cannot be built so."""
        key = ("prior of", prior.name, repr(prior.spec()), size.shape, size.classes)
        if key not in self._known:
            self._known[key] = None
            with suppress(UserError, RuntimeError, NotImplementedError), torch.random.fork_rng():
                torch.manual_seed(0)
                built = prior.plugin.build(size.shape, size.classes, _pictures(64, size.classes, size.shape))
                self._known[key] = built.eval()
        return self._known[key]

    # --- time

    @property
    def left(self) -> float:
        """Seconds that may still go into timing."""
        waited = time.monotonic() - self.began
        return self.allowance - self.spent if waited < PATIENCE or math.isinf(self.allowance) else 0.0

    def _spent(self, work: Callable[[], object]) -> float:
        seconds = spent(work, self.engine.device)
        self.spent += seconds
        return seconds

    def _timed(self, works: Sequence[Callable[[], object]]) -> list[float]:
        """Seconds of each, once before without being timed; small ones are repeated, the least counts."""
        first = [self._spent(work) for work in works]
        turns = max(1, min(5, int(PIECE / 2 / max(sum(first), 1e-3))))
        rounds = [[self._spent(work) for work in works] for _ in range(turns)]
        return [min(times) for times in zip(*rounds, strict=True)]

    def _rate(self, key: tuple[Any, ...], operations: float, times: int, measure: Callable[[], Rate]) -> Rate:
        """A piece, timed once; or scaled where that would take too long."""
        if key not in self._known:
            if self._may(operations, times):
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    rate = measure()
                self._known[key] = rate
                if operations and rate.seconds:
                    self.reached.append(operations / rate.seconds)
            else:
                self._known[key] = Rate(operations / self._speed(), "scaled" if operations else "unknown")
        return self._known[key]  # type: ignore[no-any-return]

    def _speed(self) -> float:
        """Floating-point operations a second: of what was timed, else a share of the peak."""
        if self.reached:
            return median(self.reached)
        key = ("peak",)
        if key not in self._known:
            dtype = torch.bfloat16 if self.engine.precision == "bf16" else torch.float32
            self._known[key] = peak(self.engine.device, dtype)
        return REACHED * float(self._known[key])

    def _may(self, operations: float, times: int) -> bool:
        """Whether the allowance has room for a piece at its smallest, two pictures."""
        if math.isinf(self.allowance):
            return True
        if operations * 2 * times < 1e9:  # a fraction of a second anywhere
            return self.left > 0
        return operations * 2 * times / self._speed() < self.left

    def _affordable(self, operations: float, times: int) -> int:
        """Pictures that go into a piece."""
        most = MOST[self.engine.device.type]
        if operations * most * times < 1e9:
            return most
        return int(max(2, min(most, PIECE * self._speed() / (operations * times))))


def _data(run: Run) -> Choice:
    asked = run.inputs["dataset"]
    return registry.configure("data", asked["name"], settings=asked["settings"])


def _network(architecture: str, classes: int, shape: tuple[int, int, int]) -> Any:
    return models.build(architecture, classes, shape).eval().requires_grad_(False)


def _pictures(count: int, classes: int, shape: tuple[int, int, int]) -> Split:
    """Noise, with people in turn."""
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, device="cpu")
    return Split(images, torch.arange(count, device="cpu") % classes)


def _least(*rates: Rate) -> Known:
    """How well the worst of some is known."""
    order: tuple[Known, ...] = ("measured", "scaled", "unknown")
    return max((one.known for one in rates), key=order.index, default="measured")


def _within(cost: Cost, budget: int | None) -> Cost:
    """What is asked before a budget ends."""
    if budget is None:
        return cost
    shared = min(cost.shared_queries, budget)
    own = min(cost.queries, budget - shared)
    return Cost(own, min(cost.gradient_images, own), shared)


ASKED: Mapping[str, Callable[[Cost], int]] = {
    "own": lambda cost: cost.queries - cost.gradient_images,
    "slopes": lambda cost: cost.gradient_images,
    "shared": lambda cost: cost.shared_queries,
}
"""The pictures that an attack asks for."""

FURTHER = 6
"""How much is added to a setting of an attack to time what it adds."""


def _smallest(attack: Attack, prior: Any, public: int) -> tuple[Attack, dict[str, tuple[Attack, int]]]:
    """An attack with its settings as small as they go while it asks for every kind of pictures that it asks for; and
    for each kind the attack with more of that kind alone, with how many pictures more."""
    whole = attack.cost(prior, public)
    wanted = [kind for kind, count in ASKED.items() if count(whole)]

    def cost(one: Attack) -> Cost | None:
        with suppress(UserError, ValueError, AssertionError):
            return one.cost(prior, public)
        return None

    names = [one.name for one in fields(attack) if type(getattr(attack, one.name)) is int and getattr(attack, one.name) > 1]
    for name in names:
        for value in (1, 2, 4):
            smaller = _with(attack, name, value) if value < getattr(attack, name) else None
            known = cost(smaller) if smaller is not None else None
            if smaller is not None and known is not None and known != cost(attack):
                if all(ASKED[kind](known) for kind in wanted):
                    attack = smaller
                    break
    base = cost(attack)
    more: dict[str, tuple[Attack, int]] = {}
    for name in names if base is not None else ():
        longer = _with(attack, name, getattr(attack, name) + FURTHER)
        known = cost(longer) if longer is not None else None
        if longer is None or known is None or base is None:
            continue
        added = {kind: count(known) - count(base) for kind, count in ASKED.items()}
        changed = [kind for kind, number in added.items() if number]
        if len(changed) == 1 and added[changed[0]] > 0 and changed[0] not in more:
            more[changed[0]] = longer, added[changed[0]]
    return attack, more


def _with(attack: Attack, name: str, value: int) -> Attack | None:
    with suppress(UserError, ValueError):
        return replace(attack, **{name: value})
    return None
