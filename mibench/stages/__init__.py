"""The stages: train_target, train_prior, invert, score. Each has `plan(...) -> Run` and `work(run, engine, reporter)`.

A plan is cheap and touches no data; the work reads its parents' files, so stages may run in different processes, on
different days, or on different machines.
"""

from collections.abc import Sequence

from mibench import zoo
from mibench.plugins import registry
from mibench.runs import Run, canonical, cluster, executor, mirrors, worker
from mibench.runs.observed import Observed
from mibench.runs.store import refuse
from mibench.runtime.absent import Absent, taken_as_published
from mibench.runtime.endings import going_on
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Reporter
from mibench.stages import (
    artifacts,
    import_images,
    import_prior,
    import_target,
    imported,
    invert,
    merge,
    score,
    train_backbone,
    train_prior,
    train_target,
    train_verifier,
)

__all__ = ["execute", "perform", "preflight", "prepare", "work"]

_STAGES = {
    "backbones": train_backbone.work,
    "targets": train_target.work,
    "evaluators": train_target.work,
    "verifiers": train_verifier.work,
    "priors": train_prior.work,
    "shards": invert.work,
    "inversions": invert.work,
    "scores": score.work,
}


def perform(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Do one run by the stage of its kind, or take it from the zoo where the plan says so."""
    if zoo.origin(run):
        zoo.install(run)
        return
    # Imported images are an inversion that another program made, an imported target or prior a network it trained.
    work = _STAGES[run.kind]
    if run.parts:
        work = merge.work
    elif import_images.imported(run):
        work = import_images.work
    elif imported.is_imported(run):
        work = import_target.work
    elif import_prior.is_imported(run):
        work = import_prior.work
    work(run, engine, reporter)


def preflight(runs: list[Run], reporter: Reporter | None = None) -> None:
    """What can be found wrong with runs that are still to do before any of them is done.

    Files of data sets are read for it; images that would have to be drawn are not.

    Raises:
        UserError: The first of it.
    """
    runs = [run for run in runs if not zoo.origin(run)]
    with going_on("what was asked"):
        for run in runs:
            if run.kind == "targets" and not imported.is_imported(run):
                train_target.preflight(run)
        wanted = [run.inputs["dataset"] for run in runs if "dataset" in run.inputs]
        for inputs in {canonical(inputs): inputs for inputs in wanted}.values():
            if registry.load("data", inputs["name"]).refusable:  # type: ignore[attr-defined]
                try:
                    artifacts.open_dataset(inputs, reporter)
                except Absent:
                    if not taken_as_published():
                        raise
        for run in runs:
            if run.kind == "priors" and not import_prior.is_imported(run):
                train_prior.preflight(run)


def execute(
    runs: list[Run],
    device: str,
    reporter: Reporter,
    force: bool = False,
    on: str | None = None,
    profile: bool = False,
    log: Sequence[mirrors.Mirror] = (),
) -> None:
    """Do everything that `runs` need; see `executor.execute`.

    Args:
        on: A cluster to do it on (`runs.cluster`); in this process and its workers if absent.
        profile: Record what each run's time goes to (`runs.profiling`).
        log: Where each run's numbers are copied to (`runs.mirrors`).

    Raises:
        UserError: The first mistake of a stage; what was finished before it stays.
    """
    if runs and force:
        refuse(runs[0].root, "--force", "what is published stays; delete that object, or give another place")
    if runs and on:
        refuse(runs[0].root, f"--on {on}", "nodes share a folder; start a mibench worker on each of them instead")
    todo = executor.pending(runs, force)
    if profile and not todo:
        reporter.say("note: all is done, so there is nothing to profile; --force does it again")
    prepare(todo, reporter)
    stage = Observed.of(perform, profile, tuple(log))
    if on is None:
        executor.execute(runs, stage, device, reporter, force)
    else:
        cluster.execute(runs, stage, device, reporter, force, cluster.read(on))


def work(
    runs: list[Run], device: str, reporter: Reporter, profile: bool = False, log: Sequence[mirrors.Mirror] = ()
) -> int:
    """Do those of `runs`, and of what they need, that no other worker of the results folder does; returns how many
    were done here.

    Args:
        profile: As for `execute`.
        log: Likewise.

    Raises:
        UserError: See `worker.work`.
    """
    prepare(executor.pending(runs), reporter)
    return worker.work(runs, Observed.of(perform, profile, tuple(log)), device, reporter)


def prepare(todo: list[Run], reporter: Reporter) -> None:
    """Find what can be found wrong before any of it is done, and open every data set once."""
    preflight(todo, reporter)
    # Drawn or decoded once here, with all cores, instead of once in every worker: the cache then has it. And before
    # --force throws anything away.
    wanted = [run.inputs["dataset"] for run in todo if "dataset" in run.inputs]
    for inputs in {canonical(inputs): inputs for inputs in wanted}.values():
        with going_on(f"the data set {inputs['name']}"):
            data = artifacts.open_dataset(inputs, reporter)
        for what, images in data.card.get("converted", {}).items():
            reporter.say(f"data set {data.name}: {images} image(s) converted: {what}")
