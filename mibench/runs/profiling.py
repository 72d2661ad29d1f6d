"""`--profile`: what one run's time goes to, by PyTorch's profiler, written beside the runs and never into one.

A trace of a whole run would not fit into memory, so what is recorded is a window: the bar's advances (a step of
training, a query of the oracle) are its clock. A run that ends before the window begins is recorded from its beginning.

References:
    | PyTorch Profiler
    | https://pytorch.org/docs/stable/profiler.html
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mibench.runs.run import Run
from mibench.runtime.progress import Reporter, Task

__all__ = ["FOLDER", "profiled"]

FOLDER = "profiles"
"""Below the results folder: a folder for each run that was profiled."""

WARM_UP = 5
"""Advances of the bar before the window: the first steps choose kernels and fill caches."""

WINDOW = 50
"""Advances that are recorded."""

SECONDS = 20.0
"""After which a window ends with the next advance."""

ROWS = 40
"""Operators in the table."""


@contextmanager
def profiled(run: Run, device: str, reporter: Reporter) -> Iterator[Reporter]:
    """Record what happens inside, also where it ends by an error; then leave `trace.json.gz` (for chrome://tracing or
    https://ui.perfetto.dev) and `operators.txt`, those that took longest first, in `profiles/<kind>/<name>-<id>`.

    Args:
        run: Which is worked on.
        device: cpu, cuda or cuda:N; on a GPU its kernels are recorded, too.
        reporter: Told of the run's progress.

    Yields:
        The reporter to work with: its bars are the clock.
    """
    window = _Window(device, reporter)
    try:
        yield window
    finally:
        folder = run.root / FOLDER / run.kind / run.path.name
        try:
            window.close()
            window.write(folder, run.label)
            reporter.say(f"profile of {run.label}: {folder}")
        except Exception as error:  # a profile is no reason to lose a run
            reporter.say(f"note: no profile of {run.label}: {type(error).__name__}: {error}")


class _Window:
    """A reporter whose bars begin and end the recording."""

    def __init__(self, device: str, reporter: Reporter) -> None:
        self.device, self.reporter = device, reporter
        self.count, self.begun, self.warm = 0, 0.0, False
        self.thread = threading.get_ident()
        self.open = False
        self.profile: Any = None
        self._begin()

    def _begin(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it prints of its own steps, and of GPUs that are not there
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.startswith("cuda") else [])]
        self.profile = profile(activities=activities)
        self.begun = time.monotonic()
        self.profile.start()
        self.open = True

    def close(self) -> None:
        """End the recording, if it has not ended."""
        if self.open:
            self.open = False
            self.seconds = time.monotonic() - self.begun
            self.profile.stop()

    def advanced(self) -> None:
        """One step of the run's work is done; the profiler belongs to the thread that began it."""
        if not self.open or threading.get_ident() != self.thread:
            return
        self.count += 1
        if not self.warm and self.count == WARM_UP:
            self.close()
            self._begin()
            self.warm = True
        elif self.warm and (self.count == WARM_UP + WINDOW or time.monotonic() - self.begun > SECONDS):
            self.close()

    def write(self, folder: Path, label: str) -> None:
        """The trace and the table."""
        folder.mkdir(parents=True, exist_ok=True)
        self.profile.export_chrome_trace(str(folder / "trace.json.gz"))
        averages = self.profile.key_averages()
        order = "self_cuda_time_total" if self.device.startswith("cuda") else "self_cpu_time_total"
        what = (
            f"advances {WARM_UP + 1} to {self.count} of its bars"
            if self.warm
            else f"all of it ({self.count} advances of its bars)"
        )
        table = averages.table(sort_by=order, row_limit=ROWS)
        head = f"{label} on {self.device}: {what}, {self.seconds:.2f} s; with the profiler, which slows it down\n"
        (folder / "operators.txt").write_text(head + table + "\n", encoding="utf-8")

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Task]:
        """The reporter's bar."""
        with self.reporter.task(label, total, unit) as bar:
            yield _Clock(bar, self)

    def say(self, line: str) -> None:
        """As the reporter."""
        self.reporter.say(line)


class _Clock:
    def __init__(self, bar: Task, window: _Window) -> None:
        self.bar, self.window = bar, window

    def advance(self, count: int = 1) -> None:
        self.bar.advance(count)
        self.window.advanced()
