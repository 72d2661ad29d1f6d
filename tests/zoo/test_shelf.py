"""Laws of the zoo: what is shelved is the trained run but for rounding, and it is used wherever it is wanted."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from shell import ATTACK, SCRATCH, SMALL, TRAIN, Outcome, command, sets, world

import mibench
from mibench import runs
from mibench.api import Target
from mibench.experiments import options
from mibench.experiments.experiment import Experiment
from mibench.experiments.plan import plan
from mibench.runs import Run, canonical
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, execute, shelve
from mibench.zoo import Entry, Shelf, shelf

NAMES = {"targets/digiface-cnn-re": "re", "evaluators/digiface-ir": "ir", "priors/digiface-kedmi": "kedmi"}


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A shelf with a target, an evaluation model and a prior that learnt from the target, of four people."""
    root = SCRATCH / "shelf"
    for pattern, name in NAMES.items():
        trained = runs.find(world().results, world().one(f"{pattern}-*").name)
        shelve.add(trained, name, "mibench ...", resolve("cpu", "fp32"), root)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def stocked(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shelf as mibench's own, to be damaged; an empty results folder beside it."""
    root = Path(shutil.copytree(made, tmp_path / "shelf"))
    monkeypatch.setattr(shelf, "SHELF", root)
    monkeypatch.chdir(tmp_path)
    return root


def entry(root: Path, name: str = "re") -> Entry:
    return Shelf(root).find(name)


def attack(*words: str) -> Outcome:
    return command("attack", "--method", "kedmi", *ATTACK, *words)


# --- shelving


@pytest.mark.parametrize("pattern", NAMES)
def test_what_is_shelved_is_what_was_trained_rounded_to_half_precision(pattern: str, made: Path) -> None:
    trained, shelved = world().one(f"{pattern}-*"), entry(made, NAMES[pattern]).run.path
    assert shelved.name == trained.name
    for file in (*trained.glob("model.safetensors"), *trained.glob("prior.safetensors")):
        exact, rounded = load_file(file), load_file(shelved / file.name)
        assert exact.keys() == rounded.keys()
        for name, value in exact.items():
            wanted = value.half() if value.is_floating_point() else value
            assert rounded[name].dtype == wanted.dtype and torch.equal(rounded[name], wanted), name


def test_its_card_says_what_makes_it_again_and_what_rounding_moved(made: Path) -> None:
    card, before = entry(made).card, json.loads((world().one("targets/*") / "metrics.json").read_text())
    assert card["provenance"]["command"] == "mibench ..." and card["origin"]["zoo"] == "re"
    moved = card["origin"]["rounded"]["natural_accuracy"]
    assert moved["before"] == before["natural_accuracy"] and moved["after"] == entry(made).metrics["natural_accuracy"]
    assert entry(made).metrics["fit"] == before["fit"], "what belongs to the training stays as it was measured"


def test_measured_again_it_is_what_its_card_says(made: Path) -> None:
    measured = {(one.entry.name, one.metric): one for one in shelve.verify(resolve("cpu", "fp32"), made)}
    assert set(measured) == {
        ("re", "natural_accuracy"),
        ("ir", "natural_accuracy"),
        ("ir", "open_set_accuracy"),
        ("kedmi", "samples"),
    }
    assert all(one.here == pytest.approx(one.card, abs=1e-6) for one in measured.values())


def test_weights_that_are_not_the_ones_of_the_card_are_seen(stocked: Path) -> None:
    """Signed anew, so that no digest tells: only measuring does."""
    path = entry(stocked, "kedmi").run.path
    weights = load_file(path / "prior.safetensors")
    header = {"mibench": canonical(artifacts.read_header(path / "prior.safetensors"))}
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, path / "prior.safetensors", header)
    digests = json.loads((path / "done").read_text())
    digests["prior.safetensors"] = hashlib.sha256((path / "prior.safetensors").read_bytes()).hexdigest()
    (path / "done").write_text(json.dumps(digests))
    verdicts = {one.metric: one.holds for one in shelve.verify(resolve("cpu", "fp32"), stocked, ["kedmi"])}
    assert verdicts == {"samples": False}


def test_only_finished_networks_whose_parents_are_there_are_shelved(tmp_path: Path) -> None:
    engine, found = resolve("cpu", "fp32"), world().results
    prior = runs.find(found, world().one("priors/digiface-kedmi-*").name)
    with pytest.raises(UserError, match=r"builds on targets/digiface-cnn-re-.*, which is not in the zoo"):
        shelve.add(prior, "kedmi", "mibench ...", engine, tmp_path)
    with pytest.raises(UserError, match="the zoo takes finished networks"):
        shelve.add(runs.find(found, world().one("scores/kedmi-*").name), "kedmi", "mibench ...", engine, tmp_path)
    with pytest.raises(UserError, match="none of @"):
        shelve.add(runs.find(found, world().one("targets/*").name), "re@1", "mibench ...", engine, tmp_path)


def test_a_name_is_given_once(made: Path) -> None:
    other = runs.find(world().results, world().one("evaluators/digiface-resnet-*").name)
    with pytest.raises(UserError, match=r"ir@1000 in the zoo is evaluators/digiface-ir-"):
        shelve.add(other, "ir", "mibench ...", resolve("cpu", "fp32"), made)


# --- use


def experiment(precision: str) -> Experiment:
    words = dict(word.split("=") for word in SMALL[1::2] if word.startswith("data."))
    data = {name.removeprefix("data."): int(value) for name, value in words.items()}
    settings = {"data": data, "training": {"epochs": 1}, "evaluator": {"epochs": 1}}
    return options.grid(defenses=["re"], strengths="default", methods=["ppa"], settings=settings, precision=precision)


def networks(found: list[Run]) -> dict[str, Run]:
    """What a plan builds on, by label."""
    return {one.label: one for run in found for one in [run, *networks(run.ancestors()).values()]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plan_takes_what_is_ready_whatever_precision_it_computes_in(precision: str, made: Path) -> None:
    wanted = networks(plan(experiment(precision), zoo=Shelf(made)))
    ready = {label for label, run in wanted.items() if shelf.origin(run)}
    assert ready == {entry(made).run.label, entry(made, "ir").run.label}
    alone = networks(plan(experiment(precision)))
    assert not any(map(shelf.origin, alone.values())), "without a zoo everything is trained"


def test_what_was_trained_here_goes_before_the_zoo(made: Path) -> None:
    precision = entry(made).run.spec["precision"]
    found = networks(plan(experiment(precision), world().results, Shelf(made)))
    assert not any(map(shelf.origin, found.values()))


def test_an_attack_on_a_target_of_the_zoo_trains_nothing_that_is_there(stocked: Path, made: Path) -> None:
    told = attack("--target", "zoo:re")
    assert told.code == 0, told.err
    note = next(line for line in told.err.splitlines() if line.startswith("note: ready in the zoo"))
    for name in NAMES.values():
        run = entry(made, name).run
        installed = Path("results") / run.kind / run.path.name
        assert run.label in note and {file.name: file.read_bytes() for file in installed.iterdir()} == {
            file.name: file.read_bytes() for file in run.path.iterdir()
        }
    assert len(list(Path("results/evaluators").glob("*/done"))) == 2, "resnet was trained: it is not in the zoo"
    chain = json.loads(command("show", told.last.name, "--json").out)
    assert {one["name"] for one in chain if "origin" in one} == {"digiface-cnn-re", "digiface-ir", "digiface-kedmi"}
    assert "tran2025random" in command("cite", told.last.name).out
    assert "note: ready" not in attack("--target", "zoo:re").err, "a second time everything is done"


def test_no_zoo_trains(stocked: Path) -> None:
    sweep = ["sweep", "--defense", "re", "--strengths", "default", "--method", "ppa", *TRAIN, "--dry-run"]
    told = command(*sweep, "--no-zoo")
    assert told.code == 0 and "ready in the zoo" not in told.err and "\nzoo " not in told.out
    ready = command(*sweep)
    assert "ready in the zoo" in ready.err and "zoo    targets/digiface-cnn-re-" in ready.out


def test_training_commands_train(stocked: Path) -> None:
    told = command("train-target", "--defense", "re", *SMALL, *sets(training__epochs=1))
    assert told.last.name == entry(stocked).run.path.name
    assert load_file(told.last / "model.safetensors")["head.weight"].dtype == torch.float32


def test_a_prior_of_the_zoo_has_its_settings_and_is_it_on_its_data(stocked: Path) -> None:
    learnt = entry(stocked, "kedmi")
    told = command("attack", "--method", "kedmi", "--target", "zoo:re", "--prior", "zoo:kedmi", *ATTACK, "--dry-run")
    assert learnt.run.label in told.out and told.code == 0
    assert "is no prior" in command("attack", "--method", "kedmi", "--prior", "zoo:re", *ATTACK).error


def test_load_target_is_the_served_network(stocked: Path) -> None:
    model = mibench.load_target("re")
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    run = Shelf().take("zoo:re", Path("results"))
    execute([run], "cpu", Silent())
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = Target(runs.find(Path("results"), run.path.name)).model
    assert torch.equal(model(images), expected(images))
    assert torch.equal(mibench.load_target("re", seed=0)(images), model(images))
    with pytest.raises(UserError, match="unknown seed of re in the zoo '7'; known: 0"):
        mibench.load_target("re", seed=7)
    with pytest.raises(UserError, match="is no target but one of the priors"):
        mibench.load_target("kedmi")
    with pytest.raises(UserError, match="unknown name in the zoo 'ree'; did you mean 're'"):
        mibench.load_target("ree")


# --- what is wrong with it


def test_a_damaged_file_is_told_in_one_line(stocked: Path) -> None:
    path = entry(stocked).run.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = attack("--target", "zoo:re").error
    assert "digiface-cnn-re-" in error and "is damaged (its digest is not" in error and "--no-zoo" in error
    assert not list(Path("results").glob("targets/[!.]*"))
    assert "is damaged" in command("zoo", "verify", "re").error
    with pytest.raises(UserError, match="is damaged"):
        mibench.load_target("re")
    path.unlink()
    assert "is damaged (No such file" in attack("--target", "zoo:re").error


def test_a_zoo_of_another_protocol_is_told_in_one_line(stocked: Path) -> None:
    path = entry(stocked).run.path / "run.json"
    path.write_text(path.read_text().replace(f'"protocol": {runs.PROTOCOL}', '"protocol": 2'))
    for told in (attack("--target", "zoo:re"), command("zoo", "list"), command("zoo", "verify")):
        assert "was made under protocol 2, this mibench has" in told.error


def test_a_card_that_is_no_card_is_told_in_one_line(stocked: Path) -> None:
    path = entry(stocked).run.path / "run.json"
    for text in ("", "{}", '{"protocol": 3}', path.read_text().replace('"seed": 0', '"seed": 1')):
        path.write_text(text)
        assert "zoo" in command("zoo", "list").error


def test_a_target_of_other_data_is_told_in_one_line(stocked: Path) -> None:
    told = command("attack", "--method", "ppa", "--target", "zoo:re", "--dataset", "orl")
    assert "zoo:re was trained on 'digiface', not on 'orl'" in told.error


def test_images_that_are_not_those_it_was_trained_on_are_refused(stocked: Path) -> None:
    """As when a data set is drawn otherwise by a later version."""
    from mibench.core import Dataset

    with patch.object(Dataset, "fingerprint", lambda self: "0" * 64):
        assert "are not those that targets/digiface-cnn-re-" in attack("--target", "zoo:re").error
        assert "are not those that" in command("zoo", "verify", "re").error


# --- the commands


def test_zoo_list_show_and_verify(stocked: Path) -> None:
    listed = command("zoo", "list")
    assert listed.code == 0 and all(f"\n{name} " in f"\n{listed.out}" for name in NAMES.values())
    cards = json.loads(command("zoo", "list", "--json").out)
    assert {card["origin"]["zoo"] for card in cards} == set(NAMES.values())
    shown = command("zoo", "show", "re@0").out
    assert "again     mibench ..." in shown and entry(stocked).card["digest"] in shown.replace("\n", "")
    told = command("zoo", "verify", "--json")
    assert told.code == 0 and all(one["holds"] for one in json.loads(told.out))
    assert "digiface-cnn-re" in command("show", "zoo:re").out and "tran2025random" in command("cite", "zoo:re").out
