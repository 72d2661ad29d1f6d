"""Bad input: one clear line, exit code 2, no traceback, and nothing lost."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shell import ATTACK, ENVIRONMENT, JUDGES, SMALL, TRAIN, command, files, full_disk, results, sets, world

from mibench import stages
from mibench.runs import Run
from mibench.runtime.errors import unknown
from mibench.stages import artifacts

FAST = [*SMALL, *sets(training__epochs=1)]
FLOOR = ["attack", "--method", "prior_sample", "--prior", "public", *JUDGES]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own; no data set from another test's folder of the same name."""
    monkeypatch.chdir(tmp_path)
    artifacts._opened.clear()


# --- names, fields and values


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("attack --method kedmii", "unknown attack 'kedmii'; did you mean 'kedmi'?"),
        ("invert --method gmy", "unknown attack 'gmy'; did you mean 'gmi'?"),
        ("train --defense ree", "unknown defense 'ree'; did you mean 're'?"),
        ("train-prior --prior wgan-gp", "unknown prior 'wgan-gp'; did you mean 'wgan_gp'?"),
        ("train --dataset digifaces", "unknown data set 'digifaces'; did you mean 'digiface'?"),
        ("train --model resnet19", "unknown architecture 'resnet19'; did you mean 'resnet"),
        ("train --evaluators resnet,irr", "unknown architecture 'irr'; did you mean 'ir"),
        ("attack --method gmi --preset papper", "unknown preset of gmi 'papper'; did you mean 'paper'?"),
        ("train-prior --preset quik", "unknown preset of wgan_gp 'quik'; did you mean 'quick'?"),
        ("train --device gpu", "unknown device 'gpu'"),
        ("train --precision fp8", "unknown precision 'fp8'"),
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
        ("train --defence re", "No such option: --defence"),
        ("list atacks", "unknown kind of plug-in 'atacks'; did you mean 'attacks'?"),
        ("data show orll", "unknown data set 'orll'; did you mean 'orl'?"),
        ("show abc", "unknown run 'abc'; known: none"),
        ("train --set training.epoch=3", "unknown setting of training 'epoch'; did you mean 'epochs'?"),
        ("train --set evaluator.lrr=3", "unknown setting of evaluator 'lrr'; did you mean 'lr'?"),
        ("train --set data.identity=3", "unknown setting of digiface 'identity'; did you mean 'identities'?"),
        ("attack --method gmi --set step=3", "unknown setting of gmi 'step'; did you mean 'steps'?"),
        ("train --set trainin.epochs=3", "unknown prefix of --set 'trainin'; did you mean 'training'?"),
        ("train --set epochs=3", "needs a prefix, one of data.epochs, training.epochs, evaluator.epochs"),
        ("train --set training.epochs", "--set takes field=value"),
        ("train --set =3", "--set takes field=value"),
        ("train --set training.epochs=many", "epochs must be int, got 'many'"),
        ("train --set training.epochs=1.5", "epochs must be int, got '1.5'"),
        ("train --set training.augment=perhaps", "augment must be bool, got 'perhaps'"),
        ("train --set training.optimizer=adm", "'adm'; did you mean 'adam"),
        ("train --set training.lr=-1", "lr must not be negative, got -1.0"),
        ("train --set training.lr=nan", "lr must be a finite number, got nan"),
        ("train --set training.lr=inf", "lr must be a finite number, got inf"),
        ("train --set training.lr=0", "lr must be above 0"),
        ("train --set training.epochs=0", "epochs >= 1"),
        ("train --set data.identities=1", "identities = 1 does not fit; give a whole number from 2 to"),
        ("train --defense re --set a_e=2", "re: areas"),
        ("train --defense re --set a_e=nan", "a_e must be a finite number"),
        ("train --defense re+re", "names a defense twice"),
        ("train --defense none+re", "'none' cannot be combined"),
        ("train --seed -1", "Invalid value for '--seed'"),
        ("train --seed one", "Invalid value for '--seed'"),
        ("train --seed 1000", "seed 1000 is the evaluation models'"),
        ("attack --budget 0", "Invalid value for '--budget'"),
        ("attack --identities 0", "Invalid value for '--identities'"),
        ("attack --method ppa --set candidates=0", "ppa: 1 <= images <= candidates <= pool"),
        ("train-prior --set steps=0", "must be at least 1"),
        ("train-prior --prior kedmi", "no trained target of data set 'digiface' in results"),
        ("train --evaluators resnet", "at least two models of different families"),
        ("train --evaluators resnet,resnet", "at least two models of different families"),
        ("train --evaluators resnet,cnn", "cnn is of the target's own family (cnn)"),
        ("train --model resnet --evaluators resnet18,cnn", "resnet18 is of the target's own family (resnet)"),
        ("attack", "no trained target of data set 'digiface' in results; run first: mibench train"),
        ("invert", "no trained target"),
        ("score", "no inversion in results; run first: mibench invert"),
        ("report", "no finished scores in results"),
        ("report nowhere", "no finished scores in nowhere"),
        ("report a b", "unexpected extra argument"),
        ("train --dataset folder", "needs the folder of your pictures"),
        ("train --dataset folder --set data.path=nowhere", "there is no folder nowhere/private"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words: str, told: str, tmp_path: Path) -> None:
    assert told in command(*words.split()).error
    assert list(tmp_path.iterdir()) == []


def test_a_target_knows_so_many_identities(tmp_path: Path) -> None:
    """Told before the prior is trained for it."""
    world().copy(tmp_path)
    before = files(tmp_path)
    assert "--identities 5: the target" in command("attack", "--method", "gmi", *ATTACK, "--identities", "5").error
    assert files(tmp_path) == before


def test_a_budget_for_not_one_step_says_what_is_wanted(tmp_path: Path) -> None:
    world().copy(tmp_path)
    words = ("invert", "--method", "prior_search", "--prior", "public", *SMALL, *sets(pool=20, images=1))
    told = command(*words, "--budget", "3").error
    assert "budget of 3 queries per identity is too small" in told and "20 shared" in told
    assert command(*words, "--budget", "20").code == 0


def test_an_attack_refuses_a_prior_without_a_critic_before_it_makes_floors(tmp_path: Path) -> None:
    root = world().copy(tmp_path)
    shutil.rmtree(root / "scores")
    told = command("attack", "--method", "gmi", "--prior", "public", *SMALL, *JUDGES, *sets(steps=1))
    assert "gmi needs a prior with a critic; choose with --prior one that has: " in told.error
    assert not (root / "scores").exists()


def test_more_images_than_the_pool_holds(tmp_path: Path) -> None:
    world().copy(tmp_path)
    told = command("invert", "--method", "public_search", *SMALL, *sets(images=60)).error
    assert "60" in told and "40" in told


def test_runs_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    made = world()
    made.copy(tmp_path)
    score, target = made.one("scores/kedmi-*").name, made.one("targets/*").name
    assert f"scores/{score} is not a target" in command("attack", "--target", score).error
    assert f"targets/{target} is not an inversion" in command("score", "--inversion", target).error
    assert "unknown run" in command("invert", "--target", "zzz").error


def test_one_image_of_one_identity_is_still_scored(tmp_path: Path) -> None:
    """Too few images for a Fréchet or kernel distance: null, not a crash after all the work."""
    world().copy(tmp_path)
    told = command(*FLOOR, *SMALL, "--identities", "1", *sets(images=1))
    found = json.loads((told.last / "scores.json").read_text())
    assert {judge["fid"] for judge in found["evaluators"].values()} == {None} and found["n"] == 1
    assert command("show", told.last.name).code == 0 and command("report").code == 0


def test_people_with_one_training_image_are_learnt(tmp_path: Path) -> None:
    told = command("train", *TRAIN, *sets(data__train_images=1), "--json")
    assert told.code == 0, told.err
    found = [one["metrics"] for one in json.loads(told.out) if one["kind"] == "evaluators"]
    assert [metrics["knn_real_to_real"] for metrics in found] == [None, None]


# --- folders of pictures


def picture(path: Path, mode: str = "RGB", size: int = 20) -> None:
    """Noise seeded by the path: no two alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*str(path).encode()])
    shape = {"RGB": (3,), "L": (), "RGBA": (4,), "CMYK": (4,)}[mode]
    Image.fromarray(rng.integers(0, 256, (size, size, *shape), dtype=np.uint8)).convert(mode).save(path)


def pictures(root: Path, private: int = 3) -> list[str]:
    """A tree of `private` private and three public people with four pictures each, and the options to use it."""
    for side, people in (("private", private), ("public", 3)):
        for person in range(people):
            for number in range(4):
                picture(root / side / f"{side}{person}" / f"{number}.png")
    return ["--dataset", "folder", *sets(data__path=root, data__image_size=32)]


def test_missing_and_unreadable_pictures_are_named_and_counted(tmp_path: Path) -> None:
    words = pictures(tmp_path / "pics")
    first = tmp_path / "pics/private/private0/0.png"
    first.write_bytes(b"not an image")
    other = tmp_path / "pics/private/private1/1.png"
    other.write_bytes(other.read_bytes()[:200])
    told = command("train", *words).error
    assert "2 of 24 image files cannot be read" in told and str(first) in told
    first.unlink()
    first.symlink_to(tmp_path / "gone.png")
    assert str(first) in command("train", *words).error
    assert not (tmp_path / "results/targets").exists() or list((tmp_path / "results/targets").glob("[!.]*")) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("one_person", "has 1 person; a classifier needs at least 2"),
        ("few_pictures", "have fewer than 2 pictures, the first is 'private0'"),
        ("empty_person", "have no pictures, the first is 'private0'"),
        ("empty", "the folder {root}/private has no pictures"),
        ("no_public", "there is no folder {root}/public"),
        ("overlap", "private image(s) also lie in public/"),
        ("same_person", "in both private/ and public/, the first is 'private0'"),
        ("text", "are no images, the first is {root}/private/private0/notes.txt"),
    ],
)
def test_folders_that_cannot_be_a_data_set(tmp_path: Path, damage: str, told: str) -> None:
    root = tmp_path / "pics"
    words = pictures(root, private=1 if damage == "one_person" else 3)
    one = root / "private/private0"
    if damage == "few_pictures":
        for number in (1, 2, 3):
            (one / f"{number}.png").unlink()
    elif damage == "empty_person":
        for path in one.iterdir():
            path.unlink()
    elif damage == "empty":
        shutil.rmtree(root / "private")
        (root / "private").mkdir()
    elif damage == "no_public":
        shutil.rmtree(root / "public")
    elif damage == "overlap":
        shutil.copy(one / "0.png", root / "public/public0/copy.png")
    elif damage == "same_person":
        shutil.copytree(root / "public/public0", root / "public/private0")
    elif damage == "text":
        (one / "notes.txt").write_text("hello")
    assert told.format(root=root) in command("train", *words).error
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").rglob("done"))


def test_grey_alpha_and_cmyk_pictures_are_converted_and_that_is_said(tmp_path: Path) -> None:
    words = pictures(tmp_path / "pics")
    one = tmp_path / "pics/private/private0"
    picture(one / "grey.png", "L")
    picture(one / "grey2.png", "L")
    picture(one / "alpha.png", "RGBA")
    picture(one / "print.jpg", "CMYK")
    told = command("train-target", *words, *sets(training__epochs=1))
    card = json.loads((told.last / "data.json").read_text())
    for what, count in (("grey to colour", 2), ("transparency over white", 1), ("CMYK to RGB", 1)):
        assert f"{count} image(s) converted: {what}" in told.err
        assert card["converted"][what] == count
        shown = command("data", "prepare", "folder", *sets(path=tmp_path / "pics", image_size=32)).out
        assert f"{count} image(s): {what}" in shown


def test_data_that_changed_since_training_are_refused(tmp_path: Path) -> None:
    words = pictures(tmp_path / "pics")
    target = command("train-target", *words, *sets(training__epochs=1)).last
    picture(tmp_path / "pics/private/private0/0.png", "L")
    artifacts._opened.clear()
    told = command(
        "invert", "--method", "prior_sample", "--prior", "public", "--dataset", "folder", "--target", target.name
    ).error
    assert "are not those that" in told and target.name in told
    shutil.rmtree(tmp_path / "pics")
    artifacts._opened.clear()
    told = command("invert", "--method", "prior_sample", "--prior", "public", "--target", target.name).error
    assert str(tmp_path / "pics") in told


# --- files that are not what they should be


def test_an_evaluators_file_in_a_targets_place(tmp_path: Path) -> None:
    made = world()
    place = made.one("targets/*", made.copy(tmp_path)) / "model.safetensors"
    shutil.copy(made.one("evaluators/*-ir-*") / "model.safetensors", place)
    told = command(*FLOOR, *SMALL).error
    assert f"{place.relative_to(tmp_path)} should hold a target model" in told
    assert "it is: evaluation model of 4 classes of digiface" in told


def test_a_prior_in_a_targets_place(tmp_path: Path) -> None:
    made = world()
    root = made.copy(tmp_path)
    shutil.copy(made.one("priors/*-kedmi-*") / "prior.safetensors", made.one("targets/*", root) / "model.safetensors")
    assert "should hold a target model; it is: prior" in command(*FLOOR, *SMALL).error


def test_a_prior_in_another_priors_place(tmp_path: Path) -> None:
    made = world()
    root = made.copy(tmp_path)
    place = made.one("priors/*-public-*", root) / "prior.safetensors"
    shutil.copy(made.one("priors/*-kedmi-*") / "prior.safetensors", place)
    told = command(*FLOOR, *SMALL, *sets(images=1)).error
    assert "priors/" in told and "should hold the prior public; it is: kedmi" in told


def test_a_file_of_other_classes_or_shapes(tmp_path: Path) -> None:
    made = world()
    root = made.copy(tmp_path)
    path = made.one("targets/*", root) / "model.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mibench"])
    others = header | {"classes": [f"other {i}" for i in range(4)]}
    save_file(tensors, path, metadata={"mibench": json.dumps(others)})
    told = command(*FLOOR, *SMALL).error
    assert "is a target model of 4 classes of digiface whose names or order are not those" in told
    name = max(tensors, key=lambda key: tensors[key].numel())
    save_file(tensors | {name: torch.zeros(3)}, path, metadata={"mibench": json.dumps(header)})
    told = command(*FLOOR, *SMALL).error
    assert "does not fit the network cnn" in told and name in told


@pytest.mark.parametrize(
    ("file", "cut", "gone"),
    [
        ("targets/*/model", "is not a whole safetensors file", "does not exist"),
        ("evaluators/*-ir-*/features", "was changed or cut short", "is missing"),
        ("priors/*-public-*/prior", "is not a whole safetensors file", "does not exist"),
    ],
)
def test_truncated_files_are_named(tmp_path: Path, file: str, cut: str, gone: str) -> None:
    root = world().copy(tmp_path)
    (path,) = root.glob(f"{file}.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    told = command(*FLOOR, *SMALL, *sets(images=1)).error
    assert f"{path.relative_to(tmp_path)} {cut}" in told
    path.unlink()
    assert f"{path.relative_to(tmp_path)} {gone}" in command(*FLOOR, *SMALL, *sets(images=1)).error


@pytest.mark.parametrize("header", ["[]", "3", '"a"', "{", "{}", '{"role": "target model"}'])
def test_headers_of_strangers(tmp_path: Path, header: str) -> None:
    made = world()
    path = made.one("targets/*", made.copy(tmp_path)) / "model.safetensors"
    save_file(load_file(path), path, metadata={"mibench": header})
    assert str(path.relative_to(tmp_path)) in command(*FLOOR, *SMALL).error


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.witness, "executed")


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_hostile_pickle_is_never_executed(tmp_path: Path, kind: str) -> None:
    made = world()
    path = made.one("targets/*", made.copy(tmp_path)) / "model.safetensors"
    witness = tmp_path / "witness"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Hostile(witness)))
    else:
        torch.save({"weights": Hostile(witness)}, path)
    assert "is not a whole safetensors file" in command(*FLOOR, *SMALL).error
    assert not witness.exists()
    pickle.loads(pickle.dumps(Hostile(witness)))
    assert witness.read_text() == "executed"  # it would have been


# --- training that diverges


def test_a_loss_that_becomes_nan_names_step_and_setting(tmp_path: Path) -> None:
    told = command("train-target", *SMALL, *sets(training__lr=1e30, training__epochs=4, training__batch=4)).error
    assert "train target digiface-cnn-none: the loss became" in told and " at step " in told
    assert "--set training.lr=" in told and "lr 1e+30" in told
    assert not list((tmp_path / "results").rglob("done"))


def test_a_prior_that_diverges_names_step_and_setting(tmp_path: Path) -> None:
    told = command("train-prior", *SMALL, *sets(lr=1e30, steps=3, warm_up=0, width=2, batch=4)).error
    assert "of 3" in told and "--set lr=" in told and "nan" in told
    assert not list((tmp_path / "results").rglob("done"))


# --- disks


def test_a_results_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    assert "cannot write to the results folder results" in command("train-target", *FAST).error
    assert (tmp_path / "results").read_text() == "a file"


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    small = [word.replace("data.", "") for word in SMALL]
    assert "cannot write the picture a/faces.png" in command("data", "show", *small, "--output", "a/faces.png").error


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_a_full_disk_keeps_the_partial_run_and_the_next_try_ends_with_the_same_bytes(
    tmp_path: Path, after: int
) -> None:
    words = ["train-target", "--defense", "re", *SMALL, *sets(training__epochs=3)]
    reference = command(*words, "--results", "undisturbed").last
    with full_disk(after + 1):  # the first write tells the machine
        told = command(*words).error
    assert "No space left on device" in told and "run the same command again" in told
    (partial,) = (tmp_path / "results/targets").glob(".*.partial")
    assert str(partial.relative_to(tmp_path)) in told
    assert (partial / "checkpoint.pt").exists() == (after > 0)
    assert not list(partial.glob("*.tmp")) and not list(partial.glob(".*.tmp"))
    assert results(command(*words).last) == results(reference)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from mibench.cli import main
main()
"""


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (60_000, ["train-target", *SMALL, *sets(training__epochs=2)]),
        (20_000, ["train-prior", "--prior", "public", *SMALL]),
    ],
    ids=["torch.save", "safetensors"],
)
def test_writers_that_have_errors_of_their_own(tmp_path: Path, limit: int, words: list[str]) -> None:
    """A limit on file sizes stops torch's and safetensors' writers just as a full disk does; neither raises OSError."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *words],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("mibench: error: writing ") and line.endswith("run the same command again")


@pytest.mark.parametrize("shape", [(1 << 50,), None], ids=["torch", "python"])
def test_want_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int] | None) -> None:
    def greedy(*given: object) -> None:
        if shape is None:
            raise MemoryError
        torch.ones(shape)

    monkeypatch.setitem(stages._STAGES, "targets", greedy)
    told = command("train-target", *FAST).error
    assert "ran out of memory on cpu" in told and "MIBENCH_WORKERS=1" in told and "targets/" in told

    def broken(*given: object) -> None:
        torch.ones(2) @ torch.ones(3)

    monkeypatch.setitem(stages._STAGES, "targets", broken)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):  # a mistake of ours keeps its traceback
        command("train-target", *FAST)


def test_the_evaluation_models_may_not_share_the_targets_seed_or_family(tmp_path: Path) -> None:
    """Also where the runs did not come from the command line."""
    from mibench.runtime.errors import UserError
    from mibench.stages import score

    target = Run(tmp_path, "targets", "a", {"model": "cnn", "seed": 7})
    inversion = Run(tmp_path, "inversions", "gmi", {}, {"target": target})
    for spec, told in (({"model": "cnn", "seed": 8}, "own family"), ({"model": "ir", "seed": 7}, "share the seed 7")):
        with pytest.raises(UserError, match=told):
            score.plan(tmp_path, inversion, [Run(tmp_path, "evaluators", "b", spec)], "fp32")


def test_of_many_names_an_error_has_the_nearest_and_says_how_to_list_the_rest() -> None:
    many = [f"gmi-{place:012x}" for place in range(500)]
    told = str(unknown("run", "gmi-00000000001f", many, "ls results/*"))
    assert "the nearest of 500: gmi-00000000001f, " in told and told.endswith("all: ls results/*") and len(told) < 160
    assert str(unknown("run", "gmi", many[:3], "ls results/*")).endswith(f"known: {', '.join(many[:3])}")
