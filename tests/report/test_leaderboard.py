"""The references: shipped rows are the committed ones to the last digit; own rows join their own protocol only."""

# ruff: noqa: F811 (fixtures are imported)

import csv
import json
from pathlib import Path

import pytest
from reported import noise, world  # noqa: F401
from shell import command

from mibench.report import frame, leaderboard, load
from mibench.report.leaderboard import COLUMNS, Board, Entry, Leaderboard, references, ship
from mibench.runtime.errors import UserError

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "results" / "reference"


def test_the_shipped_copy_is_the_committed_reference(tmp_path: Path) -> None:
    shipped = {path.name: path.read_bytes() for path in (ROOT / "mibench/report/reference").iterdir()}
    made = {path.name: path.read_bytes() for path in ship(REFERENCE, tmp_path / "reference")}
    assert made == shipped, "run: python -m mibench.report.leaderboard results/reference"
    with pytest.raises(UserError, match="has no"):
        ship(tmp_path)


def test_numbers_are_those_of_tables_csv() -> None:
    table, known = {}, ("protocol", "target_label", "attack_label")
    for path in REFERENCE.glob("*/tables.csv"):
        with path.open(newline="") as lines:
            table |= {(path.parent.name, *(row[name] for name in known)): row for row in csv.DictReader(lines)}
    entries = references()
    assert len(entries) == sum(bool(row["likeness"]) for row in table.values())
    for entry in entries:
        row = table[entry.source, *(entry.values[name] for name in known)]
        for name in COLUMNS:
            value = entry.values[name]
            assert row[name] == "" if value is None else row[name] == value or float(row[name]) == value


def entry(likeness: float, low: float, high: float, role: str = "attack", source: str = "ours") -> Entry:
    values = dict.fromkeys(COLUMNS, "") | {"likeness": likeness, "likeness_low": low, "likeness_high": high}
    return Entry(source, values | {"role": role, "protocol": "abcdef", "attack_label": f"{likeness}"})


def test_ranks_are_what_the_intervals_leave_open() -> None:
    rows = [entry(0.9, 0.8, 1.0), entry(0.5, 0.4, 0.6), entry(0.45, 0.3, 0.55), entry(0.1, 0.0, 0.2, "floor")]
    board = Board([*rows, entry(0.95, 0.9, 1.0, "ceiling")])
    assert [board.ranks(row) for row in board.entries] == [(1, 1), (2, 3), (2, 3), (4, 4), None]


def test_rows_are_sorted_by_likeness_and_own_ones_come_in_between() -> None:
    board = Leaderboard(
        [entry(0.5, 0.4, 0.6, "floor"), entry(0.9, 0.8, 1.0), entry(0.5, 0.4, 0.6)], [entry(0.7, 0.6, 0.8, source="")]
    ).boards[0]
    assert [(one.values["likeness"], one.own, one.values["role"]) for one in board.entries] == [
        (0.9, False, "attack"),
        (0.7, True, "attack"),
        (0.5, False, "attack"),
        (0.5, False, "floor"),
    ]


def test_own_scores_of_another_protocol_are_named_with_the_reason(world: Path) -> None:
    told = command("leaderboard", str(world), "--json")
    assert told.code == 0, told.err
    shown = json.loads(told.out)
    assert not any(row["own"] for board in shown["boards"] for row in board["rows"])
    (apart,) = shown["not_comparable"]
    assert apart["scores"] == 7 and "images (fingerprint)" in apart["reason"] and "(100; here 4)" in apart["reason"]
    text = command("leaderboard", str(world)).out
    assert "not comparable: 7 scores of yours" in text and max(map(len, text.splitlines())) <= 80


def test_own_scores_of_a_reference_protocol_join_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = load.results(world)
    table = frame.scores(results)
    rows = [row for row in table.to_dict("records") if row["role"] != "ceiling" and row["likeness"] == row["likeness"]]
    mine = [Entry("mine", {name: row[name] for name in COLUMNS}) for row in rows[:3]]
    monkeypatch.setattr(leaderboard, "references", lambda: mine)
    board = leaderboard.leaderboard(results)
    assert board.apart == [] and len(board.boards) == 1
    own = [one for one in board.boards[0].entries if one.own]
    assert len(own) == len(results) and len(board.boards[0].entries) == len(results) + 3
    by_score = {row["score"]: row for row in rows}
    assert all(one.values["likeness"] == by_score[one.values["score"]]["likeness"] for one in own)
    told = command("leaderboard", str(world))
    assert told.code == 0 and told.out.count("*") >= len(own)


def test_a_folder_without_scores_teaches(tmp_path: Path) -> None:
    told = command("leaderboard", str(tmp_path))
    assert told.code == 2 and "no finished scores in" in told.err
