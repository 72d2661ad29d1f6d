"""The first screen: the report's own numbers, whole at every width, and sentences that follow from its tests."""

# ruff: noqa: F811 (fixtures are imported)

import io
import re
from pathlib import Path

import pytest
from reported import data, noise, root, world  # noqa: F401 (fixtures)
from rich.console import Console

from mibench.evaluation import checks
from mibench.report import load, screen
from mibench.report.content import Content
from mibench.runtime import terminal


@pytest.fixture
def content(root: Path) -> Content:
    return Content(load.results(root, []))


def drawn(content: Content, width: int, look: Path | None = None, folder: Path | None = None) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(screen.render(content, look, folder))
    return console.file.getvalue()  # type: ignore[attr-defined]


def words(text: str) -> str:
    return re.sub(r"[\s─]+", "", text)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_at_any_width(content: Content, width: int) -> None:
    """Every label, rate and sentence of the headline stands on it, letter for letter but for line ends."""
    shown = drawn(content, width)
    assert max(map(len, shown.splitlines())) <= width and "…" not in shown
    assert content.headlines
    for headline in content.headlines:
        for standing in headline.standings[: screen.MOST]:
            assert standing.label.split()[0] in shown
            assert standing.point.strongest is not None
            assert screen._share(standing.point.strongest.rate) in shown
            assert screen._share(standing.point.natural) in shown
        for sentence in (*headline.standings[0].sentences[:-1], *headline.changes, headline.careful):
            assert words(sentence) in words(shown)


def test_a_target_that_is_not_converged_says_so(content: Content) -> None:
    unfinished = [not one.point.converged for headline in content.headlines for one in headline.standings]
    shown = drawn(content, 120)
    assert len(re.findall(r"^\S.* \*  ", shown, re.MULTILINE)) == sum(unfinished)
    assert ("* not converged" in shown) == any(unfinished)


def test_a_target_takes_one_line_at_80_columns(content: Content) -> None:
    lines = drawn(content, 80).splitlines()
    for headline in content.headlines:
        rows = [line for line in lines for one in headline.standings if line.startswith(f"{one.label} ")]
        assert len(rows) == len(headline.standings) and all(row.rstrip().endswith("]") for row in rows)


def test_every_check_that_fired_is_named_and_the_others_are_counted(content: Content) -> None:
    shown = words(drawn(content, 80))
    assert content.findings and all(one.check in shown for one in content.findings)
    assert f"checks{len(checks.passed(content.findings))}of{len(checks.CHECKS)}passed;fired:" in shown


def test_it_says_where_to_look_and_what_to_type(content: Content, tmp_path: Path) -> None:
    shown = drawn(content, 200, look=tmp_path / "report" / "index.html", folder=tmp_path)
    assert f"look    {tmp_path / 'report' / 'index.html'}" in shown
    assert f"mibench checks {tmp_path}" in shown


def test_without_a_defense_the_next_step_is_one(content: Content) -> None:
    alone = Content([one for one in content.results if not one.target.spec["defenses"]])
    assert "mibench train --defense re" in screen.next_step(alone)
    assert "train --defense re" not in screen.next_step(content)


def test_scores_of_floors_alone_have_no_headline(content: Content) -> None:
    floors = Content([one for one in content.results if one.role == "floor"])
    assert "No attack was scored" in drawn(floors, 80)


def test_a_pipe_gets_plain_lines_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 30 of 120 seconds a quarter is done and 90 seconds are left; nothing is told within ten seconds."""
    clock = iter([0.0, 5.0, 30.0, 36.0, 120.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    shown = io.StringIO()
    lines = terminal._Lines(Console(file=shown, width=100), "ppa on none", 100)
    for count in (5, 20, 5):
        lines.advance(count)
    lines.close()
    assert shown.getvalue().splitlines() == [
        "ppa on none: 25%, 0:30 elapsed, about 1:30 left",
        "ppa on none: over after 2:00",
    ]
