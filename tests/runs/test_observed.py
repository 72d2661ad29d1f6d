"""Who watches a run changes nothing of it: profiles and mirrors, and what becomes of them when they fail."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sharing import graph, stage
from shell import SMALL, command

from mibench.plugins import registry
from mibench.runs import Run, executor, mirrors, profiling
from mibench.runs.mirrors import Mirror, scalars
from mibench.runs.observed import Observed
from mibench.runtime.engine import Engine, resolve
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.progress import Reporter, Silent
from mibench.stages import perform, train_target

LOG = [
    {"phase": 0.0, "step": 10.0, "loss": 3.0},
    {"phase": 1.0, "step": 5.0, "loss": 2.0},
    {"phase": 1.0, "step": 10.0},
]
PEOPLE = {
    "identities": 4,
    "train_images": 3,
    "heldout_images": 2,
    "public_images": 8,
    "distractors": 2,
    "distractor_images": 2,
    "image_size": 16,
}


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_broken", set())


def steps(run: Run, engine: Engine, reporter: Reporter) -> None:
    """As many advances as the run's name says, each of one product of matrices."""
    with run.writing() as folder, reporter.task(run.label, 1, "steps") as bar:
        a = torch.ones(8, 8)
        for _ in range(int(run.name)):
            a = a @ a / 8
            bar.advance()
        write_json(
            folder / "metrics.json", {"sum": float(a.sum()), "of": {"people": 3, "whole": True}, "card": {"n": 1}}
        )
        (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LOG))
        run.finish({"seconds": 1.5})


def done(root: Path, name: str, **watching: Any) -> tuple[Run, list[str]]:
    told, run = Told(), Run(root, "targets", name, {"precision": "fp32"})
    executor.perform(run, Observed.of(steps, watching.get("profile", False), watching.get("to", ())), ENGINE, told)
    return run, told.lines


ENGINE = resolve("cpu", "fp32")


def digests(root: Path) -> dict[str, Any]:
    (made,) = root.glob("*/[!.]*/done")
    return {name: digest for name, digest in json.loads(made.read_text()).items() if name != "run.json"}


def events(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        return list(json.load(file)["traceEvents"])


def test_a_profile_of_a_training_is_readable_and_leaves_its_bytes(tmp_path: Path) -> None:
    data = registry.configure("data", "digiface", settings=PEOPLE)
    for name, profile in (("plain", False), ("watched", True)):
        run = train_target.plan_evaluator(tmp_path / name, data, "cnn", "fp32", {"epochs": 3, "batch": 4})
        executor.perform(run, Observed.of(perform, profile, ()), ENGINE, Silent())
    assert digests(tmp_path / "plain") == digests(tmp_path / "watched")
    (folder,) = (tmp_path / "watched" / "profiles" / "evaluators").iterdir()
    assert {"aten::convolution", "aten::linear"} <= {event.get("name") for event in events(folder)}
    assert "aten::convolution_backward" in (folder / "operators.txt").read_text()
    assert not (tmp_path / "plain" / "profiles").exists()


def test_nothing_stands_between_where_nothing_is_asked_for() -> None:
    assert Observed.of(stage, False, ()) is stage


@pytest.mark.parametrize(("advances", "recorded"), [(3, 3), (20, 15), (500, profiling.WINDOW)])
def test_a_window_is_recorded_and_a_short_run_as_a_whole(tmp_path: Path, advances: int, recorded: int) -> None:
    run, lines = done(tmp_path, str(advances), profile=True)
    folder = tmp_path / "profiles" / "targets" / run.path.name
    assert sum(event.get("name") == "aten::matmul" for event in events(folder)) == recorded
    assert lines == [f"profile of {run.label}: {folder}"]


def test_a_failed_run_has_a_profile_and_a_failed_profile_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "t")
    target = graph(tmp_path)[0].inversion.target
    with pytest.raises(UserError, match="cannot be done"):
        executor.perform(target, Observed(stage, profile=True), ENGINE, Told())
    assert events(tmp_path / "profiles" / "targets" / target.path.name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "profiles").write_text("a file")
    run, lines = done(tmp_path / "other", "3", profile=True)
    assert run.done and lines[0].startswith(f"note: no profile of {run.label}")


def test_numbers_have_their_own_clocks_and_phases(tmp_path: Path) -> None:
    run, _ = done(tmp_path, "3")
    assert list(scalars(run)) == [
        ("log/phase0/loss", 3.0, 10),
        ("log/phase1/loss", 2.0, 5),
        ("metrics/of/people", 3.0, 0),
        ("metrics/sum", 64.0, 0),
        ("run/seconds", 1.5, 0),
    ]


def test_tensorboard_has_the_numbers_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, lines = done(tmp_path / "results", "3", to=(Mirror("tensorboard", str(tmp_path / "board")),))
    told = EventAccumulator(str(tmp_path / "board" / "targets" / run.path.name))
    told.Reload()
    held = {(name, one.value, one.step) for name in told.Tags()["scalars"] for one in told.Scalars(name)}
    assert held == set(scalars(run)) and lines == []


def test_wandb_is_given_numbers_and_the_specification_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in its place: the real one, offline, was tried by hand (docs/observing.md)."""
    given: list[Any] = []
    summary: dict[str, float] = {}

    class Init:
        def __init__(self, **fields: Any) -> None:
            given.append(fields)
            self.summary = summary

        def __enter__(self) -> "Init":
            return self

        def __exit__(self, *error: object) -> None:
            given.append("over")

        def define_metric(self, name: str, **how: Any) -> None:
            pass

        def log(self, record: dict[str, float]) -> None:
            given.append(record)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Init, Settings=lambda **fields: fields))
    run, lines = done(tmp_path, "3", to=(Mirror("wandb", "mine"),))
    init, *records = given
    assert (init["project"], init["id"]) == ("mine", f"targets-{run.id}") and lines == []
    assert init["config"] == {"spec": {"precision": "fp32"}, "parents": {}}
    assert records == [
        {"log/phase0/step": 10, "log/phase0/loss": 3.0},
        {"log/phase1/step": 5, "log/phase1/loss": 2.0},
        "over",
    ]
    assert summary == {"metrics/of/people": 3.0, "metrics/sum": 64.0, "run/seconds": 1.5}


def test_a_mirror_that_fails_is_told_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**fields: Any) -> Iterator[None]:
        raise TimeoutError("no network\nat all")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fails, Settings=lambda **fields: fields))
    first, lines = done(tmp_path, "3", to=(Mirror("wandb", "mine"),))
    second, none = done(tmp_path, "4", to=(Mirror("wandb", "mine"),))
    assert first.done and second.done and none == []
    assert lines == ["note: --log wandb:mine failed and is left out from now on (TimeoutError: no network at all)"]


def test_a_mistaken_or_missing_mirror_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("tensorboard", "wandb:", "mlflow:x"):
        told = command("train-target", *SMALL, "--results", str(tmp_path / "r"), "--log", text)
        assert told.code == 2 and told.error == f"--log takes tensorboard:DIR or wandb:PROJECT, got '{text}'"
    monkeypatch.setattr(mirrors, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mibench\[wandb\]'"):
        mirrors.read(["wandb:mine"])
    assert not (tmp_path / "r").exists()
