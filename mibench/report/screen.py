"""The first screen: what a person reads after a command, about twenty lines.

It shows what `headline` says, with the checks that fired, where to look and what to type next. Nothing is estimated
here, and nothing that matters is cut: narrow terminals wrap.
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

__all__ = ["FIRED", "MOST", "next_steps", "render"]

MOST = 8
"""Targets of a protocol that the screen has a row for."""

FIRED = 3
"""Checks that are told in words; more are counted."""

UNFINISHED = "*"
"""Marks a target whose training had not converged."""

WORD = 9
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
        parts += [_said("careful", headline.careful, "dim"), Text()]
    if not told:
        parts += [Text("No attack was scored: floors alone say what is reached without one.", style="bold"), Text()]
    parts += [_said("judges", line, "bold yellow") for line in content.disagreements]
    parts += [_said("checks", line, "yellow") for line in _checks(content)]
    if look is not None:
        parts.append(_said("look", f"{look}; all tables here: --full"))
    parts += [_said("next", line) for line in next_steps(content, folder)]
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
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("target", overflow="fold")
    table.add_column("likeness %", justify="right", no_wrap=True)
    table.add_column("best floor %", justify="right", overflow="fold")
    table.add_column("natural acc. %", justify="right", no_wrap=True)
    for standing in headline.standings[:MOST]:
        table.add_row(*_cells(standing))
    if headline.standings:
        table.add_row("real photographs", _share(headline.standings[0].ceiling), "", "", style="italic")
    if not all(one.point.converged for one in headline.standings[:MOST]):
        table.add_row(f"{UNFINISHED} not converged", "", "", "", style="yellow")
    left = len(headline.standings) - MOST
    if left > 0:
        table.add_row(f"and {left} more: --full", "", "", "", style="dim")
    return table


def _cells(standing: Standing) -> tuple[Text, Text, Text, Text]:
    point = standing.point
    style = "bold" if standing.above else "dim"
    name = Text.assemble((standing.label, "bold"), *([] if point.converged else [(f" {UNFINISHED}", "yellow")]))
    strongest = point.strongest
    rate = f"{strongest.attack} {_share(strongest.rate)}" if strongest is not None else "-"
    floor = "none run"
    if standing.floor is not None:  # the sentences name its prior
        floor = f"{standing.floor.attack.partition(' from ')[0]} {_value(standing.floor.rate)}"
    return name, Text(rate, style=style), Text(floor), Text(_share(point.natural))


def _share(known: Interval) -> str:
    return Unit.SHARE.interval(known.value, known.low, known.high, 0)


def _value(known: Interval) -> str:
    return Unit.SHARE.show(known.value)


def _paragraph(headline: Headline) -> str:
    """What follows, in sentences: of the first target, then what each defense changes."""
    first = headline.standings[0].sentences if headline.standings else []
    return " ".join([*first, *headline.changes])


def _checks(content: Content) -> list[str]:
    """The first checks that fired, each in a line, how many more, and how many passed."""
    fired = checks.brief(content.findings)
    more = f"{len(fired) - FIRED} more fired, " if len(fired) > FIRED else ""
    passed = len(checks.passed(content.findings))
    return [*fired[:FIRED], f"{more}{passed} of {len(checks.CHECKS)} passed; all: mibench checks"]


def next_steps(content: Content, folder: Path | None = None) -> list[str]:
    """Commands that would tell more, most useful first, at most two.

    Args:
        content: What is known.
        folder: The results folder, named in the commands where it is not the default one.
    """
    where = "" if folder is None or folder == Path("results") else f" --results {escape.terminal(str(folder))}"
    results = content.results
    targets = {one.target.id: one.target for one in results}
    steps: list[str] = []
    if not any(one.role == "attack" for one in results):
        steps.append(f"mibench attack{where}    (attack what the floors were run on)")
    if targets and all(run.spec.get("origin") == "imported" for run in targets.values()):
        steps.append("the same mibench audit command with --defenses re    (what random erasing would buy)")
    elif targets and not any(run.spec["defenses"] for run in targets.values()):
        steps.append(f"mibench train --defense re{where} && mibench attack{where}    (what random erasing changes)")
    elif len({run.spec["seed"] for run in targets.values()}) == 1:
        steps.append(f"mibench sweep --defense re --seeds 3{where}    (whether another training says the same)")
    if content.findings:
        steps.append(f"mibench checks {folder or 'results'}    (why each check fired, and what to do)")
    return steps[:2] or [f"mibench show RUN{where}    (from a number back to its data)"]
