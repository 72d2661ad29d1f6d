r"""Text from outside, made harmless for the place where it is shown: one function for each kind of place.

Names of people, files, data sets, plug-ins and suites, and the texts of errors, come from folders, cards and files that
somebody else may have made. Each function here takes any text and gives one that its place shows and does not obey:
escape codes for terminals, formulas for spreadsheets, markup, TeX, mathtext. All of them show what cannot be printed
(line ends, escapes, marks that turn the direction of writing, bytes that are no UTF-8) as Python writes it in a string.

Numbers and texts that mibench itself lays out pass unchanged, except for what the place would misread.
"""

import html as _html
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["bibtex", "csv", "figure", "html", "latex", "markdown", "terminal"]


def terminal(text: str, most: int | None = None) -> str:
    r"""For a line of a terminal or of any other plain text: one line, without escapes.

    `isprintable` is False for Unicode's categories "other" (controls, formats such as bidirectional marks, surrogates,
    unassigned) and "separator", but for the space.

    Args:
        text: Whatever it is.
        most: Longer texts lose their middle, and say how much of it; None keeps all.
    """
    if not text.isprintable():
        text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    if most is None or len(text) <= most:
        return text
    kept = max(1, most // 2)
    return f"{text[:kept]}...({len(text) - 2 * kept:,} more characters)...{text[-kept:]}"


_WIDE = "\uff1d\uff0b\uff0d\uff20"  # = + - @ as wide as a Chinese letter, which spreadsheets take for the narrow ones
_FORMULA = re.compile(rf"\s*[=+\-@{_WIDE}]")


def csv(cell: Any) -> Any:
    """For a cell of a CSV file: a text that a spreadsheet would take for a formula begins with an apostrophe.

    What is no text, and a text that is a number, is itself. The quoting of commas and quotation marks is the CSV
    writer's.

    References:
        | CSV injection (OWASP)
        | https://owasp.org/www-community/attacks/CSV_Injection
    """
    if not isinstance(cell, str):
        return cell
    shown = terminal(cell)
    if not _FORMULA.match(cell):
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown


_MARKUP = re.compile(r"[\\`*_|~$<&]|(?<=\])[(\[:]|(?<=:)//|(?<=www)\.")
_BLOCK = re.compile(r"(?:[#>=+-]+|\d+[.)])(?=\s|$)|>")
_ENTITY = {"<": "&lt;", "&": "&amp;", "//": "&#47;&#47;", ".": "&#46;"}


def markdown(text: str, most: int | None = None) -> str:
    """For a table cell, list item or heading of GitHub's Markdown: no markup, HTML, link or mathematics.

    Brackets stay, as intervals have them (`82.0 [74,88]`); what would make a link of them does not.

    References:
        | GitHub Flavored Markdown, 2.4 (backslash escapes), 6.9 (autolinks)
        | https://github.github.com/gfm/
    """
    shown = _MARKUP.sub(lambda match: _ENTITY.get(match[0], f"\\{match[0]}"), terminal(text, most))
    if start := _BLOCK.match(shown):  # a list, heading or quotation within the item or cell
        last = start.end() - 1
        shown = f"{shown[:last]}\\{shown[last:]}"
    return shown


_LATEX = {
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
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "`": r"\char96{}",
}


def latex(text: str, symbols: Mapping[str, str] | None = None, most: int | None = None) -> str:
    """For text in plain LaTeX: it prints what it reads, and runs none of it.

    Args:
        text: Whatever it is.
        symbols: Characters that have a command of their own.
        most: As in `terminal`.
    """
    known = {**_LATEX, **(symbols or {})}
    return "".join(known.get(character, character) for character in terminal(text, most))


def bibtex(text: str, verbatim: bool = False) -> str:
    """For a field of a BibTeX entry, between braces.

    Args:
        text: Whatever it is.
        verbatim: An address: nothing is escaped, and what could leave the braces is percent-encoded.
    """
    if verbatim:
        return re.sub(r"[{}\\\s]", lambda match: f"%{ord(match[0]):02X}", terminal(text))
    return latex(text)


def html(text: str, most: int | None = None) -> str:
    """For the text of an HTML element or a quoted attribute."""
    return _html.escape(terminal(text, most))


def figure(text: str, most: int | None = 100) -> str:
    r"""For any text in a matplotlib figure: a pair of dollars is no mathematics. Draw with `text.usetex` off."""
    return terminal(text, most).replace("$", r"\$")
