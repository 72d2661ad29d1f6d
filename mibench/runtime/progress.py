"""Who is told how far work has come: a terminal, a queue to the parent process, or nobody."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

__all__ = ["Reporter", "Silent", "Task"]


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
