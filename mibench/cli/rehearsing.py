"""`mibench run SUITE --rehearse`: conducted, and what it shows."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from mibench import report
from mibench.experiments import suites
from mibench.experiments.rehearsal import CANNOT_TELL, Rehearsal, rehearse
from mibench.runtime.absent import as_published
from mibench.runtime.errors import UserError
from mibench.runtime.terminal import SafeConsole, Terminal, say

__all__ = ["conduct", "quietly", "show"]


def conduct(
    suite: str,
    device: str,
    precision: str,
    asked: Mapping[str, Any],
    wanted: bool,
    keep: Path | None,
    as_json: bool,
    results: Path | None = None,
) -> None:
    """Rehearse a suite and show what became of it; exit code 2 if a step failed.

    Args:
        asked: What of the suite is asked for otherwise, as `suites.read` takes it.
        wanted: `--rehearse` was given, without which nothing is kept.
        results: The user's own results: nothing is written there.

    Raises:
        UserError: `--keep` without `--rehearse`; as `rehearse`.
    """
    if not wanted:
        raise UserError("--keep DIR belongs to --rehearse; a run is kept in --results anyway")
    try:
        with as_published(), Terminal() as terminal:
            experiments = suites.read(suite, **asked, precision=precision)
            done = rehearse(experiments, device, terminal, quietly, keep, list(suites.needs(suite)), results)
    except KeyboardInterrupt:  # a real run says that what is done is kept
        say("mibench: interrupted; nothing of the rehearsal is left", to_stderr=True)
        raise SystemExit(130) from None
    if as_json:
        told = {"runs": done.runs, "steps": [asdict(step) for step in done.steps], "failed": len(done.failed)}
        print(json.dumps({**told, "replaced": done.replaced, "cannot_tell": CANNOT_TELL}, indent=1))
    else:
        show(done)
        if keep is not None:
            say(keep)
    if done.failed:
        raise typer.Exit(2)


def quietly(results: Path) -> None:
    """The report on a rehearsal, whose first screen nobody sees."""
    report.write(results, SafeConsole(file=io.StringIO()), rehearsal=True)


def show(done: Rehearsal) -> None:
    """Each step with its seconds; what failed; what stood in for what; what a rehearsal cannot tell."""
    table = Table(box=None, pad_edge=False)
    table.add_column("step", style="cyan", no_wrap=True)
    table.add_column("of")
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("")
    for step in done.steps:
        table.add_row(step.kind, step.name, f"{step.seconds:.1f}", "failed" if step.failure else "")
    console = SafeConsole(soft_wrap=True)
    console.print(table)
    console.print(
        f"{len(done.steps)} steps in {done.seconds:.0f} s ({done.processor:.0f} s of processor time), each once, for "
        f"the suite's {done.runs:,} runs: {len(done.failed) or 'none'} failed"
    )
    for step in done.failed:
        console.print(f"failed: {step.kind} {step.name}: {step.failure}", style="red")
    for line in done.replaced:
        console.print(f"replaced: {line}", style="dim")
    for line in CANNOT_TELL:
        console.print(f"not told: {line}", style="dim")
