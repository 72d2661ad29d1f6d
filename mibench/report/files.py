"""The report as files: CSV and JSON with every number as it was scored, Markdown and LaTeX as they are read."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mibench.report import dictionary, tables, tradeoff_tables
from mibench.report.content import Content
from mibench.report.protocol import TITLE
from mibench.report.tables import Section
from mibench.runtime import escape
from mibench.runtime.files import write_atomic

__all__ = ["records", "to_csv", "to_json", "to_latex", "to_markdown", "write"]

SYMBOLS = {
    "Δ": r"$\Delta$",
    "ε": r"$\varepsilon$",
    tradeoff_tables.FRONT: r"$\diamond$",
    tables.ABOVE: r"$^\circ$",
    tables.BEST: r"$\bigtriangleup$",
    tables.WORST: r"$\bigtriangledown$",
}
"""The report's own marks in LaTeX."""

CELL, LINE = 200, 2000
"""Characters of a table's cell, and of a line below it, in files for people; CSV and JSON have all of them."""


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; what a row does not have is null."""
    names = [str(name) for name in table]
    columns = [_column(table.iloc[:, place]) for place in range(len(names))]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _column(column: pd.Series) -> list[Any]:
    values = column.tolist()
    if column.dtype == np.float64:
        return [value if known else None for value, known in zip(values, np.isfinite(column), strict=True)]
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """A Python value JSON can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _cells(rows: pd.DataFrame, columns: list[tables.Column], harmless: Callable[[str, int], str]) -> list[list[str]]:
    lines = tables.rows(rows)
    filled = [[harmless(cell, CELL) for cell in column.cells(lines, 1)] for column in columns]
    return [list(cells) for cells in zip(*filled, strict=True)]


def to_json(parts: Mapping[str, Sequence[Any]]) -> str:
    """Lists by name, one item a line: quick to write and read, and a change of one row changes one line."""
    texts = []
    for name, items in sorted(parts.items()):
        lines = ",\n".join(json.dumps(item, sort_keys=True, allow_nan=False) for item in items)
        texts.append(f"{json.dumps(name)}: [\n{lines}\n]" if items else f"{json.dumps(name)}: []")
    return "{\n" + ",\n".join(texts) + "\n}\n"


def to_markdown(
    sections: Iterable[Section],
    checked: Sequence[str] = (),
    why: Sequence[str] = (),
    errors: Sequence[str] = (),
    first: Sequence[str] = (),
) -> str:
    """First where the judges disagree, then GitHub's tables, a caption below each; then what the checks
    found, why tables are apart, what was left out."""

    def line(text: str) -> str:
        return escape.markdown(text, LINE)

    lines = [*(f"**{line(text)}**\n" for text in first)]
    for title, rows, columns, notes, _ in sections:
        lines += [f"## {line(title)}", ""]
        lines.append(f"| {' | '.join(line(column.header) for column in columns)} |")
        lines.append(f"|{'|'.join(':---' if column.left else '---:' for column in columns)}|")
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(rows, columns, escape.markdown)]
        lines += ["", *(f"- {line(note)}" for note in notes), ""]
    for head, texts in (("## Checks", checked), (f"**{TITLE}**", why), ("## Left out", errors)):
        if texts:
            lines += [head, "", *(f"- {line(text)}" for text in texts), ""]
    return "\n".join(lines)


def _latex(text: str, most: int = LINE) -> str:
    """Text that plain LaTeX prints as it is."""
    return escape.latex(text, SYMBOLS, most)


def to_latex(sections: Iterable[Section]) -> str:
    r"""One `table` with a `tabular` each, for \input into an article; needs no package."""
    lines = [r"% Made by mibench report. \input this file; it needs no package."]
    for title, rows, columns, notes, _ in sections:
        lines += ["", r"\begin{table}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
        lines.append(rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in columns)}}}")
        for part in ("top", "bottom"):
            heads = [_latex(getattr(column, part).replace("-\n", "-")) for column in columns]
            lines.append(f"{' & '.join(heads)} \\\\")
        lines.append(r"\hline")
        last = None
        for cells in _cells(rows, columns, _latex):
            if last is not None and cells[0] and cells[0] != last:
                lines.append(r"\hline")
            last = cells[0] or last
            lines.append(f"{' & '.join(_guard(cells))} \\\\")
        lines += [r"\end{tabular}", rf"\caption{{{_latex(title)}. {_latex(' '.join(notes))}}}"]
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _guard(cells: list[str]) -> list[str]:
    r"""A row must not begin with a bracket, which `\\` would take for its option."""
    return [f"{{}}{cells[0]}" if cells[0].startswith(("[", "*")) else cells[0], *cells[1:]]


def write(folder: Path, content: Content, errors: Sequence[str]) -> list[Path]:
    """tables.{csv,json,md,tex}, differences.csv, judges.csv, tradeoff.csv, curves.csv, leakage.csv, inequality.csv,
    groups.csv, and dictionary.csv, which describes their columns; each appears whole or not at all.

    tables.json holds the same rows as the CSV files, those of tables.csv under `rows`, the others under their file's
    name, what was left out under `warnings`, what the checks found under `checks`, the report's first lines under
    `disagreements`.

    Args:
        folder: Where they go; it exists.
        content: What they hold.
        errors: A line for each run that was left out.

    Returns:
        The paths of the files that were written; files that would be empty are removed.
    """
    sections = [*content.sections(), *content.people()]
    checked = [finding.line for finding in content.findings]
    parts = {name if name != "tables" else "rows": records(frame) for name, frame in content.frames.items()}
    lines = {"apart": content.apart, "checks": checked, "disagreements": content.disagreements, "warnings": errors}
    texts = {f"{name}.csv": to_csv(frame) for name, frame in content.frames.items()}
    texts |= {
        "dictionary.csv": to_csv(dictionary.describe(content.frames)),
        "tables.md": to_markdown(sections, checked, content.apart, errors, content.disagreements),
        "tables.tex": to_latex(sections),
        "tables.json": to_json(lines | parts),
    }
    paths = []
    for name, text in texts.items():
        path = folder / name
        if text:
            write_atomic(path, partial(Path.write_text, data=text, encoding="utf-8"))
            paths.append(path)
        else:
            path.unlink(missing_ok=True)
    return paths


def to_csv(frame: pd.DataFrame) -> str:
    """Every number with all its digits, no text a formula; nothing at all for no rows."""
    if not len(frame):
        return ""
    texts = frame.select_dtypes(exclude=["number", "bool"]).columns
    safe = frame.assign(**{name: frame[name].map(escape.csv) for name in texts})
    return safe.rename(columns=escape.csv).to_csv(index=False, lineterminator="\n")
