"""A rehearsal, done: each step is tried, and what fails is named at the end."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mibench import stages
from mibench.experiments.experiment import Experiment
from mibench.experiments.plan import plan
from mibench.experiments.rehearsal.choosing import choose
from mibench.experiments.rehearsal.place import place
from mibench.experiments.rehearsal.standing import imagenet, replaced, smaller_data, standing_in
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import Run, canonical, lineage
from mibench.runtime.engine import resolve, set_threads
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter

__all__ = ["CANNOT_TELL", "Rehearsal", "Step", "rehearse"]

CANNOT_TELL = (
    "memory, time and disk at true size",
    "whether your own files are whole and the right ones: it does not look at them",
    "whether networks converge, and any number",
)
"""What no rehearsal says anything about."""


@dataclass
class Step:
    """One step.

    Args:
        kind: `data`, a kind of runs, or `report`.
        name: What it is.
        seconds: It took, by the clock.
        processor: Of those of this process's processor time.
        failure: Why it failed, or on what that failed it builds, in a line; empty if it did not.
    """

    kind: str
    name: str
    seconds: float = 0.0
    processor: float = 0.0
    failure: str = ""


@dataclass
class Rehearsal:
    """What was rehearsed.

    Args:
        runs: How many runs the suites have.
        steps: In the order in which they were tried.
        replaced: What stood in for what, a line each.
    """

    runs: int = 0
    steps: list[Step] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Step]:
        """The steps that failed, or build on one that did."""
        return [step for step in self.steps if step.failure]

    @property
    def seconds(self) -> float:
        """All steps took, by the clock."""
        return sum(step.seconds for step in self.steps)

    @property
    def processor(self) -> float:
        """And of processor time, in seconds."""
        return sum(step.processor for step in self.steps)

    @contextmanager
    def step(self, kind: str, name: str, reporter: Reporter) -> Iterator[Step]:
        """Try something: whatever goes wrong within is kept, and the rehearsal goes on."""
        step = Step(kind, name)
        self.steps.append(step)
        started, before = time.monotonic(), time.process_time()
        try:
            yield step
        except Exception as error:  # a plug-in may raise anything
            said = " ".join(str(error).split())
            step.failure = said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
        step.seconds, step.processor = time.monotonic() - started, time.process_time() - before
        reporter.say(
            f"{'FAILED' if step.failure else 'done'} {kind} {name}{': ' + step.failure if step.failure else ''}"
        )


def rehearse(
    experiments: Sequence[Experiment],
    device: str,
    reporter: Reporter,
    report: Callable[[Path], object],
    keep: Path | None = None,
    needed: Sequence[str] = (),
    results: Path | None = None,
) -> Rehearsal:
    """Rehearse suites; what fails is in the answer, and nothing is left behind.

    Args:
        experiments: Of the suites, read within `runtime.absent.as_published`.
        device: Where.
        reporter: Is told of each step.
        report: Reports on a results folder of a rehearsal, the last step.
        keep: A folder to leave it in, to look at.
        needed: Files of weights that the suites state; nothing can stand in for those that are not here.
        results: The user's own results, which tell what finished evaluation models are.

    Raises:
        UserError: The folder cannot be kept.
    """
    done = Rehearsal()
    set_threads(device)
    with place(keep, needed) as root:
        planned = lineage(_planned(done, experiments, root, reporter, results))
        runs, done.runs = choose(planned), len(planned)
        failed: set[str] = set()
        made: list[str] = []
        with done.step("weights", "of ImageNet", reporter):
            made = imagenet(runs, root / "torch/hub/checkpoints")
        done.replaced += replaced(runs, made)
        for name in needed:
            here = (root / "data/weights" / Path(name).name).exists()
            done.replaced.append(f"weights {name}: {'your own' if here else 'not here, and nothing stands in'}")
        for run in runs:
            with done.step(run.kind, told(run), reporter) as step:
                if broken := [parent.label for parent in run.ancestors() if parent.label in failed]:
                    raise UserError(f"not tried: it builds on {broken[0]}, which failed")
                stages.preflight([run], reporter)
                with run.locked(reporter.say):
                    stages.perform(run, resolve(device, run.spec["precision"]), reporter)
            if step.failure:
                failed.add(run.label)
        if any(step.kind == "scores" and not step.failure for step in done.steps):
            with done.step("report", "tables, figures, pictures and the page", reporter):
                report(root / "results")
    return done


def _planned(
    done: Rehearsal, experiments: Sequence[Experiment], root: Path, reporter: Reporter, results: Path | None
) -> list[Run]:
    """Every score of the suites on stand-in data."""
    prepared: dict[str, Choice] = {}
    runs: dict[str, Run] = {}
    for number, experiment in enumerate(experiments, start=1):
        data = experiment.dataset
        assert data is not None
        key = canonical([data.name, {name: str(value) for name, value in vars(data.plugin).items()}])
        if key not in prepared:
            with done.step("data", _asked(data), reporter):
                prepared[key] = smaller_data(data, root / "data", reporter)
        if key in prepared:
            with done.step("plan", f"sweep {number} of {len(experiments)}", reporter):
                small = standing_in(experiment, prepared[key], root / "data/weights", results)
                runs |= {run.label: run for run in plan(small, root / "results")}
    return list(runs.values())


def _asked(data: Choice) -> str:
    """A data set with the settings that it has not by default."""
    usual = registry.defaults("data", data.name)
    given = (f"{key}={value}" for key, value in vars(data.plugin).items() if value != usual.get(key))
    return " ".join([data.name, *given])


def told(run: Run) -> str:
    """A run in a few words."""
    if run.kind == "inversions":
        return f"{run.name} on {run.target.name}"
    if run.kind == "scores":
        return f"{run.name} on {run.inversion.target.name}"
    return run.name
