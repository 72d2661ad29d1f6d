"""How far work has come is left in a file, seldom, and never stops the work."""

import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from mibench.runtime import progress
from mibench.runtime.progress import Recorded, Reporter, Silent


class Counting(Silent):
    """Adds up."""

    done = 0

    def advance(self, count: int = 1) -> None:
        Counting.done += count


class Counted(Silent):
    def task(self, label: str, total: int, unit: str):  # type: ignore[no-untyped-def]
        return nullcontext(Counting())


def test_a_record_says_when_and_how_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SELDOM", -1.0)
    reporter = Recorded(Counted(), tmp_path / ".progress.json")
    assert isinstance(reporter, Reporter)
    with reporter.task("ppa on digiface-cnn-re", 100, "images") as bar:
        bar.advance(30)
        bar.advance(12)
    told = json.loads((tmp_path / ".progress.json").read_text())
    assert abs(time.time() - told.pop("time")) < 60
    assert told == {"label": "ppa on digiface-cnn-re", "of": 100, "step": 42, "unit": "images"} and Counting.done == 42


def test_records_are_seldom_and_a_folder_that_is_not_there_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(progress, "_leave", lambda path, record: written.append(record["step"]))
    with Recorded(Silent(), tmp_path / "x").task("", 1000, "images") as bar:
        for _ in range(1000):
            bar.advance()
    assert len(written) < 20
    monkeypatch.undo()
    with Recorded(Silent(), tmp_path / "gone" / "x").task("", 2, "images") as bar:
        bar.advance(2)
    assert list(tmp_path.iterdir()) == []
