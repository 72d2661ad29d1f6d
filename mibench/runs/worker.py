"""`mibench worker`: any number of processes do the runs of a suite that are ready, each claimed by one of them.

Nothing here schedules, starts or retries anything: who starts the processes (ssh, a Slurm array) does that.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mibench.runs.claims import Worker
from mibench.runs.executor import Stage, attempt, pending
from mibench.runs.run import KINDS, Run
from mibench.runs.store import attached
from mibench.runs.store_claims import StoreWorker
from mibench.runtime.engine import resolve, set_threads
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_bytes
from mibench.runtime.progress import Reporter

__all__ = ["work"]

WAIT = 1.0
"""Seconds between two looks at runs that others work on."""

STORE_WAIT = 5.0
"""The same where each look is a listing of a store."""

LISTING = 10.0
"""A worker lists a large store for one part of its time in so many."""


def work(runs: list[Run], stage: Stage, device: str, reporter: Reporter) -> int:
    """Do every run that is ready and that nobody else does, until all are done or nothing more can be.

    Args:
        runs: What is wanted in the end, all in one results folder.

    Returns:
        How many runs this worker has done.

    Raises:
        UserError: A run failed, here or in another worker since this one began: all that does not build on it is done
            first. Or a living worker has another version.
    """
    store = attached(runs[0].root) if runs else None
    if store is not None:
        store.begin()
        store.settle(reporter)
    left = {run.label: run for run in sorted(pending(runs), key=lambda run: KINDS.index(run.kind))}
    if not left:
        return 0
    root = runs[0].root
    before = {label: _failure(run) for label, run in left.items()}
    failed: dict[str, str] = {}
    count = 0
    set_threads(device)
    with Worker(root) if store is None else StoreWorker(root, store) as worker:
        elsewhere = _Elsewhere(worker, left) if isinstance(worker, StoreWorker) else None
        while left:
            progress = False
            if elsewhere is not None:
                failed |= elsewhere.look(left)
            for run in list(left.values()):
                if run.label not in left:
                    continue
                if run.done:
                    left.pop(run.label)
                    progress = True
                    continue
                if any(parent.label in left for parent in run.ancestors()):
                    continue
                said = _failure(run)
                if said is not None and said != before[run.label]:
                    failed[run.label] = said["why"]
                    _drop(run, left)
                    continue
                with worker.claimed(run) as own:
                    if own is None:
                        continue
                    if store is not None:
                        store.look(run)
                        store.bring(run.ancestors())
                    if not run.done:
                        why = _done(own, stage, device, worker.telling(reporter), worker.lost)
                        if why is not None:
                            failed[run.label] = why
                            if elsewhere is not None:
                                elsewhere.tell(run, why)
                            _drop(run, left)
                            continue
                        if not run.done:  # this one slept and was taken for dead; another does the run
                            continue
                        count += 1
                        reporter.say(f"done {run.label}")
                        if store is not None:
                            store.publish(run, reporter.say)
                    left.pop(run.label)
                    progress = True
                    break  # look again from the beginning: what others wait for goes first
            if left and not progress:
                time.sleep(WAIT if store is None else STORE_WAIT)
    if store is not None:  # of a worker of this host that was killed before it could publish, too
        store.settle(reporter)
    if failed:
        first = next(iter(failed.values()))
        more = f" (and {len(failed) - 1} more: {', '.join(list(failed)[1:4])})" if len(failed) > 1 else ""
        raise UserError(f"{first}{more}")
    return count


class _Elsewhere:
    """What workers of other hosts have done and what failed there since this one began."""

    def __init__(self, worker: StoreWorker, left: dict[str, Run]) -> None:
        self.worker = worker
        self.by_id = {f"{run.kind}/{run.id}": run for run in left.values()}
        self.before = set(worker.failures())
        self.next = 0.0

    def look(self, left: dict[str, Run]) -> dict[str, str]:
        """List the store again, unless that was just done; label -> why of what failed, none of which is left then."""
        if time.monotonic() < self.next:
            return {}
        begun = time.monotonic()
        self.worker.store.refresh()
        self.next = time.monotonic() + max(STORE_WAIT, LISTING * (time.monotonic() - begun))
        failed = {}
        for key, id in self.worker.failures().items():
            run = self.by_id.get(id)
            if key in self.before or run is None or run.label not in left:
                continue
            why = self.worker.why(key)
            if why is not None:
                failed[run.label] = why
                _drop(run, left)
        return failed

    def tell(self, run: Run, why: str) -> None:
        """The others need not try."""
        self.worker.forget(run)
        self.worker.tell(run, why)


def _done(run: Run, stage: Stage, device: str, reporter: Reporter, lost: Callable[[Run], bool]) -> str | None:
    """Do one claimed run; says why where it cannot be done, to the other workers too."""
    note = run.path.parent / f".{run.id}.failed"
    with suppress(OSError):
        note.unlink(missing_ok=True)
    try:
        attempt(run, stage, resolve(device, run.spec["precision"]), reporter)
    except Exception as error:
        if lost(run):
            return None
        why = str(error) if isinstance(error, UserError) else f"{run.label} failed: {type(error).__name__}: {error}"
        with suppress(OSError):
            note.write_text(json.dumps({"by": run.attempt, "why": why}), encoding="utf-8")
        return why
    return None


def _failure(run: Run) -> dict[str, Any] | None:
    """What a worker left of a run that failed."""
    try:
        said = json.loads(read_bytes(run.path.parent / f".{run.id}.failed"))
        return {"by": str(said["by"]), "why": str(said["why"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _drop(run: Run, left: dict[str, Run]) -> None:
    """A failed run, and whatever builds on it, is not waited for."""
    gone = {run.label}
    left.pop(run.label)
    while more := [one for one in left.values() if any(parent.label in gone for parent in one.ancestors())]:
        gone |= {one.label for one in more}
        for one in more:
            left.pop(one.label)
