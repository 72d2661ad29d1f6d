"""How long a report of 100,000 reconstructions takes, printed and never asserted. Skipped in normal runs; to measure:

python -m pytest tests/benchmarks/test_report_speed.py -o addopts="" --benchmark-only
"""

import io
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))
import reported as built

from mibench.core import Dataset
from mibench.report import write
from mibench.stages import artifacts

PEOPLE = 50
ATTACKS = ("ppa", "gmi", "kedmi", "brep", "cma_es")


@pytest.fixture(params=[(100, 4), (4, 100)], ids=["500 scores of 200", "20 scores of 5,000"])
def results(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """So many targets, each attacked five times with so many reconstructions of each of 50 people: 100,000 in all."""
    targets, images = request.param
    own = torch.arange(PEOPLE).repeat_interleave(2).tolist()
    sides = [built.split(len(own), own, seed) for seed in (1, 2)]
    others = [built.split(3, [0, 1, 2], seed) for seed in (3, 4)]
    names = tuple(f"person_{place}" for place in range(PEOPLE))
    data = Dataset("digiface", names, *sides, *others, False, True, {"source": "noise"})
    monkeypatch.setattr(artifacts, "open_dataset", lambda inputs: data)
    judges = [built.judge(tmp_path, name, data) for name in ("resnet", "ir")]
    draw = random.Random(0)
    for place in range(targets):
        defenses: list[dict[str, object]] = [] if place % 2 == 0 else [{"name": "re", "settings": built.RE}]
        victim = built.target(tmp_path, defenses, data, seed=place // 2)
        for attack in ATTACKS:
            hits = [int(draw.random() < (0.3 if defenses else 0.5)) for _ in range(PEOPLE * images)]
            built.score(tmp_path, attack, victim, judges, hits, data, identities=PEOPLE, images=images)
    return tmp_path


@pytest.mark.benchmark(group="report")
def test_a_report_of_100_000_reconstructions(results: Path, benchmark: Any) -> None:
    benchmark.pedantic(lambda: write(results, Console(file=io.StringIO(), width=120)), rounds=3, warmup_rounds=0)
