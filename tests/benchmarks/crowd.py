"""10,000 finished scores, and all that they build on: every run is planned by a suite; its files are one template's.

What planning, the index and the report do with a run depends on how many files there are and how long, not on which
numbers stand in them. Of each score only the verdicts on its images are its own.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import reported as built

from mibench.core import Dataset
from mibench.experiments import suites
from mibench.experiments.plan import plan
from mibench.runs import Run
from mibench.runs.executor import pending

SUITE = """
title = "many runs"
dataset = "digiface"
defenses = ["none", "re"]
strengths = "default"
seeds = {seeds}
methods = {methods}
[settings.data]
identities = 4
image_size = 32
public_images = 40
bystanders = 0
"""

PEOPLE = 4
METHODS = 98
"""And two floors: 100 scores a target."""

PROVENANCE = {"seconds": 12.5, "cpu_seconds": 12.5, "device": "cpu", "machine": "x", "finished": "then", "mibench": "0"}


def suite(folder: Path, scores: int) -> Path:
    """The file of a suite of so many scores, a multiple of 200."""
    path = folder / "many.toml"
    methods = [f"gmi steps={place + 1}" for place in range(METHODS)]
    path.write_text(SUITE.format(seeds=list(range(scores // 200)), methods=json.dumps(methods)))
    return path


def planned(folder: Path, path: Path) -> list[Run]:
    """The scores of a suite."""
    return [run for experiment in suites.read(str(path)) for run in plan(experiment, folder / "results")]


def finish_all(runs: list[Run], scratch: Path, data: Dataset, images: int) -> int:
    """Let some scores and what they build on be finished; returns how many runs that are.

    Args:
        runs: The scores.
        scratch: A folder for the templates.
        data: Four people.
        images: Of each person.
    """
    judges = [built.judge(scratch, name, data) for name in ("resnet", "ir")]
    victim = built.target(scratch, [], data)
    draw = random.Random(0)
    templates: dict[str, list[dict[str, bytes]]] = {kind: [] for kind in ("inversions", "scores")}
    for seed in range(8):
        hits = [int(draw.random() < 0.1 * seed) for _ in range(PEOPLE * images)]
        made = built.score(scratch, "gmi", victim, judges, hits, data, images=images, seed=seed)
        templates["scores"].append(_files(made))
        templates["inversions"].append(_files(made.inversion))
    templates |= {"evaluators": [_files(judges[0])], "targets": [_files(victim)]}
    prior = made.inversion.prior
    assert prior is not None
    templates["priors"] = [_files(prior)]
    todo = pending(runs)
    for run in todo:
        _write(run, draw.choice(templates[run.kind]))
    return len(todo)


def _files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.name not in ("done", "run.json")}


def _write(run: Run, files: dict[str, bytes]) -> None:
    """As `Run.finish` does, without waiting for the disk."""
    card = json.dumps({**run.description(), "provenance": PROVENANCE}, indent=1, sort_keys=True) + "\n"
    content = {**files, "run.json": card.encode()}
    run.path.mkdir(parents=True)
    for name, text in content.items():
        (run.path / name).write_bytes(text)
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in sorted(content.items())}
    (run.path / "done").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
