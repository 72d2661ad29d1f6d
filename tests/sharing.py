"""A small graph of runs and a stage that adds up: what workers and clusters are tested on, and killed over."""

import json
import os
import time
from pathlib import Path

from mibench.runs import Run
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic, write_json
from mibench.runtime.progress import Reporter

STEPS = 5


def graph(root: Path, leaves: int = 3) -> list[Run]:
    """A target, and so many inversions and scores on it."""
    target = Run(root, "targets", "t", {"precision": "fp32", "seed": 0})
    scores = []
    for place in range(leaves):
        inversion = Run(root, "inversions", "i", {"precision": "fp32", "seed": place}, {"target": target})
        scores.append(Run(root, "scores", "s", {"precision": "fp32"}, {"inversion": inversion}))
    return scores


def stage(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Adds up in steps, each kept in a checkpoint; who did a step is no part of the result."""
    pause, fails = float(os.environ.get("PAUSE", "0")), os.environ.get("FAILS", "")
    if run.name == fails or (run.root / f"{run.name}.fails").exists():
        with (run.root / "failures").open("a") as file:
            file.write(f"{run.label}\n")
        raise UserError(f"{run.label} cannot be done")
    with run.writing() as folder, reporter.task(run.label, STEPS, "steps") as bar:
        kept = folder / "checkpoint.json"
        state = json.loads(kept.read_text()) if kept.exists() else {"step": 0, "sum": 0}
        for step in range(state["step"], STEPS):
            state = {"step": step + 1, "sum": 3 * state["sum"] + int(run.id, 16) % 97}
            write_json(kept, state)
            with (run.root / "steps").open("a") as file:
                file.write(f"{run.label} {step}\n")
            time.sleep(pause)
            bar.advance()
        write_atomic(folder / "model.bin", lambda scratch: scratch.write_text(str(state["sum"])))
        run.finish({"by": run.attempt})


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("*/[!.]*/model.bin")}


def left_over(root: Path) -> list[str]:
    """Claims, cards, attempts: what workers must not leave behind."""
    hidden = [
        *root.glob("*/.*.claim*"),
        *root.glob(".workers/*"),
        *root.glob("*/.attempts/*"),
        *root.glob("*/.*.partial"),
    ]
    return [str(path) for path in hidden]
