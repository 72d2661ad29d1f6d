"""The report as files: CSV and JSON with every number as it was scored, Markdown and LaTeX as they are read."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mibench.report import privacy, tables
from mibench.report.content import Content
from mibench.report.protocol import TITLE
from mibench.report.tables import Section
from mibench.runtime.files import write_atomic

__all__ = ["records", "to_latex", "to_markdown", "write"]

LATEX = {
    "\\": r"\textbackslash{}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "Δ": r"$\Delta$",
    "ε": r"$\varepsilon$",
    privacy.FRONT: r"$\diamond$",
    tables.BEST: r"$\bigtriangleup$",
    tables.WORST: r"$\bigtriangledown$",
}
"""What plain LaTeX reads otherwise, character by character."""


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; what a row does not have is null."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in tables.rows(table)]


def _plain(value: Any) -> Any:
    """A Python value JSON can hold."""
    if hasattr(value, "item"):
        value = value.item()
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _cells(rows: pd.DataFrame, columns: list[tables.Column], escape: Callable[[str], str]) -> list[list[str]]:
    return [[escape(column.cell(row, 1)) for column in columns] for row in tables.rows(rows)]


def to_json(parts: Mapping[str, Sequence[Any]]) -> str:
    """Lists by name, one item a line: quick to write and read, and a change of one row changes one line."""
    texts = []
    for name, items in sorted(parts.items()):
        lines = ",\n".join(json.dumps(item, sort_keys=True, allow_nan=False) for item in items)
        texts.append(f"{json.dumps(name)}: [\n{lines}\n]" if items else f"{json.dumps(name)}: []")
    return "{\n" + ",\n".join(texts) + "\n}\n"


def to_markdown(
    sections: Iterable[Section], checked: Sequence[str] = (), why: Sequence[str] = (), warnings: Sequence[str] = ()
) -> str:
    """GitHub's tables, a caption below each; then what the checks found, why tables are apart, what was left out."""

    def escape(text: str) -> str:
        return text.replace("|", "\\|").replace("_", "\\_").replace("<", "&lt;")

    lines = []
    for title, rows, columns, notes in sections:
        lines += [f"## {escape(title)}", ""]
        lines.append(f"| {' | '.join(escape(column.header) for column in columns)} |")
        lines.append(f"|{'|'.join(':---' if column.left else '---:' for column in columns)}|")
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(rows, columns, escape)]
        lines += ["", *(f"- {escape(note)}" for note in notes), ""]
    for head, said in (("## Checks", checked), (f"**{TITLE}**", why), ("## Left out", warnings)):
        if said:
            lines += [head, "", *(f"- {escape(line)}" for line in said), ""]
    return "\n".join(lines)


def escape_latex(text: str) -> str:
    """Text that plain LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def to_latex(sections: Iterable[Section]) -> str:
    r"""One `table` with a `tabular` each, for \input into an article; needs no package."""
    lines = [r"% Made by mibench report. \input this file; it needs no package."]
    for title, rows, columns, notes in sections:
        lines += ["", r"\begin{table}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
        lines.append(rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in columns)}}}")
        for part in ("top", "bottom"):
            heads = [escape_latex(getattr(column, part).replace("-\n", "-")) for column in columns]
            lines.append(f"{' & '.join(heads)} \\\\")
        lines.append(r"\hline")
        last = None
        for cells in _cells(rows, columns, escape_latex):
            if last is not None and cells[0] and cells[0] != last:
                lines.append(r"\hline")
            last = cells[0] or last
            lines.append(f"{' & '.join(_guard(cells))} \\\\")
        lines += [r"\end{tabular}", rf"\caption{{{escape_latex(title)}. {escape_latex(' '.join(notes))}}}"]
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _guard(cells: list[str]) -> list[str]:
    r"""A row must not begin with a bracket, which `\\` would take for its option."""
    return [f"{{}}{cells[0]}" if cells[0].startswith(("[", "*")) else cells[0], *cells[1:]]


def write(folder: Path, content: Content, warnings: list[str]) -> list[Path]:
    """tables.{csv,json,md,tex}, differences.csv, tradeoff.csv, curves.csv, leakage.csv, inequality.csv and groups.csv;
    each appears whole or not at all.

    tables.json holds the same rows as the CSV files, under `rows`, `differences`, `tradeoff`, `curves`, `leakage`,
    `inequality` and `groups`, what was left out under `warnings`, what the checks found under `checks`. Returns the
    paths.
    """
    leaks, sections = content.leaks, [*content.sections(), *content.people()]
    checked = [one.line for one in content.findings]
    frames = {
        "tables": content.table,
        "differences": content.compared,
        "tradeoff": content.tradeoff,
        "curves": content.curves,
        "leakage": leaks.people,
        "inequality": leaks.targets,
        "groups": leaks.groups,
    }
    texts = {
        f"{name}.csv": frame.to_csv(index=False, lineterminator="\n") if len(frame) else ""
        for name, frame in frames.items()
    }
    texts |= {
        "tables.md": to_markdown(sections, checked, content.apart, warnings),
        "tables.tex": to_latex(sections),
        "tables.json": to_json(
            {
                "apart": content.apart,
                "checks": checked,
                "warnings": warnings,
                "rows": records(frames.pop("tables")),
                **{name: records(frame) for name, frame in frames.items()},
            }
        ),
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
