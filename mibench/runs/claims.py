"""Who works on which run, where many processes on many hosts share a results folder and nothing else.

A *worker* has a card, `.workers/<token>.json`, that it writes again every few seconds with a higher count. It claims a
run by making `<kind>/.<id>.claim`, which holds its token: whoever makes the file first has the run. A claim is taken
from a worker whose count has stood still for a minute, by the watch of whoever looks: clocks of hosts are never
compared. A process of the same machine that is gone is known to be dead at once.

A claim saves double work; what keeps results whole does not rest on it. Every worker works in a directory of its own,
and who takes a run over moves the other's directory, checkpoints included, into its own by one rename: should the other
only have slept, it finds nothing to write to and gives up. Where two finish all the same, the first stays
(`Run.appear`). No flock is needed for any of that; it is taken too where it works, so that a command that works alone
waits for workers and they for it.
"""

import errno
import fcntl
import json
import os
import platform
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mibench.runs.run import Run
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_lock, read_bytes
from mibench.runtime.progress import Reporter, Task

__all__ = ["BEAT", "FOLDER", "SILENT", "Worker", "cards", "versions"]

FOLDER = ".workers"
"""Below the results folder: one card for each worker."""

BEAT = 5.0
"""Seconds between two signs of life."""

SILENT = 60.0
"""Seconds without one after which a worker counts as dead."""


def versions() -> dict[str, str]:
    """What must be the same on all hosts for a run to have the same bytes everywhere."""
    import torch

    from mibench import __version__

    return {"mibench": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def require_same(mine: Mapping[str, str], theirs: Mapping[str, Any], who: str) -> None:
    """Refuse to work beside another version.

    Raises:
        UserError: Names what differs, here and there.
    """
    for name in ("mibench", "torch"):
        if mine[name] != theirs.get(name):
            raise UserError(
                f"{who} has {name} {theirs.get(name)}, this process on {socket.gethostname()} has {name} {mine[name]}: "
                "the same run would have other bytes; install the same on every host"
            )


def cards(root: Path) -> dict[str, dict[str, Any]]:
    """What the workers of a results folder last said of themselves, by token."""
    known = {}
    for path in sorted((root / FOLDER).glob("[!.]*.json")):
        with suppress(OSError, ValueError):  # gone meanwhile, or half there on a store that shows such
            card = json.loads(read_bytes(path))
            if isinstance(card, dict):
                known[path.stem] = card
    return known


class Worker:
    """One worker's life: its card, its claims, and its watch over the others.

    Args:
        root: The results folder.
        group: Workers of one group take each other's claims at once: whoever starts them knows that one is dead.

    Raises:
        UserError: If a living worker has another version, or the folder cannot be written.
    """

    def __init__(self, root: Path, group: str = "") -> None:
        self.root = root
        self.group = group
        self.token = f"{group or 'worker'}.{secrets.token_hex(6)}"
        self.card: dict[str, Any] = {
            **versions(),
            "beat": 0,
            "group": group,
            "host": socket.gethostname(),
            "place": _place(),
            "process": os.getpid(),
            "run": None,
            "progress": None,
        }
        self._seen: dict[str, tuple[int, float]] = {}
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> "Worker":
        self._require_versions()
        try:
            (self.root / FOLDER).mkdir(parents=True, exist_ok=True)
            self.beat()
        except OSError as error:
            raise UserError(
                f"cannot write to the results folder {self.root}: {error.strerror}; choose another with --results"
            ) from None
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.root / FOLDER / f"{self.token}.json"

    def beat(self) -> None:
        """Write the card again, as a whole or not at all."""
        with self._writing:
            self.card["beat"] += 1
            scratch = self._path.with_name(f".{self.token}.tmp")
            scratch.write_text(json.dumps(self.card), encoding="utf-8")
            scratch.replace(self._path)

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):  # a store that is full or away for a while: the work itself will say so
                self.beat()

    def _require_versions(self) -> None:
        """Refuse to start beside a living worker of another version; a card that stands still is a dead one's."""
        others = {token: card for token, card in cards(self.root).items() if differs(self.card, card)}
        until = time.monotonic() + 2 * BEAT
        while others and time.monotonic() < until:
            time.sleep(BEAT / 10)
            now = cards(self.root)
            for token, card in others.items():
                if token in now and now[token].get("beat") != card.get("beat"):
                    require_same(self.card, card, f"the worker {card.get('process')} on {card.get('host')}")
        for token in others:
            self.bury(token)

    def bury(self, token: str) -> None:
        """Remove the card of a dead worker; one that only slept writes it again."""
        with suppress(OSError):
            (self.root / FOLDER / f"{token}.json").unlink(missing_ok=True)

    def free(self, run: Run) -> None:
        """Remove the claim of a worker of this one's group that was ended."""
        claim = run.path.parent / f".{run.id}.claim"
        with suppress(OSError):
            holder = _holder(claim)
            if holder is not None and holder.startswith(f"{self.group}."):
                claim.unlink(missing_ok=True)

    # --- claims

    def silent(self, token: str, known: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a worker has given no sign of life for so long, as far as this one has watched."""
        beat = int(known.get(token, {}).get("beat", 0))
        last, since = self._seen.get(token, (-1, 0.0))
        if last != beat:
            self._seen[token] = (beat, time.monotonic())
            return False
        return time.monotonic() - since > SILENT

    def gone(self, card: Mapping[str, Any]) -> bool:
        """Whether a worker was a process of this machine that has ended."""
        place, process = self.card["place"], card.get("process")
        return bool(place) and card.get("place") == place and isinstance(process, int) and not _exists(process)

    @contextmanager
    def claimed(self, run: Run) -> Iterator[Run | None]:
        """The run to work on, in a directory of this worker's own; None if somebody else has it."""
        claim = run.path.parent / f".{run.id}.claim"
        try:
            claim.parent.mkdir(parents=True, exist_ok=True)
            if not self._take(claim):
                yield None
                return
        except OSError as error:
            raise UserError(
                f"cannot write to the results folder {self.root}: {error.strerror}; choose another with --results"
            ) from None
        try:
            with _flock(run) as alone:
                if alone:
                    own = replace(run, attempt=self.token)
                    self._adopt(own)
                    self._say(run.label)
                yield own if alone else None
        finally:
            self._say(None)
            with suppress(OSError):  # where nothing was written
                (claim.parent / ".attempts" / self.token).rmdir()
            with suppress(OSError):
                if _holder(claim) == self.token:
                    claim.unlink()

    def lost(self, run: Run) -> bool:
        """Whether another has taken a run over, as which it failed here."""
        return _holder(run.path.parent / f".{run.id}.claim") != self.token

    def _take(self, claim: Path) -> bool:
        if self._make(claim):
            return True
        holder = _holder(claim)
        if holder is None:
            return self._make(claim)
        known = cards(self.root)
        ours = self.group and holder.startswith(f"{self.group}.")
        if not ours and not self.gone(known.get(holder, {})) and not self.silent(holder, known):
            return False
        taken = claim.with_name(f"{claim.name}.{self.token}")
        try:
            claim.rename(taken)  # one of those who try
        except FileNotFoundError:
            return False
        newer = _holder(taken)
        if newer != holder:  # somebody was faster and is alive
            with suppress(OSError):
                os.link(taken, claim)
        taken.unlink()
        self.bury(holder)
        with suppress(OSError):  # where it got no further than to make it
            (claim.parent / ".attempts" / holder).rmdir()
        return newer == holder and self._make(claim)

    def _make(self, claim: Path) -> bool:
        try:
            handle = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(self.token)
        return True

    def _adopt(self, run: Run) -> None:
        """Go on from the directory in which another has worked on the run, which by that is no longer the other's."""
        kind = run.path.parent
        others = [kind / run.work.name, *sorted(kind.glob(f".attempts/*/{run.work.name}"))]
        run.work.parent.mkdir(parents=True, exist_ok=True)
        for other in others:
            if other == run.work or not other.is_dir():
                continue
            if run.work.exists():  # one is enough; checkpoints of one machine's try are not mixed with another's
                shutil.rmtree(other, ignore_errors=True)
            else:
                with suppress(FileNotFoundError):
                    other.rename(run.work)
            if other.parent != kind:
                with suppress(OSError):
                    other.parent.rmdir()

    # --- what it says of itself

    def _say(self, label: str | None) -> None:
        self.card |= {"run": label, "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "progress": None}
        with suppress(OSError):
            self.beat()

    def telling(self, reporter: Reporter) -> Reporter:
        """A reporter whose progress is on the card, too."""
        return _Telling(self.card, reporter)


def _place() -> str:
    """Where the number of a process means the same one: a running machine, and a container of it; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def differs(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return any(mine[name] != theirs.get(name) for name in ("mibench", "torch"))


def _holder(claim: Path) -> str | None:
    try:
        return read_bytes(claim).decode(errors="backslashreplace")
    except FileNotFoundError:
        return None


@contextmanager
def _flock(run: Run) -> Iterator[bool]:
    """Whether nobody holds the lock of processes that work alone; where there are no locks, nobody does.

    Workers share it: one that is frozen must not keep the others out.
    """
    with open_lock(run.path.parent / f".{run.id}.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield True


class _Telling:
    """Passes everything on, and notes the newest bar on a worker's card."""

    def __init__(self, card: dict[str, Any], reporter: Reporter) -> None:
        self.card = card
        self.reporter = reporter

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Task]:
        begun = time.monotonic()
        with self.reporter.task(label, total, unit) as shown:

            def note(done: int) -> None:
                passed = round(time.monotonic() - begun, 1)
                self.card["progress"] = {"label": label, "total": total, "done": done, "unit": unit, "seconds": passed}

            yield _Counted(shown, note)

    def say(self, line: str) -> None:
        self.reporter.say(line)


class _Counted:
    def __init__(self, shown: Task, note: Callable[[int], None]) -> None:
        self.shown = shown
        self.note = note
        self.done = 0

    def advance(self, count: int = 1) -> None:
        self.done += count
        self.note(self.done)
        self.shown.advance(count)
