"""A user's photographs are judged by the recognisers that are on the machine, from the command line to scores.json."""

import dataclasses
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from dlib_file import Small
from portraits import face
from shell import command, sets

from mibench.evaluation import faces

PEOPLE = 20


def photographs(root: Path) -> Path:
    """Twenty private people with four drawn pictures each, three public ones with two."""
    for role, people, count in (("private", PEOPLE, 4), ("public", 3, 2)):
        for person in range(people):
            folder = root / role / f"{role}{person:02d}"
            folder.mkdir(parents=True)
            for number in range(count):
                skin = (224 - 3 * person - (20 if role == "public" else 0), 180, 150)
                face((90 + 4 * number, 94 + number), 56 + 2 * number, skin).save(folder / f"{number}.png")
    return root


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without recognisers; the folder that MIBENCH_WEIGHTS names."""

    def absent(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(faces, "distribution", absent)
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setenv("MIBENCH_WEIGHTS", str(weights))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    return weights


def test_photographs_are_verified_where_a_recogniser_is_and_say_what_is_missing_where_none_is(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sets(data__path=photographs(tmp_path / "pictures"), data__image_size=32, data__heldout=0.5)
    given = ["--dataset", "folder", *data, *sets(evaluator__epochs=1)]
    assert command("train", *given, *sets(training__epochs=1)).code == 0

    def score(*more: str, images: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the score's run was asked for, and what it found."""
        before = set(tmp_path.glob("results/scores/[!.]*"))
        command("attack", *given, *more, "--method", "prior_sample", "--prior", "public", *sets(images=images))
        (made,) = set(tmp_path.glob("results/scores/[!.]*")) - before
        return tuple(json.loads((made / name).read_text()) for name in ("run.json", "scores.json"))  # type: ignore[return-value]

    plain, unasked = score()
    assert "verifiers" not in plain["spec"] and unasked["gate"] == "own_ball@resnet"
    assert not any(one["name"].startswith("verified") for one in unasked["unavailable"])

    asked, nothing = score(*sets(data__faces="true"), images=2)
    assert "verifiers" not in asked["spec"] and nothing["gate"] == "own_ball@resnet"
    assert [one["name"] for one in nothing["unavailable"]][:2] == ["verified@facenet", "verified@dlib"]

    network = Small(size=31)
    (machine / faces.DLIB.names[0]).write_bytes(network.bytes())
    monkeypatch.setattr(faces, "DLIB", dataclasses.replace(faces.DLIB, sha256=""))
    dlib = faces.RECOGNISERS["dlib"]
    small = dataclasses.replace(dlib, framing=dataclasses.replace(dlib.framing, size=31, eyes=(10 + 10j, 21 + 10j)))
    monkeypatch.setitem(faces.RECOGNISERS, "dlib", small)
    spec, found = score(*sets(data__faces="true"))
    assert spec["spec"]["verifiers"] == ["dlib"] and spec["id"] != plain["id"]
    assert spec["parents"] == plain["parents"], "photographs of faces are the same pictures, targets and attacks"
    assert found["gate"] == "verified@dlib" and found["card"]["verifiers"][0]["trained_on"] == dlib.trained_on
    assert found["verifiers"]["dlib"]["facts"]["people"] == 7485
    assert found["verifiers"]["dlib"]["face_found"]["n"] == PEOPLE
