"""Progress across processes: a worker's `Relay` sends events, the parent's `Shown` replays them on its reporter."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mibench.runtime.progress import Reporter, Task

__all__ = ["Event", "Relay", "Shown"]

Event = tuple[str, Any, Any]
"""What happened (`open`, `advance`, `close` or `say`), to which bar, and its value."""


class Relay:
    """A reporter that hands every event to `put`; a bar advances at most once in `every` seconds."""

    def __init__(self, put: Callable[[Event], object], every: float) -> None:
        self.put = put
        self.every = every
        self.count = 0

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator["_Bar"]:
        self.count += 1
        # One process may relay for many runs, and process numbers repeat between hosts.
        bar = _Bar((socket.gethostname(), os.getpid(), time.monotonic_ns(), self.count), self.put, self.every)
        self.put(("open", bar.key, (label, total, unit)))
        try:
            yield bar
        finally:
            bar.flush()
            self.put(("close", bar.key, None))

    def say(self, line: str) -> None:
        self.put(("say", None, line))


class _Bar:
    def __init__(self, key: tuple[Any, ...], put: Callable[[Event], object], every: float) -> None:
        self.key = key
        self.put = put
        self.every = every
        self.waiting = 0
        self.last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self.waiting += count
        if time.monotonic() - self.last > self.every:
            self.flush()

    def flush(self) -> None:
        self.put(("advance", self.key, self.waiting))
        self.waiting, self.last = 0, time.monotonic()


class Shown:
    """Replays events on `reporter`.

    `anew`: a bar replaces one of the same label, whose run began again elsewhere after its worker or node died.
    """

    def __init__(self, reporter: Reporter, anew: bool = False) -> None:
        self.reporter = reporter
        self.anew = anew
        self.open: dict[Any, tuple[str, AbstractContextManager[Task], Task]] = {}

    def replay(self, what: str, key: Any, value: Any) -> None:
        if what == "open":
            if self.anew:
                for other in [known for known, (label, _, _) in self.open.items() if label == value[0]]:
                    self._close(other)
            context = self.reporter.task(*value)
            self.open[key] = (value[0], context, context.__enter__())
        elif what == "say":
            self.reporter.say(value)
        elif what == "advance" and key in self.open:  # a dead worker's last words may come after its bar was replaced
            self.open[key][2].advance(value)
        elif what == "close" and key in self.open:
            self._close(key)

    def close(self) -> None:
        for key in list(self.open):
            self._close(key)

    def _close(self, key: Any) -> None:
        self.open.pop(key)[1].__exit__(None, None, None)
