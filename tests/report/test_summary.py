"""Crowds: what people are shown of more scores than they can read, and that the files still have every score."""

# ruff: noqa: F811 (fixtures are imported)

import gc
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from reported import RE, bits, data, judge, noise, score, target  # noqa: F401 (fixtures)
from rich.console import Console

from mibench.core import Dataset
from mibench.report import _uncollected, load, summary, write
from mibench.report.content import Content
from mibench.report.pairing import Attacked
from mibench.runtime.errors import UserError

SEEDS = (0, 1, 2)
HITS = {
    ("none", "gmi"): ("110100100110", "111100100111", "010100000110"),
    ("none", "prior_search"): ("100000000001", "100000000000", "000000000001"),
    ("re", "gmi"): ("000100000100", "000000000100", "000100100100"),
    ("re", "ppa"): ("011010010001", "011010010011", "011000010001"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, noise: Dataset) -> Path:
    """Two defenses, each trained three times; twelve scores."""
    root = tmp_path_factory.mktemp("crowd")
    judges = [judge(root, name, noise) for name in ("resnet", "ir")]
    defenses: dict[str, list[dict[str, object]]] = {"none": [], "re": [{"name": "re", "settings": RE}]}
    for defense, items in defenses.items():
        for seed in SEEDS:
            victim = target(root, items, noise, seed=seed)
            for (whose, attack), hits in HITS.items():
                if whose == defense:
                    score(root, attack, victim, judges, bits(hits[seed]), noise)
    return root


@pytest.fixture
def content(folder: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> Content:
    monkeypatch.setattr(summary, "CROWD", 10)
    return Content(load.results(folder))


def test_without_a_crowd_the_table_itself_is_shown(folder: Path, data: Dataset) -> None:
    content = Content(load.results(folder))
    assert content.shown is content.table


def test_a_row_is_one_attack_on_one_defense_over_all_seeds(content: Content) -> None:
    shown = content.shown
    named = list(zip(shown["target_label"], shown["attack_label"], shown["scores"], strict=True))
    assert named == [
        ("", "chance", 1),
        ("none", "prior_search", 3),
        ("none", "gmi", 3),
        ("re a_e=0.4", "gmi", 3),
        ("re a_e=0.4", "ppa", 3),
        ("", "real held-out", 1),
    ]
    for _, row in shown[shown["score"].notna()].iterrows():
        own = content.table[(content.table["defense"] == row["defense"]) & (content.table["attack"] == row["attack"])]
        known = [result for result in content.results if result.run.id in set(own["score"])]
        rate = Attacked.of("", known).rate
        assert (row["likeness"], row["likeness_low"], row["likeness_high"], row["n"]) == rate[:4]
        assert row["fid@resnet"] == pytest.approx(own["fid@resnet"].mean())
        assert row["open_top1@ir"] == pytest.approx(own["open_top1@ir"].mean())
        assert pd.isna(row["open_top1_low@ir"])  # a mean of intervals is none
        assert row["score"] in set(own["score"])


def test_what_chance_and_photographs_give_stays(content: Content) -> None:
    for place in (0, -1):
        mine, theirs = content.shown.iloc[place].drop("scores").dropna(), content.table.iloc[place].dropna()
        assert mine.to_dict() == theirs[mine.index].to_dict() and len(mine) == len(theirs)


def test_of_too_many_attacks_the_strongest_and_all_floors_are_shown(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "CROWD", 5)
    left = summary.summary(content.table, content.results)
    assert left["attack_label"].tolist() == ["chance", "prior_search", "gmi", "ppa", "real held-out"]
    assert "3 scores of attacks that leak less are left out" in summary.note(content.table, left)


def test_files_have_every_score_and_people_are_told_where_they_are(
    folder: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "CROWD", 10)
    report = write(folder, Console(file=io.StringIO(), width=100))
    table = pd.read_csv(report / "tables.csv")
    scored = set(table["score"].dropna())
    assert len(scored) == 12 and len(json.loads((report / "tables.json").read_text())["rows"]) == len(table)
    page, words = (report / "index.html").read_text(), (report / "tables.md").read_text()
    assert "12 scores, too many to read" in words
    assert sum(line.startswith(("| none | ", "| re a\\_e=0.4 | ")) for line in words.split("## ")[1].splitlines()) == 2
    assert "tables.csv names the other 8" in page and page.count('<details id="run-') < 12 * 2
    first = {score for score in scored if f'id="run-{score}"' in page}
    assert len(first) == 4


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_left_as_it_was_after_a_report(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [before]
    for name, answer in (("enable", True), ("disable", False)):
        monkeypatch.setattr(gc, name, lambda answer=answer: known.__setitem__(0, answer))
    monkeypatch.setattr(gc, "isenabled", lambda: known[0])
    with pytest.raises(UserError), _uncollected():
        assert not gc.isenabled()
        raise UserError("no finished scores")
    assert gc.isenabled() is before
