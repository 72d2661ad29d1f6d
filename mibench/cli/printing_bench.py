"""What `mibench bench` shows."""

import platform
from collections.abc import Sequence

import torch
from rich.table import Table

from mibench.experiments.bench import Equal, Row
from mibench.experiments.bench.curve import ENOUGH, MEASURES
from mibench.runtime.terminal import SafeConsole

__all__ = ["races", "rows"]


def _machine() -> str:
    threads = f"{torch.get_num_threads()} thread(s), torch {torch.__version__}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {threads}"
    return f"{torch.backends.cpu.get_cpu_capability()} on {platform.machine()}, {threads}"


def _columns(title: str, *headers: str) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column(headers[0], style="cyan")  # what wraps on a narrow screen; numbers do not
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def rows(measured: Sequence[Row], turns: int) -> None:
    """One line for each piece of work and precision."""
    table = _columns(_machine(), "", "s", "images/s", "GFLOP/s", "of peak", "MiB", "faster")
    for row in measured:
        ratio = "" if row.ratio is None else "{:.2f} [{:.1f},{:.1f}]".format(*row.ratio)
        table.add_row(
            row.what,
            f"{row.seconds:.3g}",
            f"{row.images:.0f}",
            "" if row.flops is None else f"{row.flops / 1e9:.1f}",
            "" if row.share is None else f"{row.share:.0%}",
            "" if row.memory is None else f"{row.memory / 2**20:.0f}",
            ratio,
        )
    console = SafeConsole()
    console.print(table)
    console.print(
        "faster: how many times, than a plain float32 loop of the same mathematics, median [least, most] of "
        f"{turns} turn(s). s: on a CPU of all its cores. peak: a large matrix product or convolution.",
        style="dim",
    )


def _text(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def races(measured: Sequence[Equal], people: int) -> None:
    """One line for each attack, precision and measure."""
    table = _columns(_machine(), "", "", "theirs", "ours", "sooner", "end at")
    for race in measured:
        for measure in MEASURES:
            theirs, ours = race.seconds(measure)
            ratio = race.ratio(measure)
            low, high = race.intervals[measure]
            ends = " / ".join(f"{curve.rates(measure)[-1]:.0%}" for curve in (race.theirs, race.ours))
            table.add_row(
                f"{race.attack} on {race.target}, {race.precision}" if measure == MEASURES[0] else "",
                measure,
                _text(theirs),
                _text(ours),
                "" if ratio is None else f"{ratio:.1f}x [{low:.1f},{high:.1f}]",
                ends,
            )
    console = SafeConsole()
    console.print(table)
    console.print(
        f"seconds until {ENOUGH:.0%} of what the authors' loop ends at is reached and kept: {people} people, judged by "
        "the zoo's evaluation model `resnet` (accuracy: top 1, closed set; likeness: open set, and accepted by the "
        "verifier). Theirs has its authors' rates, ours those of the preset named. Intervals: over people, 95%. "
        "end at: theirs / ours.",
        style="dim",
    )
