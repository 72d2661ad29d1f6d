"""Progress in the terminal, on stderr: a bar with rate and time left for each piece of work."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

__all__ = ["Terminal"]


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Bar) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields["unit"]
        return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s", style="progress.data.speed")


class _Task:
    def __init__(self, progress: Progress, number: int) -> None:
        self.progress = progress
        self.number = number

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.progress.advance(self.number, count)  # type: ignore[arg-type]


class Terminal:
    """Shows bars while work goes on and one line for each finished run; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
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
    def task(self, label: str, total: int, unit: str) -> Iterator[_Task]:
        """A bar that goes away when the work is over."""
        number = self.progress.add_task(label, total=max(total, 1), unit=unit)
        try:
            yield _Task(self.progress, number)
        finally:
            self.progress.remove_task(number)

    def say(self, line: str) -> None:
        """One dim line above the bars."""
        self.console.print(line, style="dim")
