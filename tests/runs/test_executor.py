"""Laws of the suite: kills, interruptions and the number of workers leave no mark on the results."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from shell import ATTACK, ENVIRONMENT, JUDGES, SMALL, TRAIN, command, results, sets, start, world

from mibench.plugins import registry
from mibench.runs import Run, executor
from mibench.runs.relay import Shown
from mibench.runtime.progress import Silent
from mibench.stages import train_target
from mibench.training import Training

DATA = dict(item.split("=") for item in SMALL[1::2])
DATA = {name.removeprefix("data."): value for name, value in DATA.items()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def data() -> registry.Choice:
    return registry.configure("data", "digiface", settings=DATA)


# --- which runs are to be done


def chain(root: Path) -> tuple[Run, Run, Run]:
    """A grandparent, a parent and a child."""
    first = Run(root, "targets", "a", {})
    second = Run(root, "inversions", "b", {}, {"target": first})
    return first, second, Run(root, "scores", "c", {}, {"inversion": second, "evaluators": [first]})


def finish(run: Run) -> None:
    with run.locked(), run.writing():
        run.finish({})


def test_parents_come_first_and_each_run_once(tmp_path: Path) -> None:
    first, second, third = chain(tmp_path)
    assert executor.pending([third, second, third]) == [first, second, third]


def test_what_is_done_is_skipped_and_force_takes_only_what_is_named(tmp_path: Path) -> None:
    first, second, third = chain(tmp_path)
    finish(first)
    assert executor.pending([third]) == [second, third]
    finish(second)
    finish(third)
    assert executor.pending([third]) == []
    assert executor.pending([third], force=True) == [third]
    assert executor.pending([third, second], force=True) == [third, second]


def test_a_done_child_needs_no_parents(tmp_path: Path) -> None:
    first, second, third = chain(tmp_path)
    finish(third)
    assert executor.pending([third]) == [] and not first.done and not second.done


# --- workers


def test_one_worker_and_two_give_the_same_bytes(tmp_path: Path) -> None:
    """The world was made by one; of it only the target is here, and two are spawned, as for a user."""
    shutil.copytree(world().results / "targets", tmp_path / "results" / "targets")
    process = start("attack", "--method", "kedmi", *ATTACK, folder=tmp_path, MIBENCH_WORKERS="2")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == world().attack.out.splitlines()[-1]
    known = {*world().train.err.splitlines(), *world().attack.err.splitlines()}
    assert [line for line in err.splitlines() if line.startswith("done ") and line not in known] == []
    mine, theirs = results(tmp_path / "results"), results(world().results)
    assert {"priors", "evaluators", "inversions", "scores"} <= {name.split("/")[0] for name in mine}
    assert [name for name in mine if mine[name] != theirs.get(name)] == []


def descendants(process: "subprocess.Popen[str]") -> list[int]:
    """Living processes of a session that the process leads."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        state, _, _, session = text.rpartition(")")[2].split()[:4]
        if int(session) == process.pid and state != "Z":
            found.append(int(path.parent.name))
    return found


LONG = ["train", "--defense", "re", *SMALL, *sets(training__epochs=3000, evaluator__epochs=3000)]


def begun(process: "subprocess.Popen[str]", root: Path) -> None:
    """Wait until both workers have checkpoints."""
    until = time.monotonic() + 300
    while len(list(root.glob("results/*/.*.partial/checkpoint.pt"))) < 2:
        assert process.poll() is None and time.monotonic() < until, "it never began"
        time.sleep(0.05)


def gone(process: "subprocess.Popen[str]", seconds: float) -> bool:
    until = time.monotonic() + seconds
    while descendants(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not descendants(process)


@pytest.mark.parametrize("how", ["ctrl-c", "kill -9"])
def test_an_interruption_ends_all_processes_and_says_how_to_resume(how: str, tmp_path: Path) -> None:
    process = start(*LONG, folder=tmp_path, forking=how == "kill -9", MIBENCH_WORKERS="2")
    try:
        begun(process, tmp_path)
        if how == "ctrl-c":
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
            out, err = process.communicate(timeout=300)
            assert process.returncode == 130
            assert (
                err.strip() == ("mibench: interrupted; what is done is kept: run the same command again to resume")
                and out == ""
            )
        else:
            process.kill()
            process.communicate(timeout=300)
        assert gone(process, 5.0), "orphans"
    finally:
        for pid in descendants(process):
            os.kill(pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("results/*/.*.partial/checkpoint.pt"))) == 2
    assert not list(tmp_path.rglob("done"))


def test_a_killed_worker_is_told_and_the_command_resumes(tmp_path: Path) -> None:
    """What the system does when memory runs out."""
    process = start(*LONG, folder=tmp_path, forking=True, MIBENCH_WORKERS="2")
    try:
        begun(process, tmp_path)
        workers = [pid for pid in descendants(process) if pid != process.pid]
        os.kill(workers[0], signal.SIGKILL)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2 and len(err.splitlines()) == 1
        assert err.startswith("mibench: error: a worker process was killed") and "MIBENCH_WORKERS=1" in err
        assert gone(process, 5.0)
    finally:
        for pid in descendants(process):
            os.kill(pid, signal.SIGKILL)


def test_a_mistake_in_a_worker_is_the_same_one_line(tmp_path: Path) -> None:
    words = ["train", *SMALL, *JUDGES, *sets(training__lr=1e30, training__epochs=3, training__batch=4)]
    process = start(*words, folder=tmp_path, forking=True, MIBENCH_WORKERS="2")
    _, err = process.communicate(timeout=300)
    lines = [line for line in err.splitlines() if not line.startswith(("done ", "note: "))]
    assert process.returncode == 2 and len(lines) == 1 and "the loss became" in lines[0], err
    assert gone(process, 5.0)


@pytest.mark.parametrize("workers", ["0", "two", "-1", ""])
def test_a_wrong_number_of_workers(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "MIBENCH_WORKERS", workers)
    assert "MIBENCH_WORKERS must be a whole number of at least 1" in command("train", *TRAIN).error


def test_events_of_workers_reach_the_reporter() -> None:
    """Bars open, advance by what was counted, and close; lines are said."""
    told: list[Any] = []

    class Told(Silent):
        def task(self, label: str, total: int, unit: str) -> Any:
            told.append(("open", label, total, unit))
            return super().task(label, total, unit)

        def advance(self, count: int = 1) -> None:
            told.append(("advance", count))

        def say(self, line: str) -> None:
            told.append(("say", line))

    events: Any = __import__("queue").Queue()
    shown = Shown(Told())
    for event in [("open", 1, ("train", 10, "steps")), ("advance", 1, 4), ("say", None, "hello"), ("close", 1, None)]:
        events.put(event)
    executor._replay(events, shown)
    assert told == [("open", "train", 10, "steps"), ("advance", 4), ("say", "hello")] and shown.open == {}


def test_the_id_covers_the_whole_recipe_defaults_included(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another default must give another run, or old results would be taken for new ones."""
    source = registry.configure("data", "digiface")

    def identify(**given: Any) -> str:
        return train_target.plan(Path("r"), source, "cnn", [], 0, "fp32", given).id

    usual = identify()
    assert identify(lr=train_target.recipe("training", {})["lr"]) == usual
    assert identify(lr=1e-3) != usual
    monkeypatch.setitem(train_target.TARGET, "epochs", 16)
    assert identify() != usual


def test_few_images_get_more_epochs_unless_the_epochs_are_given() -> None:
    small = Training(**train_target.recipe("training", {})).for_images(140)
    assert small.epochs * small.steps_per_epoch(140) >= train_target.TARGET["least_steps"]
    assert Training(**train_target.recipe("training", {"epochs": "3"})).for_images(140).epochs == 3
