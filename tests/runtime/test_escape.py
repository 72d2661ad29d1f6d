"""Laws of text from outside: each place shows it, none obeys it; what mibench itself lays out passes as it is."""

import html
import io
import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from mibench.runtime import escape
from mibench.runtime.errors import LONGEST, UserError

PLACES: list[Callable[..., str]] = [
    *(escape.terminal, escape.csv, escape.markdown, escape.latex, escape.bibtex, escape.html, escape.figure)
]
WORDS = st.text(
    st.characters() | st.sampled_from("\x1b\x07\r\n\t\u202e\udcff=+-@$\\{}[]()<>|`*_~&#%^\"'./:"), max_size=40
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@given(WORDS)
def test_every_place_gets_one_printable_line(place: Callable[..., str], text: str) -> None:
    shown = place(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@given(st.text(st.characters(categories=["Lu", "Ll", "Nd"]), max_size=20))
def test_letters_and_digits_pass_as_they_are(place: Callable[..., str], text: str) -> None:
    assert place(text) == text


@pytest.mark.parametrize("text", ["82.0 [74,88]", "re a_e=0.8", "12 people, 3 each: p = .04", "none seed 5"])
def test_what_the_report_lays_out_stays_readable(text: str) -> None:
    assert escape.terminal(text) == escape.csv(text) == escape.figure(text) == text
    assert escape.markdown(text).replace("\\", "") == text


@given(WORDS, st.integers(2, 30))
def test_a_long_text_keeps_both_ends(text: str, most: int) -> None:
    whole, shown = escape.terminal(text), escape.terminal(text, most)
    assert shown == whole or (
        len(whole) > most and whole.startswith(shown[: most // 2]) and whole.endswith(shown[-(most // 2) :])
    )
    assert len(escape.terminal("x" * 10_000, most)) < most + 40


def test_an_error_of_a_hundred_thousand_characters_keeps_its_end() -> None:
    message = str(UserError(f"unknown attack '{'x' * 100_000}'; run: mibench list"))
    assert len(message) < LONGEST + 40 and message.endswith("run: mibench list")


# --- spreadsheets


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1+1", "@SUM(A1)", '=HYPERLINK("x")', "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", "\uff1d1"],
)
def test_a_spreadsheet_sees_no_formula(text: str) -> None:
    cell = pd.DataFrame({"name": [escape.csv(text)]}).to_csv(index=False).splitlines()[1].strip('"')
    assert cell.startswith("'") and not re.match(r"\s*[=+@-]", cell)


@pytest.mark.parametrize("value", ["-12.0", "+3", "-1e-5", -12.0, 3, None, True, float("inf")])
def test_numbers_and_values_are_themselves(value: Any) -> None:
    assert escape.csv(value) is value or escape.csv(value) == value


# --- Markdown


@given(WORDS)
def test_markdown_shows_the_text_and_nothing_else(text: str) -> None:
    """A small reader of inline Markdown: every mark that means something is escaped, and undoing it gives the text."""
    shown = escape.markdown(text)
    plain, place = "", 0
    while place < len(shown):
        one = shown[place]
        if one == "\\":
            assert place + 1 < len(shown)
            plain += shown[place + 1]
            place += 2
            continue
        assert one not in "`*_|~$<", shown
        assert not shown[place:].startswith(("](", "][", "]:", "://")), shown
        plain += one
        place += 1
    assert html.unescape(plain) == escape.terminal(text) or "&" in text
    assert not re.match(r"(#+|[-+=]|>|\d+[.)])(\s|$)", shown) or shown.startswith("\\")


# --- LaTeX and BibTeX


@given(WORDS)
def test_latex_has_no_command_but_ours_and_balanced_braces(text: str) -> None:
    for shown in (escape.latex(text), escape.bibtex(text)):
        left = re.sub(
            r"\\(textbackslash|textasciitilde|textasciicircum|textbar|char34|char96)\{\}|\\[_%&#${}]|\$[<>]\$",
            "",
            shown,
        )
        assert not set(left) & set('\\_%&#${}~^<>|"`'), shown


@given(WORDS)
def test_an_address_cannot_leave_its_braces(text: str) -> None:
    assert not set(escape.bibtex(text, verbatim=True)) & set("{}\\ \t\n")


# --- HTML


@given(WORDS)
def test_html_reads_back_as_the_text(text: str) -> None:
    shown = escape.html(text)
    assert not set(shown) & set("<>\"'") and html.unescape(shown) == escape.terminal(text)


# --- figures


@pytest.mark.parametrize("text", [r"$\write18{id}$", "$x", "a$b$c", r"\$x\$", "$$", r"\\$\\$", "$\\badcommand$"])
def test_a_figure_draws_dollars_as_dollars(text: str) -> None:
    figure = Figure()
    drawn: Text = figure.suptitle(escape.figure(text))
    kept, mathematics = drawn._preprocess_math(drawn.get_text())
    assert not mathematics and kept == text
    figure.savefig(io.BytesIO(), format="png")
