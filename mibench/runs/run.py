"""Runs: what was asked -> id -> directory; atomic, resumable, with provenance.

A run's digest is the sha256 of its resolved specification, seed included, and of its parents' digests; its id is the
first 12 hex digits of that. Where a finished run is taken up again, its stored specification and digest are compared
with those that are wanted, so that two questions that share an id cannot share an answer. A run is worked on under a
hidden name; `done`, with the digest of every file, is written last, and one rename makes it visible, so a run that can
be seen is whole.
"""

import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mibench.runtime.bits import other_bits
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file, open_lock, read_bytes, unreadable, write_json

__all__ = [
    "DIGITS",
    "ELSEWHERE",
    "KINDS",
    "PROTOCOL",
    "Elsewhere",
    "Run",
    "canonical",
    "clock",
    "lineage",
    "provenance",
    "reading_once",
    "unchanged",
]

PROTOCOL = 3
"""Raised when the same specification would give other numbers, so that old results are not taken for new ones."""

MACHINES = ".machines.json"
"""In a directory that is worked on: who has worked in it, oldest first."""

DIGITS = 12
"""Hex digits of a run's id: among a million runs, two share one with a probability of 0.2%."""

KINDS = ("backbones", "targets", "evaluators", "verifiers", "priors", "shards", "inversions", "scores")
"""A run builds only on runs of kinds before its own, so that no run builds on itself."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces."""
    return _CANONICAL.encode(value)


class Elsewhere(Protocol):
    """Where finished runs of a results folder lie besides it: an object store (`runs.store`)."""

    known: dict[str, str]
    """Label -> digest of what is finished."""

    def has(self, run: "Run") -> bool:
        """Whether the run is finished there."""

    def bring(self, runs: Iterable["Run"]) -> None:
        """Put runs and all they build on into the folder."""

    def bring_labels(self, labels: Iterable[str]) -> list[UserError]:
        """The same by `kind/name-id`; returns what is damaged there."""


ELSEWHERE: dict[Path, Elsewhere] = {}
"""Results folder -> the store for which it stands, in this process."""


@dataclass(frozen=True)
class Run:
    """One piece of work, named by what was asked.

    Args:
        root: The results folder.
        kind: One of KINDS: the folder below it.
        name: What a person calls it; not part of the id.
        spec: The resolved specification, defaults and seed included, as JSON values.
        parents: Role -> the run it builds on, or several.
        inputs: Where things lay when the run was asked for (a folder of images): needed to do the work, recorded, but
            not part of the id.
        parts: Runs of which this one can be put together; no part of what was asked, so not of the id either.
        attempt: Of several processes that share the folder, which works on it in a directory of its own
            (`runs.claims`); nobody else but a run's worker gives one.
    """

    root: Path
    kind: str
    name: str
    spec: Mapping[str, Any]
    parents: Mapping[str, "Run | list[Run]"] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple["Run", ...] = field(default=(), compare=False)
    attempt: str = field(default="", compare=False)

    @cached_property
    def digest(self) -> str:
        """sha256 of what was asked, of everything that it builds on too."""
        parents = {
            role: [one.digest for one in run] if isinstance(run, list) else run.digest
            for role, run in self.parents.items()
        }
        specification = {"protocol": PROTOCOL, "kind": self.kind, "spec": self.spec, "parents": parents}
        return hashlib.sha256(canonical(specification).encode()).hexdigest()

    @property
    def id(self) -> str:
        """The first 12 hex digits of the digest."""
        return self.digest[:DIGITS]

    def parent_ids(self) -> dict[str, str | list[str]]:
        """Role -> id or ids."""
        return {
            role: [one.id for one in run] if isinstance(run, list) else run.id
            for role, run in sorted(self.parents.items())
        }

    def ancestors(self) -> list["Run"]:
        """Direct parents, in the order of their roles; then the parts."""
        parents: list[Run] = []
        for _, run in sorted(self.parents.items()):
            parents.extend(run if isinstance(run, list) else [run])
        return [*parents, *self.parts]

    @cached_property
    def rehearsed(self) -> bool:
        """Whether it or anything that it builds on belongs to a rehearsal, and so is no result."""
        return bool(self.spec.get("rehearsal")) or any(parent.rehearsed for parent in self.ancestors())

    # What a run builds on, by its role. Only `prior` may be absent: another program's images have none.

    @property
    def target(self) -> "Run":
        """What an inversion attacks, or a prior learns from."""
        return self._one("target")

    @property
    def inversion(self) -> "Run":
        """What a score judges."""
        return self._one("inversion")

    @property
    def backbone(self) -> "Run":
        """What a target starts from."""
        return self._one("backbone")

    @property
    def prior(self) -> "Run | None":
        """Where an inversion's images come from; None where another program made them."""
        return self._one("prior") if "prior" in self.parents else None

    @property
    def evaluators(self) -> list["Run"]:
        """The evaluation models of a score, the headline first."""
        known = self.parents.get("evaluators")
        if known is None:
            parents = ", ".join(self.parents) or "none"
            raise UserError(f"{self.label} has no evaluation models; its parents are: {parents}")
        return known if isinstance(known, list) else [known]

    @property
    def verifiers(self) -> list["Run"]:
        """The verifiers of a score, the headline's first; none where the data have too few people."""
        known = self.parents.get("verifiers", [])
        return known if isinstance(known, list) else [known]

    def _one(self, role: str) -> "Run":
        known = self.parents.get(role)
        if known is None:
            raise UserError(f"{self.label} has no {role}; its parents are: {', '.join(self.parents) or 'none'}")
        if isinstance(known, list):
            raise UserError(f"{self.path} names several runs as its {role}; delete it and run it again")
        return known

    @property
    def label(self) -> str:
        """`kind/name-id`."""
        return f"{self.kind}/{self.name}-{self.id}"

    @cached_property
    def path(self) -> Path:
        """Where the finished run lies."""
        return self.root.joinpath(self.kind, f"{self.name}-{self.id}")

    @property
    def work(self) -> Path:
        """Where it is worked on."""
        own = self.root / self.kind / ".attempts" / self.attempt if self.attempt else self.root / self.kind
        return own / f".{self.name}-{self.id}.partial"

    @property
    def done(self) -> bool:
        """Whether the run is finished: here, or in the store for which the results folder stands.

        Raises:
            UserError: See `here`.
        """
        return self.here or (self.root in ELSEWHERE and ELSEWHERE[self.root].has(self))

    @property
    def here(self) -> bool:
        """Whether every file is in place.

        Raises:
            UserError: If the run that lies there was made from another specification, whose id is the same.
        """
        if not (self.path / "done").is_file():
            return False
        self.compare(self.read("run.json"))
        return True

    def compare(self, card: Mapping[str, Any]) -> None:
        """Refuse a run's stored card that is not of this specification.

        Args:
            card: What `run.json` holds.

        Raises:
            UserError: If it is another's: the card was edited, or two specifications share 12 hex digits.
        """
        wanted = self.description()
        for key in ("protocol", "kind", "spec", "parents", "digest"):
            # Equal values have equal texts; only lists and tuples need the texts.
            if card.get(key) != wanted[key] and canonical(card.get(key)) != canonical(wanted[key]):
                raise UserError(
                    f"{self.path} is the run of another specification than the one wanted, though both have the id "
                    f"{self.id} ({_difference(key, card.get(key), wanted[key])}); give --force to replace it, or "
                    "another folder with --results to keep both"
                )

    def description(self) -> dict[str, Any]:
        """What `run.json` and `--dry-run` show."""
        return {
            "digest": self.digest,
            "id": self.id,
            "inputs": dict(self.inputs),
            "kind": self.kind,
            "name": self.name,
            "parents": self.parent_ids(),
            "protocol": PROTOCOL,
            "spec": dict(self.spec),
        }

    def read(self, file: str) -> dict[str, Any]:
        """One of the finished run's JSON files.

        Raises:
            UserError: If it is missing, damaged, or not the one that the run was finished with.
        """
        kept, key = _KEPT.get(), (self.path, file)
        if kept is not None and key in kept:
            return kept[key]
        if self.root in ELSEWHERE and not (self.path / "done").is_file():
            ELSEWHERE[self.root].bring([self])
        path = self.path / file
        read, content = read_json(path)
        unchanged(path, content, self.path)
        keep(self.path, file, read)
        return read

    @contextmanager
    def locked(self, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """This process alone works on the run; others wait here and then find it done.

        Args:
            say: Told for whom this process waits, if it has to.

        Raises:
            UserError: If the results folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.path.parent / f".{self.id}.lock")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"note: {self.label}: waiting for {_holder(lock)}, who works on it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}".encode())
            lock.flush()
        except OSError as error:
            raise self._unwritable(error) from None
        with lock:
            yield
            with suppress(OSError):  # nobody holds it now
                lock.truncate(0)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write to the results folder {self.root}: {error.strerror}; choose another with --results"
        )

    @contextmanager
    def writing(
        self, machine: Mapping[str, Any] | None = None, say: Callable[[str], None] = lambda line: None
    ) -> Iterator[Path]:
        """The directory to work in; call within `locked`.

        Args:
            machine: What `engine.describe` says, for the card; compared with that of the try which is gone on with.
            say: Told where the two round differently.

        Raises:
            UserError: If writing fails (a full disk); what is there stays for the next try.
        """
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            if machine is not None:
                self._record(machine, say)
            yield self.work
        except OSError as error:
            raise UserError(
                f"writing {self.label} failed: {error.strerror or error}; what is done so far is kept in {self.work}: "
                "make room and run the same command again"
            ) from None

    def _record(self, machine: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Keep the machines that have worked on the run, one after the other, until it is finished."""
        known = self._machines()
        if known and (differences := other_bits(known[-1], machine)):
            what = "; ".join(differences)
            say(f"note: {self.label} was begun with other arithmetic ({what}): no other run has its bytes")
        if not known or known[-1] != machine:
            write_json(self.work / MACHINES, {"machines": [*known, dict(machine)]})

    def _machines(self) -> list[dict[str, Any]]:
        try:
            known = json.loads(read_bytes(self.work / MACHINES))["machines"]
            return [one for one in known if isinstance(one, dict)]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []  # a card that says less is no reason not to go on

    def clear(self, keep: tuple[str, ...] = ()) -> list[str]:
        """Throw away what lies in the directory to work in and is no checkpoint, and name it.

        A plug-in is given this directory for its checkpoints. Called when it has returned, before the stage writes its
        own files, so that nothing of the plug-in's is taken for a result.

        Args:
            keep: Files that the stage has already written.
        """
        others = [
            path
            for path in sorted(self.work.iterdir())
            if not path.name.startswith(("checkpoint", ".")) and path.name not in keep
        ]
        for path in others:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return [path.name for path in others]

    def finish(self, provenance: Mapping[str, Any], **card: Any) -> None:
        """Write `run.json`, then `done` (the files' digests), then rename: the run appears whole or not at all.

        Args:
            provenance: Who made it, when and how.
            card: What else its card says.
        """
        before = [one for one in self._machines() if other_bits(one, provenance)]
        made = {**provenance, **({"begun_on": before} if before else {})}
        write_json(self.work / "run.json", {**self.description(), "provenance": made, **card})
        files = sorted(path for path in self.work.glob("[!.]*") if path.is_file() and path.name != "done")
        digests = {path.name: _sha256(path) for path in files if not path.name.startswith("checkpoint")}
        write_json(self.work / "done", digests)
        # What is hidden was left by a process that was killed while it wrote, or by a disk that failed.
        for scratch in [*self.work.glob("checkpoint*"), *self.work.glob(".*")]:
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        self.appear()

    def appear(self) -> None:
        """Give the whole run that lies in `work` its name; where another process was faster, its run stays."""
        if not self.here:
            if self.path.exists():  # without `done` it is what a deletion has left
                shutil.rmtree(self.path)
            try:
                self.work.rename(self.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self.here:
                    raise
        if self.work.exists():
            shutil.rmtree(self.work)
        if self.attempt:
            with suppress(OSError):
                self.work.parent.rmdir()

    def discard(self) -> None:
        """Forget the finished run and any partial work (--force), once nobody works on it.

        Raises:
            UserError: If the results folder cannot be written.
        """
        with self.locked():
            try:
                (self.path / "done").unlink(missing_ok=True)  # first: a half-deleted run must not look finished
                for path in (self.path, self.work):
                    if path.exists():
                        shutil.rmtree(path)
            except OSError as error:
                raise self._unwritable(error) from None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _holder(lock: BinaryIO) -> str:
    """Who has written itself into a lock; another version of mibench writes nothing."""
    return lock.read(300).decode(errors="backslashreplace") or "another process"


_KEPT: ContextVar[dict[tuple[Path, str], dict[str, Any]] | None] = ContextVar("kept", default=None)
"""(Directory of a run, file) -> what it holds, checked."""


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it `Run.read` opens and checks each file once, and gives everybody the same object, which nobody changes.

    A report asks 33 times a score for 6 files of its own.
    """
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def keep(path: Path, file: str, content: dict[str, Any]) -> None:
    """Within `reading_once`, spare `Run.read` a file that has been read and checked.

    Args:
        path: The run's directory.
        file: One of its files.
        content: What that holds.
    """
    kept = _KEPT.get()
    if kept is not None:
        kept[path, file] = content


def lineage(runs: Iterable[Run]) -> list[Run]:
    """Runs with all that they build on, parents first, each once."""
    known: dict[str, Run] = {}

    def visit(run: Run) -> None:
        if run.label not in known:
            for parent in run.ancestors():
                visit(parent)
            known[run.label] = run

    for run in runs:
        visit(run)
    return list(known.values())


def id_of(folder: str) -> str:
    """The id at the end of the name of a run's directory."""
    return folder.rpartition("-")[2]


def _difference(key: str, stored: Any, wanted: Any) -> str:
    """The first place where two specifications differ, in a few words."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for name in sorted(stored.keys() | wanted.keys(), key=str):
            if stored.get(name) != wanted.get(name):
                return _difference(f"{key}.{name}", stored.get(name), wanted.get(name))
    return f"{key}: {canonical(stored)[:60]} there, {canonical(wanted)[:60]} wanted"


def read_json(path: Path) -> tuple[dict[str, Any], bytes]:
    """A JSON object, and the bytes it was read from."""
    try:
        content = read_bytes(path)
        value = _STRICT.decode(content.decode("utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds {type(value).__name__}, not an object")
        return value, content
    except FileNotFoundError:
        raise UserError(f"{path} is missing; delete that run's directory and run it again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or not an object
        raise UserError(f"{path} is damaged: {error}; delete that run's directory and run it again") from None


def _no_number(text: str) -> None:
    raise ValueError(f"it holds {text}, which JSON has not")


_STRICT = json.JSONDecoder(parse_constant=_no_number)


def _sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:
    """Read once as long as size and time stay."""
    return _sha256(path)


@lru_cache(maxsize=4096)
def _digests(done: Path, size: int, changed: int) -> dict[str, Any]:
    """What a run was finished with; read once as long as size and time stay."""
    return read_json(done)[0]


def _finished_with(folder: Path) -> dict[str, Any] | None:
    """The digests of a run's files, None while it is worked on; within `reading_once` read once, however many runs."""
    kept = _KEPT.get()
    if kept is not None and (folder, "done") in kept:
        return kept[folder, "done"]
    done = folder / "done"
    if not os.path.lexists(done):
        return None
    if kept is not None:
        digests = kept[folder, "done"] = read_json(done)[0]
        return digests
    known = done.stat()
    return _digests(done, known.st_size, known.st_mtime_ns)


def unchanged(path: Path, content: bytes | None = None, folder: Path | None = None) -> None:
    """Refuse a file of a finished run that is not the one the run was finished with.

    A run that is still worked on has no digests yet, and its files pass. A file is read for this once a process, and
    again if its size or time has changed: about 1 s for 1 GB.

    Args:
        path: The file.
        content: Its bytes, where they have been read.
        folder: Its directory, where that is at hand: pathlib is slow.

    Raises:
        UserError: If its digest is not the one in `done`.
    """
    try:
        digests = _finished_with(folder or path.parent)
        if digests is None or path.name == "done":
            return
        wanted = digests.get(path.name)
        if content is None:
            status = path.stat()
            digest = _digest(path, status.st_size, status.st_mtime_ns)
        else:
            digest = hashlib.sha256(content).hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; delete that run's directory and run it again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if digest != wanted:
        raise UserError(
            f"{path} was changed or cut short after its run was finished; delete that run's directory and run it again"
        )


def of_this_protocol(path: Path) -> bool:
    """Whether the run in a directory was made by this protocol; a damaged number must not hide the run."""
    card, content = read_json(path / "run.json")
    unchanged(path / "run.json", content)
    return bool(card.get("protocol") == PROTOCOL)


def other_protocol(card: Mapping[str, Any]) -> str | None:
    """What to say of a run whose card is of another protocol, and how to go on; None where it is of this one, or of
    none at all, which is damage."""
    made_by = card.get("protocol")
    if not isinstance(made_by, int) or made_by == PROTOCOL:
        return None
    provenance = card.get("provenance")
    version = provenance.get("mibench") if isinstance(provenance, Mapping) else None
    return (
        f"made under protocol {made_by}, where this mibench has {PROTOCOL}: the same settings would give other "
        f"numbers, so it is not shown beside new ones; read it with mibench {version or 'of its time'}, or run its "
        "command again (new runs do not touch old ones)"
    )


def clock() -> tuple[float, float]:
    """Now, for `provenance`: seconds by the clock and of this process on all cores."""
    return time.monotonic(), time.process_time()


def provenance(started: tuple[float, float], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Who made this, when, from which code, how long it took: seconds by the clock, and of all cores together."""
    from mibench import __version__

    here = Path(__file__).parent
    describe = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "command": shlex.join(sys.argv),
        "commit": commit,
        "finished": _now(),
        "mibench": __version__,
        "seconds": round(time.monotonic() - started[0], 2),
        "cpu_seconds": round(time.process_time() - started[1], 2),
        **machine,
    }
