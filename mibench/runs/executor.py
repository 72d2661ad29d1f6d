"""A graph of runs, executed: what is done is skipped, parents come first, independent runs go side by side.

On a CPU two worker processes share the cores; on an accelerator everything runs in this process.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from queue import Empty
from typing import Any

from mibench.runs.relay import Relay, Shown
from mibench.runs.run import KINDS, Run
from mibench.runs.store import attached
from mibench.runtime.endings import going_on
from mibench.runtime.engine import Engine, out_of_memory, resolve, set_threads, workers
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Recorded, Reporter

__all__ = ["PROGRESS", "Stage", "attempt", "execute", "pending"]

TOLD = 0.2
"""Seconds between two words of a worker's bar."""

PROGRESS = ".progress.json"
"""In a directory that is worked on: how far the work has come (`Recorded`); gone when the run is finished."""

Stage = Callable[[Run, Engine, Reporter], None]
"""What does one run, within its lock: `mibench.stages.perform`."""


def pending(runs: list[Run], force: bool = False) -> list[Run]:
    """The runs still to do, with the ancestors they need, parents first, each once.

    With `force` the named runs are done again; their finished ancestors are not.
    """
    order: dict[str, Run] = {}

    def visit(run: Run, again: bool) -> None:
        if run.label in order or (not again and run.done):
            return
        for parent in run.ancestors():
            visit(parent, False)
        order[run.label] = run

    for run in runs:
        visit(run, force)
    return list(order.values())


def perform(run: Run, stage: Stage, engine: Engine, reporter: Reporter) -> None:
    """Do one run, unless another process has done it meanwhile.

    Raises:
        UserError: If there is not enough memory, or a plug-in ended the process.
    """
    with run.locked(reporter.say):
        if not run.done:
            attempt(run, stage, engine, reporter)


def attempt(run: Run, stage: Stage, engine: Engine, reporter: Reporter) -> None:
    """Do one run that this process alone works on.

    Raises:
        UserError: If there is not enough memory, or a plug-in ended the process.
    """
    try:
        with going_on(run.label):
            stage(run, engine, Recorded(reporter, run.work / PROGRESS))
    except (MemoryError, RuntimeError) as error:
        said = out_of_memory(error)
        if said is None:
            raise
        raise UserError(
            f"{run.label} ran out of memory on {engine.device} ({said}); what is done so far is kept: run the "
            "same command again with MIBENCH_WORKERS=1 or a smaller MIBENCH_MEMORY, or ask for less, as with "
            "--set training.batch=... or data.image_size=..."
        ) from None


def execute(runs: list[Run], stage: Stage, device: str, reporter: Reporter, force: bool = False) -> None:
    """Do everything that `runs` need; where the folder stands for a store, publish it.

    Raises:
        UserError: The first mistake of a stage; what was finished before it stays.
    """
    todo = pending(runs, force)
    store = attached(runs[0].root) if runs else None
    if store is not None:
        store.begin()
        store.settle(reporter)
    if force:
        for run in runs:
            run.discard()
    count = min(workers(device), len(todo))
    if count > 1:
        _side_by_side(todo, stage, device, count, reporter)
    else:
        set_threads(device)
        for run in todo:
            _before(run)
            perform(run, stage, resolve(device, run.spec["precision"]), reporter)
            _after(run, reporter)
    if store is not None and store.unsent:
        store.settle(reporter)


def _before(run: Run) -> None:
    """What the run builds on becomes files of this machine."""
    if (store := attached(run.root)) is not None:
        store.bring(run.ancestors())


def _after(run: Run, reporter: Reporter) -> None:
    reporter.say(f"done {run.label}")
    if (store := attached(run.root)) is not None:
        store.publish(run, reporter.say)


# --- worker processes -----------------------------------------------------------------------------------------------

_events: Any = None


def _start(events: Any, device: str) -> None:
    """A worker's first act: its share of the threads, its line to the parent, and an eye on the parent's life."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()  # also if it ended while this process was still starting
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    set_threads(device)


def _job(run: Run, stage: Stage, device: str) -> None:
    perform(run, stage, resolve(device, run.spec["precision"]), Relay(_events.put, TOLD))


def _replay(events: Any, shown: Shown) -> None:
    """What the workers have sent since the last look."""
    with suppress(Empty):
        while True:
            shown.replay(*events.get_nowait())


def _side_by_side(todo: list[Run], stage: Stage, device: str, count: int, reporter: Reporter) -> None:
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    shown = Shown(reporter)
    left = {run.label: run for run in todo}
    running: dict[Future[None], Run] = {}
    pool = ProcessPoolExecutor(count, context, _start, (events, device))
    stopped = True  # by a mistake or Ctrl-C: what the workers have done is then in their checkpoints
    try:
        while left or running:
            awaited = left.keys() | {other.label for other in running.values()}
            # What others wait for first, the many short scores last, so that no worker idles at the end.
            for run in sorted(left.values(), key=lambda run: KINDS.index(run.kind)):
                if len(running) == count:
                    break
                # Only as many as there are workers: the next pick then sees everything that has become possible.
                if not any(parent.label in awaited for parent in run.ancestors()):
                    _before(run)
                    running[pool.submit(_job, left.pop(run.label), stage, device)] = run
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _replay(events, shown)
            for future in finished:
                future.result()
                _after(running.pop(future), reporter)
        stopped = False
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory; in work: "
            f"{', '.join(sorted(run.label for run in running.values()))}; run the same command again to resume, with "
            "MIBENCH_WORKERS=1 to use half of it"
        ) from None
    finally:
        shown.close()
        if stopped:
            for child in multiprocessing.active_children():
                child.terminate()
        # Python 3.11's pool can wait for ever for workers that were ended.
        pool.shutdown(wait=not stopped, cancel_futures=True)
