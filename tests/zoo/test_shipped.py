"""What ships in the zoo: it is whole, small, what its list says, what the demo wants, and what its commands make."""

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shell import command

import mibench
from mibench.data.digiface import Digiface
from mibench.experiments import suites, zoo
from mibench.experiments.plan import plan
from mibench.plugins import registry
from mibench.runs import lineage
from mibench.zoo import SHELF, Entry, Shelf, origin

MB = 2**20
UNTRAINED = ("dcgan", "public", "pixels")
"""Priors whose runs train nothing."""


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return Shelf().entries


def test_every_file_is_whole_and_all_together_are_small(entries: list[Entry]) -> None:
    assert len(entries) >= 12
    for entry in entries:
        entry.check()
    assert sum(entry.size for entry in entries) < 60 * MB
    files = {file for file in SHELF.rglob("*") if file.is_file()}
    listed = {entry.run.path / name for entry in entries for name in [*_digests(entry), "done"]}
    assert files == listed, "nothing lies there that no card knows"


def _digests(entry: Entry) -> list[str]:
    return list(entry.run.read("done")) if (entry.run.path / "done").exists() else []


def test_every_name_is_one_run(entries: list[Entry]) -> None:
    references = [(entry.run.kind, entry.reference) for entry in entries]
    assert len(set(references)) == len(references)
    names = {entry.name for entry in entries}
    assert {"none", "re", "re-0.8", "resnet", "ir", "verifier-resnet", "verifier-ir", "stylegan2"} <= names


def test_every_entry_was_made_of_committed_code_by_the_command_of_the_list(entries: list[Entry]) -> None:
    """The specification that the list's command plans today is the one that was trained: a recipe that changes must
    bring a new zoo."""
    commands = {one.command: one for one in zoo.wanted()}
    for entry in entries:
        made = entry.card["provenance"]
        assert made["commit"] and "dirty" not in made["commit"], entry.reference
        one = commands[made["command"]]
        planned = {run.label: run for run in lineage(plan(one.experiment, Path("results")))}
        assert entry.run.label in planned, (
            f"{entry.reference}: {made['command']} now makes another run; make the zoo anew"
        )


def test_targets_have_converged_and_none_is_the_most_accurate(entries: list[Entry]) -> None:
    accuracy = {e.reference: e.metrics["natural_accuracy"]["value"] for e in entries if e.run.kind == "targets"}
    for entry in entries:
        if entry.run.kind == "targets":
            assert entry.metrics["convergence"]["converged"] or entry.name == "tiny", entry.reference
            moved = entry.card["origin"]["rounded"]["natural_accuracy"]
            assert abs(moved["after"]["value"] - moved["before"]["value"]) <= 0.004, "rounding moves 2 images of 500"
    assert accuracy["none@0"] > accuracy["re@0"] > accuracy["re-0.8@0"] > 0.7
    assert max(accuracy, key=accuracy.__getitem__) == "none@0"


def test_the_demo_trains_nothing(tmp_path: Path) -> None:
    planned = [run for one in suites.read("demo") for run in plan(one, tmp_path, Shelf())]
    networks = {run.label: run for run in lineage(planned) if run.kind not in ("inversions", "scores")}
    trained = [
        run.label
        for run in networks.values()
        if origin(run) is None and not (run.kind == "priors" and run.spec["prior"]["name"] in UNTRAINED)
    ]
    assert not trained, f"make the zoo anew, or change the demo: {trained}"
    assert any(run.kind == "targets" for run in networks.values())


def test_load_target_answers_as_its_card_says() -> None:
    """On the first held-out images of the default data set, a tenth of those that its accuracy was measured on."""
    model = mibench.load_target("none")
    some = Digiface(identities=10, train_images=1, public_images=1, distractors=1, distractor_images=1).load().heldout
    with torch.no_grad():
        hits = (model(some.images.float() / 255).argmax(1) == some.labels).double().mean()
    kept = load_file(Shelf().find("none").run.path / "heldout.safetensors")
    assert float(hits) == pytest.approx(float(kept["hits"][: len(some.labels)].double().mean()), abs=0.021)


def test_a_shipped_run_is_what_its_command_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny` is trained again by the command on its card. Another processor rounds otherwise, and so training drifts:
    within 1% of the weights' norm and 10% of the held-out images."""
    monkeypatch.chdir(tmp_path)
    entry = Shelf().find("tiny")
    program, *words = shlex.split(entry.card["provenance"]["command"])
    assert program == "mibench"
    made = command(*words).last
    again, shipped = (load_file(path / "model.safetensors") for path in (made, entry.run.path))
    assert made.name == entry.run.path.name and again.keys() == shipped.keys()
    for name, weight in again.items():
        if weight.is_floating_point() and weight.norm() > 0:
            assert float((weight - shipped[name].float()).norm() / weight.norm()) < 0.01, name


def test_commands_name_what_there_is() -> None:
    listed = command("zoo", "list")
    assert listed.code == 0 and "re-0.8" in listed.out
    assert "…" not in listed.out and max(map(len, listed.out.splitlines())) <= 80  # as wide as a terminal at least is
    shown = command("zoo", "show", "re@1").out
    assert "mibench train-target --defense re --set a_e=0.4 --seed 1 --precision fp32" in " ".join(shown.split())
    planned = command("attack", "--target", "zoo:re@1", "--method", "ppa", "--prior", "zoo:stylegan2", "--dry-run")
    assert planned.code == 0 and Shelf().find("stylegan2").run.label in planned.out
    assert "unknown name in the zoo 'ree'; did you mean 're'?" in command("zoo", "show", "ree").error


def test_presets_and_entries_agree() -> None:
    """`--prior stylegan2 --preset long` is what the zoo has."""
    learnt = Shelf().find("stylegan2").run.spec["prior"]
    assert registry.configure("priors", "stylegan2", "long").spec() == learnt
