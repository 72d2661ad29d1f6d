"""The report in the terminal."""

from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mibench.evaluation import checks
from mibench.report.content import Content
from mibench.report.protocol import TITLE
from mibench.report.tables import BEST, WORST, Column, Row, Section, rows

__all__ = ["render"]

MOST = 150
"""Rows of a table that a terminal is good for."""


def render(content: Content, console: Console, people: bool = True) -> RenderableType:
    """First where the judges disagree; then every table as wide as the console (those of who leaks only with
    `people`), what the checks found, and why tables are apart."""
    parts: list[RenderableType] = [Text(f"! {line}", style="bold yellow") for line in content.disagreements]
    parts += [Text()] if parts else []
    for section in [*content.sections(brief=True), *(content.people() if people else [])]:
        parts += [Text(section.title, style="bold underline"), Text(), *_shown(section, console.width), Text()]
    if content.findings:
        well = len(checks.passed(content.findings))
        parts += [
            Text("Checks: do not take these numbers for privacy", style="bold underline yellow"),
            Text(),
            *(Text(f"! {line}", style="yellow") for line in checks.brief(content.findings)),
            Text(f"{well} of {len(checks.CHECKS)} checks passed; all: mibench checks, and why: --explain", style="dim"),
            Text(),
        ]
    if content.apart:
        parts += [Text(TITLE, style="bold underline"), Text(), *_dim(content.apart), Text()]
    return Group(*parts)


def _shown(section: Section, width: int) -> list[RenderableType]:
    """A table with its notes; a very long one stays in the files."""
    if len(section.rows) > MOST:
        return _dim([f"{len(section.rows)} rows, too many for a terminal: tables.md and the .csv files have them."])
    lines = rows(section.rows)
    filled = [(column, column.cells(lines, 0)) for column in section.columns]
    shown, gap, left = _fit(filled, width)
    omitted = (
        [f"Left out at {width} columns: {', '.join(left)}; tables.md and the .csv files have all."] if left else []
    )
    return [
        _table(lines, shown, gap),
        Text(),
        *_dim([*section.notes_on(column.header for column, _ in shown), *omitted]),
    ]


def _dim(lines: list[str]) -> list[RenderableType]:
    return [Text(line, style="dim") for line in lines]


Filled = list[tuple[Column, list[str]]]
"""Columns with their cells."""


def _fit(filled: Filled, width: int) -> tuple[Filled, int, list[str]]:
    """Columns and the gap between them that fit the width: a narrower gap first, then without columns, in their
    declared order; and the headers of those left out."""
    left: list[str] = []
    while True:
        content = sum(max(map(cell_len, [column.top, *column.bottom.split("\n"), *cells])) for column, cells in filled)
        for gap in (2, 1, 0):
            if content + (1 + gap) * (len(filled) - 1) <= width:  # the box puts one space between two columns
                return filled, gap, left
        going = min((column.drop for column, _ in filled if column.drop), default=None)
        if going is None:
            return filled, 0, left
        left += [column.header for column, _ in filled if column.drop == going]
        filled = [(column, cells) for column, cells in filled if column.drop != going]


def _table(lines: list[Row], filled: Filled, gap: int) -> Table:
    """A rich table; floors dim, a rule between targets."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0), expand=False)
    for column, _ in filled:
        head = f"{column.top}\n{column.bottom}".strip()
        side: Literal["left", "right"] = "left" if column.left else "right"
        table.add_column(head, justify=side, no_wrap=True, header_style="bold", vertical="bottom")
    owner = next(name for name in ("target_label", "family", "defense") if name in lines[0])
    owners = [row[owner] for row in lines]
    ruled = len(set(owners)) < len(owners)  # a rule below every row would tell nothing
    for place, row in enumerate(lines):
        last = ruled and place + 1 < len(lines) and owners[place + 1] != owners[place]
        table.add_row(*(_styled(column, cells[place], row) for column, cells in filled), end_section=last)
    return table


def _styled(column: Column, cell: str, row: Row) -> Text:
    role = row.get("role", "attack")
    style = "dim" if role == "floor" and column.bottom not in ("defense", "accuracy") else ""
    if column.bottom == "defense" or (column.bottom == "attack" and role == "ceiling"):
        style = "bold" if role != "ceiling" else "italic"
    text = Text(cell, style=style)
    text.highlight_words([BEST], "bold red")
    text.highlight_words([WORST], "green")
    if column.bottom == "is":
        text.stylize({"lower": "green", "higher": "red"}.get(row["verdict"], "dim"))
    return text
