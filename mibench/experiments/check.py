"""`mibench run SUITE --check`: all that a suite needs and lacks, in one go, and how long it takes here."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mibench.experiments import data_needs, needs, suites
from mibench.experiments.experiment import Experiment
from mibench.experiments.needs import Thing
from mibench.experiments.plan import plan
from mibench.experiments.room import of_machine
from mibench.experiments.seconds import Estimate, Stopwatch, estimate
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import KINDS, Run, lineage
from mibench.runs.executor import pending
from mibench.runtime.absent import as_published
from mibench.runtime.engine import Engine, set_threads, workers
from mibench.runtime.errors import UserError
from mibench.zoo import Shelf

__all__ = ["Check", "check", "things_of"]


@dataclass(frozen=True)
class Check:
    """What was found.

    Args:
        suite: As it was asked for.
        title: Its own.
        things: All that is needed.
        todo: Runs that are still to do, parents first.
        done: How many are done already.
        estimate: What those to do take; None where they cannot be planned.
        machine: What the times are of.
        workers: Processes that run side by side.
    """

    suite: str
    title: str
    things: tuple[Thing, ...]
    todo: tuple[Run, ...]
    done: int
    estimate: Estimate | None
    machine: str
    workers: int

    def of(self, state: needs.State) -> list[Thing]:
        """The things of a state."""
        return [one for one in self.things if one.state == state]

    @property
    def ready(self) -> bool:
        """Nothing is missing."""
        return not self.of("missing")

    def hours(self) -> list[tuple[str, int, float, float, str]]:
        """For each kind of runs: how many, hours, hours at most, how that is known."""
        if self.estimate is None:
            return []
        rows = []
        for kind in KINDS:
            own = self.estimate.of(kind)
            if own:
                told = {
                    known: sum(one.known == known for one in own)
                    for known in ("measured", "scaled", "unknown", "ready")
                }
                words = ", ".join(f"{count} {known}" for known, count in told.items() if count)
                seconds, most = sum(one.seconds for one in own), sum(one.most for one in own)
                rows.append((kind, len(own), seconds / 3600, most / 3600, words))
        return rows

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        told = self.estimate
        return {
            "suite": self.suite,
            "title": self.title,
            "ready": self.ready,
            "things": [asdict(one) for one in self.things],
            "runs": {"to_do": len(self.todo), "done": self.done},
            "time": None
            if told is None
            else {
                "machine": self.machine,
                "workers": self.workers,
                "hours": told.seconds / 3600,
                "hours_at_most": told.most / 3600,
                "unit": "processor hours" if self.machine.startswith("cpu") else "hours",
                "kinds": [
                    dict(zip(("kind", "runs", "hours", "hours_at_most", "known"), row, strict=True))
                    for row in self.hours()
                ],
            },
        }


def check(
    suite: str,
    engine: Engine,
    results: Path,
    *,
    asked: dict[str, Any],
    zoo: Shelf | None = None,
    on: str | None = None,
    measure: bool = False,
) -> Check:
    """Look for everything; nothing is written.

    Args:
        suite: A name or a file, as of `suites.read`.
        engine: Where it would run.
        results: The folder of all runs.
        asked: What lies over the file, as of `suites.read`: dataset, seed, identities, sets.
        zoo: As of `plan`.
        on: A cluster, if it is to run there.
        measure: Time every step and decode every picture, however long that takes.

    Raises:
        UserError: There is no such suite, or its file is not one.
    """
    set_threads(engine.device.type)
    over = {name: value for name, value in asked.items() if name != "seed"}
    with as_published():
        tables = suites.sweeps(suite, **over)
        runs: list[Run] = []
        experiments: list[Experiment] = []
        refused: UserError | None = None
        try:
            experiments = suites.read(suite, **asked, precision=engine.precision)
            runs = list({run.id: run for one in experiments for run in plan(one, results, zoo)}.values())
        except UserError as error:
            refused = error
        todo = pending(runs)
        things = things_of(tables, suite, results, todo, on, measure)
        if refused is not None:
            things.append(needs.of_plan(refused))
        told = None
        if refused is None:
            watch = Stopwatch(engine, float("inf")) if measure else Stopwatch(engine)
            told = estimate(todo, watch)
            sets = [data for data in _datasets(tables) if isinstance(data, Choice)]
            things += of_machine(sets, todo, told, watch, results, engine)
    title = experiments[0].title if experiments else str(tables[0].get("title", ""))
    return Check(
        suite,
        title,
        tuple(needs.distinct(things)),
        tuple(todo),
        len(lineage(runs)) - len(todo),
        told,
        _machine(engine),
        workers(engine.device.type),
    )


def things_of(
    tables: Sequence[dict[str, Any]],
    suite: str,
    results: Path,
    todo: Sequence[Run] = (),
    on: str | None = None,
    whole: bool = False,
) -> list[Thing]:
    """All that is needed but for the machine.

    Args:
        tables: The suite's sweeps.
        suite: Its name or file.
        results: The folder of all runs.
        todo: Runs that are still to do, as far as they could be planned; they tell which weights networks start from.
        on: A cluster, if it is to run there.
        whole: Decode every picture that is not prepared yet.
    """
    things: list[Thing] = []
    for data in _datasets(tables):
        things += [data] if isinstance(data, Thing) else data_needs.of_data(data, whole)
    things += needs.of_weights(tables, suite, todo, results)
    things += needs.of_packages(tables, on)
    return [*things, *needs.of_judges(todo)]


def _datasets(tables: Sequence[dict[str, Any]]) -> list[Choice | Thing]:
    """Each data set with its settings once; one that cannot be is a thing that is missing."""
    known: dict[str, Choice | Thing] = {}
    for table in tables:
        name, settings = str(table.get("dataset", "digiface")), dict(table["settings"].get("data", {}))
        key = f"{name} {settings}"
        try:
            known.setdefault(key, registry.configure("data", name, settings=settings))
        except UserError as error:
            known.setdefault(key, Thing("data", name, "missing", str(error), "mibench data list"))
    return list(known.values())


def _machine(engine: Engine) -> str:
    if engine.device.type == "cuda":
        return f"{engine.device}: {torch.cuda.get_device_name(engine.device)}, {engine.precision}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{engine.device.type}: {platform.machine()}, {capability}, {engine.precision}"
