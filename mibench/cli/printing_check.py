"""What `mibench run SUITE --check` shows."""

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mibench.experiments.check import Check
from mibench.experiments.needs import Thing
from mibench.runtime.terminal import SafeConsole

__all__ = ["print_check"]

STYLES = {"have": "green", "missing": "bold red", "unclear": "yellow", "absent": "dim"}

INDENT = 9
"""Columns of a state."""

GROUPS = {
    "data": "data sets",
    "weights": "files of weights",
    "packages": "packages",
    "judges": "judges",
    "machine": "machine",
    "plan": "plan",
}


YEAR = 365.25 * 24
"""Hours."""

PATIENCE = 100 * 24.0
"""Hours by the clock from which a plan is said to be none for this machine."""


def print_check(check: Check) -> None:
    """What is needed, group by group, with the remedy of what is not here; hours; a line that sums it up."""
    console = SafeConsole()
    console.print(Text.assemble((check.suite, "bold cyan"), f": {check.title}" if check.title else ""))
    for group, title in GROUPS.items():
        own = [one for one in check.things if one.group == group]
        if own:
            console.print(Text(f"\n{title}", "bold"))
            for thing in own:
                _print_thing(console, thing)
    if check.estimate is not None:
        _print_hours(console, check)
    counts = {state: len(check.of(state)) for state in ("have", "missing", "unclear", "absent")}
    words = {"have": "here", "missing": "missing", "unclear": "unclear", "absent": "not here and not required"}
    told = ", ".join(f"{count} {words[state]}" for state, count in counts.items() if count)
    verdict = Text("ready", "bold green") if check.ready else Text("not ready", "bold red")
    console.print(Text.assemble("\n", verdict, f": {told}; nothing was written"))


def _print_thing(console: SafeConsole, thing: Thing) -> None:
    line = Text.assemble((f"{thing.state:<8} ", STYLES[thing.state]), (thing.what, "cyan"))
    if thing.told and len(line) + 2 + len(thing.told) <= console.width:
        line.append(f"  {thing.told}")
        console.print(line, soft_wrap=True)
    else:
        console.print(line, soft_wrap=True)
        console.print(Padding(Text(thing.told), (0, 0, 0, INDENT)))
    if thing.state != "have" and thing.remedy:  # never broken: it is there to be copied
        console.print(Text.assemble(" " * INDENT, ("> ", "dim"), thing.remedy), soft_wrap=True)


def _print_hours(console: SafeConsole, check: Check) -> None:
    told = check.estimate
    assert told is not None
    cpu = check.machine.startswith("cpu")
    console.print(Text.assemble(("\ntime", "bold"), f" on {check.machine}"))
    if not check.todo:
        console.print(f"nothing is to do: {check.done} runs are done")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="cyan", no_wrap=True)
    for header in ("runs", "processor time" if cpu else "time", "at most"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("how that is known", style="dim")
    for kind, runs, hours, most, known in check.hours():
        table.add_row(kind, str(runs), duration(hours), duration(most) if most > hours else "", known)
    whole, most = told.seconds / 3600, told.most / 3600
    at_most = duration(most) if most > whole else ""
    table.add_row("all", str(len(check.todo)), duration(whole), at_most, style="bold")
    console.print(table)
    lines = [f"{check.done} further runs are done."] if check.done else []
    if cpu:
        clock = whole / check.workers
        lines.append(
            f"About {duration(clock)} by the clock, with {check.workers} processes of one thread"
            f"{': not a plan for this machine' if clock > PATIENCE else ''}. How long a GPU takes is not measured here."
        )
    if most > whole:
        lines.append("At most: every target is trained again as often as the rule of convergence may want.")
    lines.append(
        "Measured: a step was timed just now; scaled: by its floating-point operations; unknown: not counted; ready: "
        "copied, from the zoo or a file. Expect a factor of two either way."
    )
    for line in lines:
        console.print(Text(line, "dim"))


def duration(hours: float) -> str:
    """`3 s`, `12 min`, `4.5 h`, `31 days`, `27 years`."""
    sizes = {"years": (2 * YEAR, YEAR), "days": (96.0, 24.0), "h": (1.5, 1.0), "min": (1 / 40, 1 / 60)}
    for unit, (least, one) in sizes.items():
        if hours >= least:
            many = hours / one
            return f"{many:.1f} {unit}" if many < 10 else f"{many:,.0f} {unit}"
    return f"{hours * 3600:.0f} s"
