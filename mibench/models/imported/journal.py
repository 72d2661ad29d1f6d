"""Answers that were paid for, kept on disk: a question is asked once, whoever asks and however often it is killed.

A file of SQLite with one row for each image that was sent (sha256 of shape and 8-bit pixels) and its scores
as float32. Every answer is on disk before anybody is told it. One process asks at a time, so that no two pay for
the same image, and a limit of the rate holds for all of them together.

References:
    | Atomic Commit In SQLite (SQLite documentation)
    | https://www.sqlite.org/atomiccommit.html
"""

import fcntl
import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mibench.runtime.errors import UserError
from mibench.runtime.files import open_lock

__all__ = ["Journal", "key_of"]


def key_of(image: UInt8[Tensor, "c h w"]) -> str:
    """sha256 over shape and pixels."""
    digest = hashlib.sha256(repr(tuple(image.shape)).encode())
    digest.update(image.contiguous().numpy().tobytes())
    return digest.hexdigest()


ADD = "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"


class Journal:
    """The answers of one server.

    Args:
        path: The file; it and its folder are made when the first answer comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            known = sqlite3.connect(self.path, timeout=60)
            try:
                known.execute("PRAGMA synchronous = FULL")
                known.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, scores BLOB NOT NULL)")
                known.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
                known.execute("CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)")
                with known:
                    yield known
            finally:
                known.close()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the answers kept in {self.path} cannot be used ({error}); if the file is damaged move it away, and "
                "what it holds is asked again"
            ) from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else asks this server meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open_lock(self.path.with_suffix(".lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def known(self, keys: Sequence[str]) -> dict[str, Float[Tensor, " k"]]:
        """The answers among these that are there."""
        if not self.path.exists():
            return {}
        told: dict[str, Tensor] = {}
        with self._open() as file:
            for begin in range(0, len(keys), 500):
                some = list(keys[begin : begin + 500])
                marks = ",".join("?" * len(some))
                for key, scores in file.execute(f"SELECT key, scores FROM answers WHERE key IN ({marks})", some):
                    told[key] = torch.frombuffer(bytearray(scores), dtype=torch.float32)
        return told

    def keep(self, answers: dict[str, Float[Tensor, " k"]]) -> None:
        """Write answers, and that they were paid for; they are on disk when this returns."""
        rows = [(key, scores.float().contiguous().numpy().tobytes()) for key, scores in answers.items()]
        with self._open() as file:
            file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
            file.execute(ADD, ("answered", len(rows)))

    def count(self, name: str, more: int = 0) -> int:
        """How many pictures were `sent` or `answered` so far in all processes, after so many more."""
        if not more and not self.path.exists():
            return 0
        with self._open() as file:
            if more:
                file.execute(ADD, (name, more))
            row = file.execute("SELECT value FROM counts WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def __len__(self) -> int:
        """How many images have been paid for."""
        if not self.path.exists():
            return 0
        with self._open() as file:
            return int(file.execute("SELECT count(*) FROM answers").fetchone()[0])

    def first(self, most: int) -> list[str]:
        """Keys of the first answers."""
        if not self.path.exists():
            return []
        with self._open() as file:
            return [key for (key,) in file.execute("SELECT key FROM answers ORDER BY rowid LIMIT ?", (most,))]

    def fact(self, name: str, value: str | None = None) -> str | None:
        """What is known of the server; a value is kept if nothing was."""
        if value is None and not self.path.exists():
            return None
        with self._open() as file:
            if value is not None:
                file.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
            row = file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])
