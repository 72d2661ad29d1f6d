"""The first screen: what a person reads after a command, about twenty lines.

It shows what `headline` says, which checks fired, where to look and what to type next. Nothing is estimated here, and
nothing that matters is cut: narrow terminals wrap. Why a check fired is told by `mibench checks`.
"""

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mibench.evaluation import checks
from mibench.metrics import Unit
from mibench.report.content import Content
from mibench.report.headline import Headline, Standing
from mibench.runtime import escape
from mibench.stats.intervals import Interval

__all__ = ["MOST", "next_step", "render"]

MOST = 8
"""Targets of a protocol that the screen has a row for."""

UNFINISHED = "*"
"""Marks a target whose training had not converged."""

WORD = 8
"""Width of the words at the left: careful, checks, look, next."""


def render(content: Content, look: Path | None = None, folder: Path | None = None) -> RenderableType:
    """What some scores say, in about twenty lines.

    Args:
        content: The scores.
        look: A page or folder with everything else; None where none was written.
        folder: The results folder, for the commands that come next; None is the default one.
    """
    parts: list[RenderableType] = []
    told = content.headlines
    for headline in told:
        parts += [Text(headline.about, style="bold"), _table(headline), Text(), Text(_paragraph(headline))]
        parts.append(_said("careful", headline.careful, "dim"))
    if not told:
        parts += [Text("No attack was scored: floors alone say what is reached without one.", style="bold"), Text()]
    parts += [_said("judges", line, "bold yellow") for line in content.disagreements]
    parts.append(_said("checks", _checks(content, folder), "yellow" if content.findings else ""))
    if look is not None:
        parts.append(_said("look", f"{look}; all tables here: --full"))
    parts.append(_said("next", next_step(content, folder)))
    return Group(*parts)


def _said(word: str, line: str, style: str = "") -> RenderableType:
    """`careful  These trained networks ...`, wrapped beside its word."""
    grid = Table.grid(padding=0)
    grid.add_column(width=WORD, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(word, style="bold"), Text(line, style=style))
    return grid


def _table(headline: Headline) -> Table:
    """A row for each target, and real photographs as the ceiling."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("target", overflow="fold")
    table.add_column("likeness %", justify="right", no_wrap=True)
    table.add_column("by", overflow="fold")
    table.add_column("best floor %", justify="right", overflow="fold")
    table.add_column("natural acc. %", justify="right", no_wrap=True)
    for standing in headline.standings[:MOST]:
        table.add_row(*_cells(standing))
    if headline.standings:
        table.add_row("real photographs", _share(headline.standings[0].ceiling), style="italic")
    if not all(one.point.converged for one in headline.standings[:MOST]):
        table.add_row(f"{UNFINISHED} not converged", style="yellow")
    left = len(headline.standings) - MOST
    if left > 0:
        table.add_row(f"and {left} more: --full", style="dim")
    return table


def _cells(standing: Standing) -> tuple[Text, Text, Text, Text, Text]:
    point = standing.point
    style = "bold" if standing.above else "dim"
    name = Text.assemble((standing.label, "bold"), *([] if point.converged else [(f" {UNFINISHED}", "yellow")]))
    strongest = point.strongest
    by, rate = ("", "-") if strongest is None else (strongest.attack, _share(strongest.rate))
    floor = "none run"
    if standing.floor is not None:  # the sentences name its prior
        floor = f"{standing.floor.attack.partition(' from ')[0]} {_value(standing.floor.rate)}"
    return name, Text(rate, style=style), Text(by, style=style), Text(floor), Text(_share(point.natural))


def _share(known: Interval) -> str:
    return Unit.SHARE.interval(known.value, known.low, known.high, 0)


def _value(known: Interval) -> str:
    return Unit.SHARE.show(known.value)


def _paragraph(headline: Headline) -> str:
    """What follows, in sentences: of the first target, then what each defense changes."""
    first = headline.standings[0].sentences[:-1] if headline.standings else []  # natural accuracy has a column
    return " ".join([*first, *headline.changes])


def _checks(content: Content, folder: Path | None) -> str:
    """How many passed, the names of those that fired, and the command that says why."""
    fired = list(dict.fromkeys(one.check for one in content.findings))
    told = f"; fired: {', '.join(fired)}" if fired else ""
    why = f"; why: mibench checks {escape.terminal(str(folder or 'results'))}" if fired else ""
    return f"{len(checks.passed(content.findings))} of {len(checks.CHECKS)} passed{told}{why}"


def next_step(content: Content, folder: Path | None = None) -> str:
    """The command that would tell most.

    Args:
        content: What is known.
        folder: The results folder, named in the command where it is not the default one.
    """
    where = "" if folder is None or folder == Path("results") else f" --results {escape.terminal(str(folder))}"
    results = content.results
    targets = {one.target.id: one.target for one in results}
    if not any(one.role == "attack" for one in results):
        return f"mibench attack{where}    (attack what the floors were run on)"
    if targets and all(run.spec.get("origin") == "imported" for run in targets.values()):
        return "the same mibench audit command with --defenses re    (what random erasing would buy)"
    if targets and not any(run.spec["defenses"] for run in targets.values()):
        return f"mibench train --defense re{where} && mibench attack{where}    (what random erasing changes)"
    if len({run.spec["seed"] for run in targets.values()}) == 1:
        return f"mibench sweep --defense re --seeds 3{where}    (3 trainings)"
    return f"mibench show RUN{where}    (from a number back to its data)"
