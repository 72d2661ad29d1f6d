"""The report as files: CSV and JSON with every number as it was scored, Markdown and LaTeX as they are read."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mibench.files import write_atomic, write_json
from mibench.report import leakage, privacy, tables, tradeoff
from mibench.report.collect import Scored
from mibench.report.leakage import Leakage
from mibench.report.privacy import Section
from mibench.report.protocol import TITLE, apart
from mibench.report.tradeoff import Point

__all__ = ["records", "to_latex", "to_markdown", "write"]

LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "Δ": r"$\Delta$", "ε": r"$\varepsilon$", privacy.FRONT: r"$\diamond$",
    tables.BEST: r"$\bigtriangleup$", tables.WORST: r"$\bigtriangledown$",
}  # fmt: skip
"""What plain LaTeX reads otherwise, character by character."""


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; what a row does not have is null."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    """A Python value JSON can hold."""
    if hasattr(value, "item"):
        value = value.item()
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _sections(
    found: list[Scored], table: pd.DataFrame, compared: pd.DataFrame, points: list[Point], leaks: Leakage
) -> Iterable[Section]:
    """Every table."""
    for group in tables.protocols(table):
        protocol = group["protocol"].iloc[0]
        gone = tables.unavailable(found, protocol)
        notes = tables.caption(group) + [f"Not measured: {name}: {why}; {how}" for name, (why, how) in gone.items()]
        yield Section(tables.title(group), group, tables.columns(group), notes)
        pairs = compared[compared["protocol"] == protocol].reset_index(drop=True) if len(compared) else compared
        if len(pairs):
            what = f"What each defense changes, {tables.title(group)}"
            yield Section(what, pairs, tables.DIFFERENCES, tables.difference_notes(pairs))
    yield from privacy.sections(points, privacy.titles(table))
    yield from leakage.sections(leaks, table)


def _cells(rows: pd.DataFrame, columns: list[tables.Column], escape: Callable[[str], str]) -> list[list[str]]:
    return [[escape(column.cell(row, 1)) for column in columns] for _, row in rows.iterrows()]


def to_markdown(
    found: list[Scored],
    table: pd.DataFrame,
    compared: pd.DataFrame,
    points: list[Point],
    leaks: Leakage,
    warnings: list[str],
) -> str:
    """GitHub's tables, a caption below each."""

    def escape(text: str) -> str:
        return text.replace("|", "\\|").replace("_", "\\_").replace("<", "&lt;")

    lines = []
    for title, rows, columns, notes in _sections(found, table, compared, points, leaks):
        lines += [f"## {escape(title)}", ""]
        lines.append(f"| {' | '.join(escape(column.header) for column in columns)} |")
        lines.append(f"|{'|'.join(':---' if column.left else '---:' for column in columns)}|")
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(rows, columns, escape)]
        lines += ["", *(f"- {escape(note)}" for note in notes), ""]
    checked = privacy.findings(points)
    if checked:
        lines += ["## Checks", "", *(f"- {escape(line)}" for line in checked), ""]
    why = apart(found, table["protocol"])
    if why:
        lines += [f"**{TITLE}**", "", *(f"- {escape(line)}" for line in why), ""]
    if warnings:
        lines += ["## Left out", "", *(f"- {escape(line)}" for line in warnings), ""]
    return "\n".join(lines)


def escape_latex(text: str) -> str:
    """Text that plain LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def to_latex(
    found: list[Scored], table: pd.DataFrame, compared: pd.DataFrame, points: list[Point], leaks: Leakage
) -> str:
    r"""One `table` with a `tabular` each, for \input into an article; needs no package."""
    lines = [r"% Made by mibench report. \input this file; it needs no package."]
    for title, rows, columns, notes in _sections(found, table, compared, points, leaks):
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


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n") if len(table) else ""


def write(
    folder: Path,
    found: list[Scored],
    table: pd.DataFrame,
    compared: pd.DataFrame,
    points: list[Point],
    leaks: Leakage,
    warnings: list[str],
) -> list[Path]:
    """tables.{csv,json,md,tex}, differences.csv, tradeoff.csv, curves.csv, leakage.csv, inequality.csv and groups.csv;
    each appears whole or not at all.

    tables.json holds the same rows as the CSV files, under `rows`, `differences`, `tradeoff`, `curves`, `leakage`,
    `inequality` and `groups`, what was left out under `warnings`, what the checks found under `checks`. Returns the
    paths.
    """
    texts = {
        "tables.csv": table.to_csv(index=False, lineterminator="\n"),
        "differences.csv": _csv(compared),
        "tradeoff.csv": _csv(tradeoff.frame(points)),
        "curves.csv": _csv(tradeoff.summary(points)),
        "leakage.csv": _csv(leaks.people),
        "inequality.csv": _csv(leaks.targets),
        "groups.csv": _csv(leaks.groups),
        "tables.md": to_markdown(found, table, compared, points, leaks, warnings),
        "tables.tex": to_latex(found, table, compared, points, leaks),
    }
    paths = []
    for name, text in texts.items():
        path = folder / name
        if text:
            write_atomic(path, partial(Path.write_text, data=text, encoding="utf-8"))
            paths.append(path)
        else:
            path.unlink(missing_ok=True)
    whole = {
        "apart": apart(found, table["protocol"]),
        "checks": privacy.findings(points), "differences": records(compared), "rows": records(table),
        "tradeoff": records(tradeoff.frame(points)), "curves": records(tradeoff.summary(points)), "warnings": warnings,
        "leakage": records(leaks.people), "inequality": records(leaks.targets), "groups": records(leaks.groups),
    }  # fmt: skip
    write_json(folder / "tables.json", whole)
    return [*paths, folder / "tables.json"]
