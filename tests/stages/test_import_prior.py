"""An imported prior is a run as others: its id hangs on the file and its use, not on a data set or a place."""

import json
from pathlib import Path

import generators
import pytest
import torch
from shell import command

from mibench.experiments.reading import read_attackers
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, import_prior, perform


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.nvidia(tmp_path_factory.mktemp("file") / "ffhq.pkl", 16)


def done(root: Path, file: Path, licence: str = "", **settings: object) -> import_prior.Run:
    run = import_prior.plan(root, import_prior.choose(file, settings, licence=licence))
    with run.locked():
        perform(run, resolve("cpu", "fp32"), Silent())
    return run


def test_the_run_of_an_import(file: Path, tmp_path: Path) -> None:
    run = done(tmp_path, file, "mine", crop=12)
    told = run.read("metrics.json")
    assert run.name == "ffhq" and run.done and told["critic"] == "none"
    assert told["imported"]["licence"] == "mine" and told["imported"]["resolution"] == 16
    assert told["imported"]["sha256"] == run.spec["prior"]["settings"]["weights"]
    moved = file.rename(file.with_name("moved.pkl"))
    try:
        again = import_prior.choose(run.path, {})
        assert import_prior.plan(tmp_path, again).id == run.id, "named by its directory it is the same run"
        other = done(tmp_path, run.path, crop=10)  # from the run's own weights
        assert other.id != run.id and other.read("metrics.json")["imported"]["licence"] == "mine"
    finally:
        moved.rename(file)
    tensors, _ = artifacts.read_tensors(run.path / "prior.safetensors", "prior")
    assert torch.equal(tensors["generator.constant"], generators.value("synthesis.b4.const", 8, 4, 4))


def test_its_use_is_part_of_its_id_and_its_place_is_not(file: Path, tmp_path: Path) -> None:
    ids = {
        import_prior.plan(tmp_path, import_prior.choose(file, settings)).id
        for settings in ({}, {"crop": 8}, {"psi": 1})
    }
    copied = tmp_path / "ffhq.pkl"
    copied.write_bytes(file.read_bytes())
    assert len(ids) == 3 and import_prior.plan(tmp_path / "x", import_prior.choose(copied, {})).id in ids


def test_an_attack_takes_the_file_itself(file: Path) -> None:
    (attacker,) = read_attackers("ppa", "quick", {}, str(file), {"crop": "12"})
    assert attacker.prior.name == "stylegan2_ada" and attacker.prior.plugin.crop == 12


def test_random_weights_are_nobodys_prior(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not learnt but imported: mibench prior import FILE\.pkl"):
        import_prior.plan(tmp_path, registry.configure("priors", "stylegan2_ada"))


def test_a_file_that_changes_meanwhile(file: Path, tmp_path: Path) -> None:
    copied = tmp_path / "ffhq.pkl"
    copied.write_bytes(file.read_bytes())
    run = import_prior.plan(tmp_path, import_prior.choose(copied, {}))
    generators.nvidia(copied, 32)
    with run.locked(), pytest.raises(UserError, match="has changed since it was asked for"):
        perform(run, resolve("cpu", "fp32"), Silent())


def test_the_command(file: Path, tmp_path: Path) -> None:
    told = command("prior", "import", str(file), "--name", "faces", "--json", "--results", str(tmp_path))
    assert told.code == 0, told.err
    shown = json.loads(told.out)
    assert Path(shown["path"]).name.startswith("faces-") and shown["metrics"]["imported"]["format"].startswith("NVIDIA")
    absent = command("prior", "import", str(tmp_path / "no.pkl"), "--results", str(tmp_path))
    assert absent.code == 2 and "there is no generator" in absent.err and "no.pkl" in absent.err
