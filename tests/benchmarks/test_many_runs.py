"""How long 10,000 scores take to plan, to plan again when all are done, and to report; printed and never asserted.
Skipped in normal runs; to measure (the folder of 20,104 runs takes 0.5 GB and a minute to make):

python -m pytest tests/benchmarks/test_many_runs.py -o addopts="" --benchmark-only
"""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
import crowd
import reported as built

from mibench.core import Dataset
from mibench.report import write
from mibench.runs.executor import pending
from mibench.stages import artifacts

SCORES = 10_000
IMAGES = 10
"""Of each of four people."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A folder with a suite, all of whose runs are finished, and its data."""
    folder = tmp_path_factory.mktemp("many")
    own = [0, 0, 1, 1, 2, 2, 3, 3]
    sides = [built.split(len(own), own, seed) for seed in (1, 2)]
    others = [built.split(5, [0, 1, 2, 3, 4], 3), built.split(3, [0, 1, 2], 4)]
    data = Dataset("digiface", built.CLASSES, *sides, *others, False, True, {"source": "noise"})
    suite = crowd.suite(folder, SCORES)
    crowd.finish_all(crowd.planned(folder, suite), folder / "scratch", data, IMAGES)
    return folder, data


@pytest.mark.benchmark(group="plan")
def test_a_suite_planned(tmp_path: Path, benchmark: Any) -> None:
    suite = crowd.suite(tmp_path, SCORES)
    benchmark.pedantic(lambda: crowd.planned(tmp_path, suite), rounds=3, warmup_rounds=0)


@pytest.mark.benchmark(group="plan")
def test_a_suite_planned_again_when_done(many: tuple[Path, Dataset], benchmark: Any) -> None:
    folder, _ = many

    def again() -> None:
        assert pending(crowd.planned(folder, folder / "many.toml")) == []

    benchmark.pedantic(again, rounds=3, warmup_rounds=0)


@pytest.mark.benchmark(group="report")
def test_a_report(many: tuple[Path, Dataset], benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = many
    monkeypatch.setattr(artifacts, "open_dataset", lambda inputs: data)
    console = Console(file=io.StringIO(), width=120)
    benchmark.pedantic(lambda: write(folder / "results", console), rounds=1, warmup_rounds=0)
