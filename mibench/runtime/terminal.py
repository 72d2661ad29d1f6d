"""The terminal: consoles that show text from outside and do not obey it, and progress, on stderr: a bar with rate and
time left for each piece of work."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.segment import Segment
from rich.text import Text

from mibench.runtime import escape
from mibench.runtime.progress import Task

__all__ = ["SafeConsole", "Terminal", "say"]

EVERY = 10.0
"""Seconds between two lines of progress where stderr is no terminal."""


class SafeConsole(Console):
    """A rich console without markup, emoji codes and highlighting, which escapes whatever it is given to show.

    It is the last thing before the terminal: a name that a view forgot to escape is escaped here.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of text that a terminal only shows; rich's own control codes (bars) are its own."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == "\n" or segment.text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(escape.terminal, segment.text.split("\n"))), segment.style)


def say(*lines: object, to_stderr: bool = False) -> None:
    """Print lines (paths, sentences) on stdout or stderr; what they quote cannot leave its line."""
    for line in lines:
        print(escape.terminal(str(line)), file=sys.stderr if to_stderr else sys.stdout, flush=to_stderr)


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Bar) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields["unit"]
        return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s", style="progress.data.speed")


class _Lines:
    """Progress as plain lines, for a pipe or a log: `label: 40%, 1:02 elapsed, about 1:33 left`."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self.console, self.label, self.total = console, label, total
        self.done = 0
        self.begun = self.told = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more are done; a line is told at most every ten seconds."""
        self.done += count
        now = time.monotonic()
        if now - self.told < EVERY or not self.done:
            return
        self.told = now
        elapsed = now - self.begun
        left = elapsed * max(self.total - self.done, 0) / self.done
        share = min(self.done / self.total, 1.0)
        self.console.print(f"{self.label}: {share:.0%}, {_clock(elapsed)} elapsed, about {_clock(left)} left")

    def close(self) -> None:
        """A last line, where there was one before it."""
        elapsed = time.monotonic() - self.begun
        if elapsed >= EVERY:
            self.console.print(f"{self.label}: over after {_clock(elapsed)}")


def _clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Task:
    def __init__(self, progress: Progress, number: int) -> None:
        self.progress = progress
        self.number = number

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.progress.advance(self.number, count)  # type: ignore[arg-type]


class Terminal:
    """Shows bars while work goes on and one line for each finished run; where stderr is no terminal plain lines, with
    what has elapsed and what is left."""

    def __init__(self) -> None:
        self.console = SafeConsole(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "Terminal":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Task]:
        """A bar that goes away when the work is over; a line every ten seconds where stderr is no terminal."""
        if not self.console.is_terminal:
            lines = _Lines(self.console, label, max(total, 1))
            try:
                yield lines
            finally:
                lines.close()
            return
        number = self.progress.add_task(label, total=max(total, 1), unit=unit)
        try:
            yield _Task(self.progress, number)
        finally:
            self.progress.remove_task(number)

    def say(self, line: str) -> None:
        """One dim line above the bars."""
        self.console.print(line, style="dim")
