"""What runs take: their counts times what one of each takes."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mibench import zoo
from mibench.core import PriorTrainer
from mibench.data.published.source import STRANGERS
from mibench.experiments.audit.costs import attacker_of, images_of
from mibench.experiments.plan import cost_of
from mibench.experiments.seconds.pieces import Pieces
from mibench.experiments.seconds.smallest import within
from mibench.experiments.seconds.timer import Known, least
from mibench.experiments.sizes import sizes_of
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import KINDS, Run
from mibench.stages import artifacts, import_images, import_prior, imported
from mibench.stages.invert import batch_of
from mibench.training import Training

__all__ = ["Estimate", "Stopwatch", "Taken", "data_of", "estimate"]


SHARES = {"priors": 0.75, "inversions": 0.95, "scores": 1.0}
"""Of the allowance, that is used up when the runs of a kind have been looked at; half of it goes to trainings."""


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


def estimate(todo: Sequence[Run], watch: "Stopwatch") -> Estimate:
    """What some runs take that are still to do.

    Args:
        todo: Parents first.
        watch: That of the machine.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are copied into networks without any
        # Small ones first, so that the large ones can be scaled from them; in the order of the runs at last.
        taken = {}
        for run in sorted(todo, key=watch.order):
            watch.share = SHARES.get(run.kind, 0.5)
            taken[run.label] = watch.run(run)
    reached = median(watch.reached) if watch.reached else math.nan
    return Estimate(tuple(taken[run.label] for run in todo), reached, time.monotonic() - watch.began)


class Stopwatch(Pieces):
    """Costs runs, by pieces that are timed once."""

    def order(self, run: Run) -> tuple[int, float]:
        """Trainings first, of small networks before large ones; then what searches and judges with them."""
        if "model" not in run.spec:
            return KINDS.index(run.kind), 0.0
        data = sizes_of(data_of(run))
        return 0, self._passes(run.spec["model"], data.classes, data.shape)

    def run(self, run: Run) -> Taken:
        """What one run takes."""
        if zoo.origin(run) or import_prior.is_imported(run) or import_images.imported(run) or imported.is_imported(run):
            return Taken(run, 0.0, 0.0, "ready", 0.0)  # files are read and copied
        if run.kind == "priors":
            return self._of_prior(run)
        if run.kind == "inversions":
            return self._of_inversion(run)
        if run.kind == "scores":
            return self._of_score(run)
        return self._of_training(run)

    def _of_training(self, run: Run) -> Taken:
        data = sizes_of(data_of(run))
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
        return Taken(run, seconds, seconds * (1 + again), least(step, passes), held)

    def _of_prior(self, run: Run) -> Taken:
        choice, data = run.spec["prior"], sizes_of(data_of(run))
        plugin = registry.configure("priors", choice["name"], settings=choice["settings"]).plugin
        if type(plugin).train is PriorTrainer.train:  # shipped
            return Taken(run, 0.0, 0.0, "ready", 0.0)
        target = run.target.spec["model"] if "target" in run.parents else ""
        seconds, known = self.prior(plugin, data, target)
        return Taken(run, seconds, seconds, known, 0.0)

    def _of_inversion(self, run: Run) -> Taken:
        data = data_of(run)
        attacker, size = attacker_of(run), sizes_of(data)
        cost, people = within(cost_of(attacker, data), run.spec["budget"]), run.spec["identities"] or size.classes
        rates = self.attack(attacker.attack.plugin, attacker.prior, run.target.spec["model"], size)
        own, slopes, shared = rates
        counts = ((cost.queries - cost.gradient_images) * people, cost.gradient_images * people, cost.shared_queries)
        seconds = math.fsum(count * rate.seconds for count, rate in zip(counts, rates, strict=True))
        used = [rate for count, rate in zip(counts, rates, strict=True) if count]
        prior = self._prior_of(attacker.prior, size)
        batch = batch_of(self.engine, size.shape, prior) if prior is not None else 1
        largest = max((one.memory for one in (own, slopes, shared)), default=0.0)
        held = largest * min(batch, max(people * images_of(attacker.attack), 1)) if largest else 0.0
        return Taken(run, seconds, seconds, least(*used) if used else "measured", held)

    def _of_score(self, run: Run) -> Taken:
        inversion = run.inversion
        if inversion.prior is None:
            return Taken(run, 0.0, 0.0, "unknown", 0.0)
        size = sizes_of(data_of(inversion))
        pictures = (inversion.spec["identities"] or size.classes) * images_of(attacker_of(inversion).attack)
        judges = [one for one in run.ancestors() if one.kind in ("evaluators", "verifiers")]
        passes = [self.forward(one.spec["model"], size.learnt(one.kind)[1], size.shape) for one in judges]
        target = self.forward(inversion.target.spec["model"], size.classes, size.shape)
        seconds = (pictures + size.heldout) * math.fsum(one.seconds for one in [*passes, target])
        for judge, one in zip(judges, passes, strict=True):
            if judge.kind == "evaluators" and judge.label not in self._known:
                # What it says of real images is asked once a process.
                seconds += (size.train + size.heldout + min(size.public, STRANGERS)) * one.seconds
                self._known[judge.label] = True
        return Taken(run, seconds, seconds, least(target, *passes), 0.0)


def data_of(run: Run) -> Choice:
    """The data set that a run is about."""
    while "dataset" not in run.inputs:
        run = run.target if "target" in run.parents else run.inversion
    asked = run.inputs["dataset"]
    return registry.configure("data", asked["name"], settings=asked["settings"])
