"""What is worked on in a results folder: read from cards of workers, locks and the age of files, without waiting."""

import fcntl
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mibench.runs.claims import FOLDER, SILENT, cards
from mibench.runs.executor import PROGRESS
from mibench.runs.run import KINDS
from mibench.runs.store import attached
from mibench.runs.store_claims import cards as store_cards
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_lock, read_bytes

__all__ = ["Status", "counts", "status"]


class Status(NamedTuple):
    """One run that is worked on.

    Args:
        run: `kind/name-id`.
        where: Host and process.
        since: When it was begun, by the clock of whoever works on it.
        silent: Seconds since the last sign of life: a worker's card, or the newest file of a process that works alone.
        share: Of the newest bar of progress; None where nobody tells.
        left: Seconds left of that bar, by its own speed.
    """

    run: str
    where: str
    since: str
    silent: float
    share: float | None
    left: float | None

    @property
    def alive(self) -> bool:
        """Whether there was a sign of life lately."""
        return self.silent <= SILENT


def status(root: Path) -> list[Status]:
    """Every run of a results folder that is worked on, in the order of their labels.

    Raises:
        UserError: If it is no folder.
    """
    if not root.is_dir() and attached(root) is None:
        raise UserError(f"{root} is no folder; give the results folder that runs are written to")
    known_cards = {token: card | {"age": _age(root / FOLDER / f"{token}.json")} for token, card in cards(root).items()}
    if (store := attached(root)) is not None:
        known_cards = store_cards(store) | known_cards  # of all hosts; this one's own are younger here
    shown = [_of_card(card) for card in known_cards.values() if card.get("run")]
    known = {one.run for one in shown}
    shown += [one for one in _of_locks(root) if one.run not in known]
    return sorted(shown)


def counts(root: Path) -> dict[str, int]:
    """How many runs of each kind are finished."""
    if (store := attached(root)) is not None:
        published = [label.partition("/")[0] for label in store.known]
        return {kind: number for kind in KINDS if (number := published.count(kind))}
    return {kind: number for kind in KINDS if (number := sum(1 for _ in (root / kind).glob("[!.]*/done")))}


def _of_card(card: dict[str, Any]) -> Status:
    bar, share, left = card.get("progress"), None, None
    if isinstance(bar, dict) and bar["done"]:
        share = min(1.0, bar["done"] / max(bar["total"], 1))
        left = bar["seconds"] * max(bar["total"] - bar["done"], 0) / bar["done"]
    where = f"process {card.get('process')} on {card.get('host')}"
    return Status(card["run"], where, str(card.get("since")), card["age"], share, left)


def _of_locks(root: Path) -> list[Status]:
    """Runs of processes that work alone: whose lock is taken and says by whom."""
    shown = []
    for path in sorted(root.glob("*/.*.lock")):
        with suppress(OSError), open_lock(path) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                where, _, since = lock.read(300).decode(errors="backslashreplace").partition(", since ")
                id = path.name.removeprefix(".").removesuffix(".lock")
                for work in path.parent.glob(f".*-{id}.partial"):
                    newest = min((_age(file) for file in [work, *work.iterdir()]), default=0.0)
                    label = f"{path.parent.name}/{work.name.removeprefix('.').removesuffix('.partial')}"
                    shown.append(Status(label, where, since, newest, _share(work / PROGRESS), None))
    return shown


def _share(path: Path) -> float | None:
    """How much of its newest bar a process that works alone has done."""
    try:
        bar = json.loads(read_bytes(path))
        return min(1.0, float(bar["step"]) / max(float(bar["of"]), 1.0))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _age(path: Path) -> float:
    """Seconds since a file was written, by this machine's clock."""
    with suppress(OSError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return 0.0
