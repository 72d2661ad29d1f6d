"""Who is told how far work has come: a terminal, a queue to the parent process, a file, or nobody."""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

__all__ = ["Recorded", "Reporter", "Silent", "Task"]

SELDOM = 2.0
"""Seconds between two records of one bar."""


@runtime_checkable
class Task(Protocol):
    """One bar of progress."""

    def advance(self, count: int = 1) -> None:
        """`count` more of the total are done."""


@runtime_checkable
class Reporter(Protocol):
    """Whoever shows progress: a terminal, a queue to the parent process, or nobody."""

    def task(self, label: str, total: int, unit: str) -> AbstractContextManager[Task]:
        """Open a bar that closes with the context."""

    def say(self, line: str) -> None:
        """One line of chatter."""


class Silent:
    """Tells nobody."""

    def advance(self, count: int = 1) -> None:
        """Nothing."""

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator["Silent"]:
        """A bar nobody sees."""
        yield self

    def say(self, line: str) -> None:
        """Nothing."""


class Recorded:
    """A reporter that also leaves word of the bar that last moved in a file, for whoever asks while work goes on.

    The file holds one record, {time, label, step, of, unit}: seconds since 1970, what the bar says, how much is done of
    how much. It is written anew at most once in `SELDOM` seconds. A file that cannot be written is no reason to stop.

    Args:
        reporter: Who is told as well.
        path: The file.
    """

    def __init__(self, reporter: Reporter, path: Path) -> None:
        self.reporter, self.path = reporter, path

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Task]:
        """The reporter's bar, recorded."""
        with self.reporter.task(label, total, unit) as bar:
            yield _Recorded(bar, self.path, {"label": label, "of": total, "unit": unit})

    def say(self, line: str) -> None:
        """As the reporter."""
        self.reporter.say(line)


def _leave(path: Path, record: dict[str, str | int | float]) -> None:
    """Not by way of `files`: word of progress is worth no wait for the disk, and half a record is read as none."""
    path.write_text(json.dumps(record), encoding="utf-8")


class _Recorded:
    def __init__(self, bar: Task, path: Path, about: dict[str, str | int]) -> None:
        self.bar, self.path, self.about = bar, path, about
        self.step, self.last = 0, 0.0

    def advance(self, count: int = 1) -> None:
        self.step += count
        self.bar.advance(count)
        if time.monotonic() - self.last > SELDOM:
            self.last = time.monotonic()
            with suppress(OSError):
                _leave(self.path, {**self.about, "step": self.step, "time": round(time.time(), 1)})
