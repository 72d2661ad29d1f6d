"""An experiment, conducted: planned, then executed or described, then shown."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from mibench.experiments.experiment import Experiment
from mibench.experiments.plan import plan
from mibench.experiments.remarks import remarks
from mibench.plugins import registry
from mibench.runs import Run, damaged, lineage, mirrors
from mibench.runs.executor import pending
from mibench.runs.store import attached
from mibench.runtime import engine
from mibench.runtime.absent import Absent
from mibench.runtime.errors import UserError
from mibench.runtime.terminal import Terminal, say
from mibench.stages import execute, merge, preflight, work
from mibench.zoo import Shelf

__all__ = ["check", "conduct", "help_with", "machine", "metrics_of", "telling_of_check", "zoo"]


def machine(device: str, precision: str) -> tuple[str, str]:
    """The device and precision that `auto` stands for here."""
    return engine.device_name(device), engine.resolve(device, precision).precision


def zoo(without: bool) -> Shelf | None:
    """The zoo, unless everything is to be trained here."""
    return None if without else Shelf()


@contextmanager
def telling_of_check(suite: str) -> Iterator[None]:
    """Whoever lacks one thing that a suite needs is told how to see all that is missing."""
    try:
        yield
    except Absent as error:
        raise UserError(f"{error}; `mibench run {suite} --check` lists everything that is missing") from None


def conduct(
    experiments: Sequence[Experiment],
    results: Path,
    device: str,
    *,
    dry_run: bool,
    force: bool,
    as_json: bool,
    zoo: Shelf | None = None,
    show: Callable[[list[Run]], None] = lambda runs: None,
    early: Callable[[list[Run]], None] | None = None,
    seconds: Mapping[str, float] | None = None,
    on: str | None = None,
    profile: bool = False,
    log: Sequence[str] | None = None,
    shard: int | None = None,
) -> None:
    """Plan all of it before any of it is done; do it, or describe what would be done; print.

    stdout has the JSON, or what `show` prints and the run directories, the main one last; stderr first says what the
    plan does that its words may not suggest (`remarks`). With a zoo, what it has ready is not trained.

    Args:
        early: Told of the first attack and its floors, which are then done before everything else.
        on: A cluster to do it on; here if absent.
        profile: Record what each run's time goes to.
        log: Where each run's numbers are copied to, as typed.
        shard: Only this part of each inversion; whoever ends last puts them together.
    """
    copied = mirrors.read(log or ())
    results = results.absolute() if on else results  # every node must find it under this name
    store = attached(results)
    for kind in ("targets", "inversions") if store is None else ():  # those of a store are looked at when brought here
        say(*(f"note: left out: {line}" for line in damaged(results, kind)), to_stderr=True)
    planned = {run.id: run for experiment in experiments for run in plan(experiment, results, zoo)}
    runs = list(planned.values())
    whole = runs
    if shard is not None:
        if force:
            raise UserError("--force and --shard exclude each other; delete the shard's directory and run it again")
        runs = [run if run.done else run.parts[shard - 1] for run in whole]
    for line in remarks(experiments, runs):
        say(f"note: {line}", to_stderr=True)
    if dry_run:
        describe(runs, force, as_json, seconds or {})
        return
    with Terminal() as terminal:
        if early is not None and not force:
            first = opening(runs)
            execute(first, device, terminal, profile=profile, log=copied)
            if store is not None:
                store.bring(first)
            early(first)
        execute(runs[::-1], device, terminal, force, on, profile, copied)
    if shard is not None:
        runs = _joined(whole, runs, device)
    if store is not None:
        store.bring(runs)
    if as_json:
        shown = [{**run.description(), "path": str(run.path), "metrics": metrics_of(run)} for run in runs]
        print(json.dumps(shown, indent=1, sort_keys=True))
        return
    show(runs)
    say(*(run.path for run in runs))


def read_shard(text: str | None) -> tuple[int | None, int]:
    """`2/8` as (2, 8); (None, 1) where nothing is split.

    Raises:
        UserError: If it is nothing of the kind.
    """
    if text is None:
        return None, 1
    own, slash, of = text.partition("/")
    if not (slash and own.isdecimal() and of.isdecimal() and 1 <= int(own) <= int(of) and int(of) > 1):
        raise UserError(f"--shard takes I/N, as 1/8 for the first of eight parts, got '{text}'")
    return int(own), int(of)


def _joined(whole: list[Run], shards: list[Run], device: str) -> list[Run]:
    """Each inversion where all of its parts are finished, by anybody; else its shard, and a word on who is missing."""
    if (store := attached(whole[0].root)) is not None:
        store.refresh()
    shown = []
    with Terminal() as terminal:
        for run, shard in zip(whole, shards, strict=True):
            if not run.done and (left := merge.missing(run)):
                numbers = ", ".join("{}/{}".format(*part.spec["shard"]) for part in left)
                terminal.say(f"note: {run.label} lacks the shard(s) {numbers}; who does the last puts it together")
                shown.append(shard)
                continue
            execute([run], device, terminal)
            shown.append(run)
    return shown


def check(
    suite: str,
    results: Path,
    device: str,
    precision: str,
    asked: dict[str, Any],
    *,
    zoo: Shelf | None,
    on: str | None,
    measure: bool,
    as_json: bool,
) -> None:
    """What a suite needs and lacks, on stdout; nothing is written.

    Raises:
        typer.Exit: With 2 where something is missing.
    """
    from mibench.cli import printing_check
    from mibench.experiments import check as checking

    with Terminal() as terminal:
        terminal.say(f"looking for what {suite} needs, and timing its steps")
        place = engine.resolve(device, precision)
        checked = checking.check(suite, place, results, asked=asked, zoo=zoo, on=on, measure=measure)
    if as_json:
        print(json.dumps(checked.to_json(), indent=1))
    else:
        printing_check.print_check(checked)
    if not checked.ready:
        raise typer.Exit(2)


def help_with(
    experiments: Sequence[Experiment],
    results: Path,
    device: str,
    zoo: Shelf | None,
    profile: bool = False,
    log: Sequence[str] | None = None,
) -> None:
    """Do what is ready of a plan and what no other worker of the results folder does; say how much that was."""
    copied = mirrors.read(log or ())
    planned = {run.id: run for experiment in experiments for run in plan(experiment, results, zoo)}
    with Terminal() as terminal:
        count = work(list(planned.values())[::-1], device, terminal, profile, copied)
    store = attached(results)
    say(f"{count} run(s) done here; all of the suite is in {store.url if store else results}")


def describe(runs: list[Run], force: bool, as_json: bool, seconds: Mapping[str, float] = MappingProxyType({})) -> None:
    """What would be done: the runs with all that they build on, parents first; and, where it is known what runs take
    (`suites.seconds`), how long what is still to do takes.
    """
    left = pending(runs, force)
    preflight(left)
    todo = {run.label for run in left}
    whole = lineage(runs)
    if as_json:
        shown = [{**run.description(), "done": run.label not in todo} for run in whole]
        print(json.dumps(shown, indent=1, sort_keys=True))
        return
    from mibench.cli import printing

    printing.print_plan(whole, todo, seconds)


def opening(runs: list[Run]) -> list[Run]:
    """The scores of the first attack of a plan: those of its floors, then its own."""
    names = [run.inversion.spec["attack"]["name"] for run in runs]
    roles = [registry.card("attacks", name).get("role", "attack") for name in names]
    return runs[: roles.index("attack") + 1]


def metrics_of(run: Run) -> dict[str, Any]:
    """What a finished run measured."""
    return run.read("scores.json" if run.kind == "scores" else "metrics.json")
