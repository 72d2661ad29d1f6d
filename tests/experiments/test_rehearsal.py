"""A rehearsal does every step once, says what fails, can be taken for no result and leaves nothing."""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import command

from mibench import models, report, stages
from mibench.cli.rehearsing import quietly
from mibench.experiments import suites
from mibench.experiments.experiment import Experiment
from mibench.experiments.plan import plan
from mibench.experiments.rehearsal import rehearse
from mibench.experiments.rehearsal.choosing import choose
from mibench.experiments.rehearsal.place import MARK, place
from mibench.experiments.rehearsal.smaller import COUNTS
from mibench.experiments.rehearsal.standing import EMBEDDED, smaller_data, standing_in
from mibench.models.base import no_larger_than
from mibench.plugins import registry
from mibench.report.load import results
from mibench.runs import Run, find, finished, lineage
from mibench.runtime.engine import Engine, resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter, Silent
from mibench.stages import shelve

SUITE = """
title = "two targets, an attack and its floor"
strengths = [0.2, 0.4]
seeds = [0, 1]
defenses = ["none", "re"]
methods = ["ppa", "cma_es"]
floors = ["prior_search"]
"""


def written(tmp_path: Path, text: str = SUITE) -> list[Experiment]:
    file = tmp_path / "suite.toml"
    file.write_text(text)
    return suites.read(str(file))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def planned(experiments: list[Experiment], tmp_path: Path) -> list[Run]:
    assert experiments[0].dataset is not None
    data = smaller_data(experiments[0].dataset, tmp_path, Silent())
    return lineage(run for one in experiments for run in plan(standing_in(one, data, tmp_path)))


def test_numbers_make_no_other_step_and_no_id_is_a_real_one(tmp_path: Path) -> None:
    runs = planned(written(tmp_path), tmp_path)
    chosen = choose(runs)
    kinds = [run.kind for run in chosen]
    assert kinds == sorted(kinds, key=lambda kind: [run.kind for run in chosen].index(kind)), "parents first"
    assert len([run for run in runs if run.kind == "targets"]) == 6
    assert sorted(run.name for run in chosen if run.kind == "targets") == ["digiface-cnn-none", "digiface-cnn-re"]
    attacked = [(run.name, run.target.name.rpartition("-")[2]) for run in chosen if run.kind == "inversions"]
    both = [("ppa", "none"), ("ppa", "re"), ("cma_es", "none"), ("cma_es", "re"), ("prior_search", "none")]
    assert sorted(attacked) == sorted(both) and kinds.count("scores") == len(both)
    everything = {run.id for run in [*runs, *lineage(plan(written(tmp_path)[0]))]}
    assert all(run.rehearsed and run.id not in everything for run in chosen)
    assert not any(run.rehearsed for run in runs)


def test_every_count_is_small_and_nothing_else_is_changed(tmp_path: Path) -> None:
    runs = planned(written(tmp_path), tmp_path)
    for small in choose(runs):
        same = next(run for run in runs if (run.kind, run.name) == (small.kind, small.name))
        for part in ("attack", "prior"):
            for name, value in small.spec.get(part, {}).get("settings", {}).items():
                before = same.spec[part]["settings"][name]
                few = isinstance(value, int) and value < before
                assert few or value == before or value == list(before)
                assert name not in COUNTS or not isinstance(value, int) or value <= COUNTS[name]
        training = small.spec.get("training")
        assert training is None or (training["epochs"], training["least_steps"]) == (1, 0)
        assert training is None or training["optimizer"] == same.spec["training"]["optimizer"]


def test_what_is_drawn_is_drawn_smaller(tmp_path: Path) -> None:
    (experiment,) = written(tmp_path, SUITE + "[settings.data]\nidentities = 30\nspread = 0.5\n")
    assert experiment.dataset is not None
    plugin = smaller_data(experiment.dataset, tmp_path, Silent()).plugin
    assert plugin.identities == EMBEDDED["digiface"]["identities"] and plugin.spread == 0.5
    assert experiment.dataset.plugin.identities == 30
    dcd = registry.configure("defenses", "dcd").plugin
    protected = math.ceil(dcd.share * plugin.identities)
    assert plugin.public_images >= 2 * dcd.images * protected, "each protected person takes some of them"


def told(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A real rehearsal, kept, and what it says; MIBENCH_DATA and the folder it ran in are as before."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "data").mkdir()
    (folder / "data" / "mine").write_text("untouched")
    before = dict(os.environ)
    os.environ["MIBENCH_DATA"] = str(folder / "data")
    earlier = Path.cwd()
    os.chdir(folder)
    try:
        one = written(folder, SUITE.replace('"none", "re"', '"none"').replace(', "cma_es"', ""))
        was = told(folder)
        done = rehearse(one, "cpu", Silent(), quietly, folder / "kept")
        assert os.environ["MIBENCH_DATA"] == str(folder / "data") and "TORCH_HOME" not in os.environ.keys() - before
        assert {name: content for name, content in told(folder).items() if "kept" not in name} == was
        yield folder / "kept", done
    finally:
        os.chdir(earlier)
        os.environ.clear()
        os.environ.update(before)


def test_every_kind_of_step_is_done(kept: tuple[Path, Any]) -> None:
    _, done = kept
    assert done.failed == [] and done.runs == 15
    kinds = {
        "data",
        "plan",
        "weights",
        "targets",
        "evaluators",
        "verifiers",
        "priors",
        "inversions",
        "scores",
        "report",
    }
    assert {step.kind for step in done.steps} == kinds
    assert any("digiface" in line for line in done.replaced)


def test_what_is_kept_is_taken_for_no_result(kept: tuple[Path, Any]) -> None:
    root = kept[0]
    assert "rehearsal" in (root / MARK).read_text()
    errors: list[str] = []
    assert results(root / "results", errors) == [] and "made by a rehearsal" in errors[0]
    assert len(report.frames(root / "results").scores) == 0
    with pytest.raises(UserError, match="made by a rehearsal"):
        shelve.add(finished(root / "results", "targets")[0], "mine", "", resolve("cpu", "fp32"), root / "shelf")
    with pytest.raises(UserError, match="not empty"), place(root):
        pass
    score = finished(root / "results", "scores")[0]
    assert score.rehearsed and find(root / "results", score.id).inversion.target.rehearsed
    real = Run(root / "results", "scores", "x", {"precision": "fp32"}, {"inversion": score.inversion})
    assert real.rehearsed, "nor is what builds on it"


def test_a_step_that_fails_is_named_and_the_others_are_done(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(run: Run, engine: Engine, reporter: Reporter) -> None:
        tried.append(run.label)
        if run.name == "digiface-cnn-re":
            raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(stages, "perform", fails)
    done = rehearse(written(tmp_path), "cpu", Silent(), lambda folder: None)
    failed = {f"{step.kind} {step.name}": step.failure for step in done.failed}
    assert failed["targets digiface-cnn-re"] == "ZeroDivisionError: on purpose"
    after = [f"{kind} {attack} on digiface-cnn-re" for kind in ("inversions", "scores") for attack in ("ppa", "cma_es")]
    assert set(failed) == {"targets digiface-cnn-re", *after}
    assert "builds on targets/digiface-cnn-re" in failed[after[0]] and "builds on inversions/" in failed[after[2]]
    assert any("digiface-cnn-none" in label for label in tried) and len(tried) == len(set(tried))
    assert list(temporary.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run: Run, engine: Engine, reporter: Reporter) -> None:
        assert list(temporary.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rehearse(written(tmp_path), "cpu", Silent(), quietly)
    assert list(temporary.iterdir()) == []


def test_the_command_ends_with_2_where_a_step_failed(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(run: Run, engine: Engine, reporter: Reporter) -> None:
        raise UserError("not today")

    monkeypatch.setattr(stages, "perform", fails)
    written(tmp_path)
    where = str(tmp_path / "suite.toml")
    ended = command("run", where, "--rehearse", "--json")
    assert ended.code == 2
    said = json.loads(ended.out)
    assert said["failed"] == sum(bool(step["failure"]) for step in said["steps"]) > 3 and said["cannot_tell"]
    ended = command("run", where, "--keep", str(tmp_path / "k"))
    assert ended.code == 2 and "belongs to --rehearse" in ended.err and not (tmp_path / "k").exists()


def test_networks_look_at_small_images_only_within() -> None:
    sides = {
        "resnet18": (224, 32),
        "facenet64": (64, 32),
        "inception_v3": (299, 107),
        "inception_resnet_v1": (160, 75),
        "vit_b_16": (224, 224),
    }
    for name, (usual, least) in sides.items():
        with torch.device("meta"):
            with no_larger_than(32):
                rows = models.build(name, 3, (3, 16, 16)).prepare.rows
            assert rows is not None and rows.shape[0] == least
            rows = models.build(name, 3, (3, 16, 16)).prepare.rows
            assert rows is not None and rows.shape[0] == usual
    with no_larger_than(32):
        model = models.build("inception_v3", 3, (3, 16, 16)).train()
    second: list[torch.Tensor] = []
    model.get_submodule(f"trunk.{model.auxiliary}").register_forward_hook(lambda *given: second.append(given[2]))
    model.trunk.aux_logits = True
    model.trunk(model.prepare(torch.rand(2, 3, 16, 16)))
    assert second and second[0].shape == (2, 3), "its second head has a place"


def test_ci_rehearses_every_shipped_suite() -> None:
    workflow = (Path(__file__).parents[2] / ".github/workflows/ci.yml").read_text()
    listed = workflow.partition("suite:\n")[2].partition("steps:")[0].split()
    assert sorted(word for word in listed if word != "-") == sorted(suites.suites())


def test_a_finished_evaluation_model_is_trained_by_its_architecture(tmp_path: Path) -> None:
    judges = 'evaluators = "evaluators/digiface-resnet18-0123456789ab,ir"\n'
    (experiment,) = written(tmp_path, judges + SUITE)
    assert experiment.dataset is not None
    data = smaller_data(experiment.dataset, tmp_path, Silent())
    assert standing_in(experiment, data, tmp_path, tmp_path / "results").evaluators.names == ("resnet18", "ir")
    (experiment,) = written(tmp_path, judges.replace("digiface-resnet18", "mine") + SUITE)
    with pytest.raises(UserError, match="nothing can stand in for evaluators/mine"):
        standing_in(experiment, data, tmp_path, tmp_path / "results")


def test_stated_weights_are_those_that_are_here(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"mine")
    with place(tmp_path / "kept", [str(tmp_path / "mine.pth"), "nowhere.pth"]) as root:
        assert (root / "data/weights/mine.pth").read_bytes() == b"mine"
        assert not (root / "data/weights/nowhere.pth").exists()
