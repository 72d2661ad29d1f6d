"""What a run would refuse is refused before any of it is done: by a dry run too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import command, sets
from worlds import tree

from mibench.core import Split
from mibench.data.orl import Orl
from mibench.plugins import registry
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.stages import artifacts, preflight, train_prior, train_target, train_verifier


def people(root: Path, private: int = 2, pictures: int = 2) -> Path:
    return tree(root, {f"p{i}": pictures for i in range(private)}, {f"q{i}": 2 for i in range(3)})


def target_of(root: Path, name: str = "folder", **settings: object) -> Run:
    data = registry.configure("data", name, settings=settings)
    return train_target.plan(root, data, "cnn", [], 0, "fp32")


def test_a_sound_folder_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    root = people(tmp_path / "pictures")
    preflight([target_of(tmp_path / "results", path=str(root), image_size=16)])
    assert not (tmp_path / "results").exists()


def test_images_that_would_be_drawn_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("drawn to plan")

    monkeypatch.setattr(registry.load("data", "digiface"), "load", refused)
    preflight([target_of(tmp_path, "digiface")])


@pytest.mark.parametrize(
    ("private", "pictures", "spoil", "why"),
    [(1, 2, False, "a classifier needs at least 2"), (2, 1, False, "fewer than 2 pictures"), (2, 2, True, "p0")],
    ids=["people", "heldout", "unreadable"],
)
def test_a_dry_run_refuses_a_folder_as_the_run_does(
    private: int, pictures: int, spoil: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = people(tmp_path / "pictures", private, pictures)
    if spoil:
        (root / "private" / "p0" / "000.png").write_bytes(b"no picture at all")
    words = ("train", "--dataset", "folder", *sets(data__path=root, data__image_size=16))
    said = command(*words, "--dry-run").error
    assert why in said and command(*words).error == said
    assert not (tmp_path / "results").exists()


def test_a_dry_run_refuses_images_that_a_prior_cannot_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = people(tmp_path / "pictures")
    words = ("train-prior", "--dataset", "folder", *sets(data__path=root, data__image_size=28))
    said = command(*words, "--dry-run").error
    assert "got 28 x 28: choose such a size with --set data.image_size=32" in said
    assert command(*words).error == said


@pytest.mark.parametrize("name", registry.names("priors"))
def test_every_prior_passes_for_colour_and_for_grey(name: str, tmp_path: Path) -> None:
    quick = "quick" if "quick" in registry.presets("priors", name) else "default"
    prior = registry.configure("priors", name, quick)
    if prior.plugin.imported:
        with pytest.raises(UserError, match="is not learnt but imported: mibench prior import"):
            train_prior.plan(tmp_path, registry.configure("data", "digiface"), prior, None, 0, "fp32")
        return
    for data in ("digiface", "orl"):
        choice = registry.configure("data", data)
        target = target_of(tmp_path, data) if prior.plugin.target_access is not None else None
        train_prior.preflight(train_prior.plan(tmp_path, choice, prior, target, 0, "fp32"))


def test_somebody_without_a_held_out_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Orl().load()
    without = whole.heldout.take(torch.nonzero(whole.heldout.labels != 3)[:, 0])
    monkeypatch.setattr(Orl, "load", lambda self, reporter=None: replace(whole, heldout=without))
    monkeypatch.setattr(artifacts, "_opened", {})
    with pytest.raises(UserError, match=f"1 private identity.* no held-out images, the first is '{whole.classes[3]}'"):
        artifacts.open_dataset({"name": "orl", "settings": {}})
    nobody = Split(without.images[:0], without.labels[:0])
    monkeypatch.setattr(Orl, "load", lambda self, reporter=None: replace(whole, heldout=nobody))
    with pytest.raises(UserError, match="20 private identity"):
        artifacts.open_dataset({"name": "orl", "settings": {}})


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip that torch.save wrote", b"\x80\x04N.", b"", b"[[1, 2]]"])
def test_weights_of_another_format_are_one_line(content: bytes, tmp_path: Path) -> None:
    made = train_verifier.plan(tmp_path, registry.configure("data", "digiface"), "resnet", "fp32")
    assert made is not None
    made.path.mkdir(parents=True)
    (made.path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is not a whole safetensors file") as caught:
        artifacts.load_verifier(made)
    assert "\n" not in str(caught.value)


def test_weights_of_another_role_say_what_they_are(tmp_path: Path) -> None:
    made = train_verifier.plan(tmp_path, registry.configure("data", "digiface"), "resnet", "fp32")
    assert made is not None
    path = made.path / "model.safetensors"
    path.parent.mkdir(parents=True)
    header: dict[str, Any] = {"role": "prior", "dataset": "orl"}
    artifacts.write_tensors(path, {"w": torch.zeros(2)}, header)
    with pytest.raises(UserError, match="should hold a verifier; it is: prior of"):
        artifacts.load_verifier(made)
