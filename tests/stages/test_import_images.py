"""Another program's images under our protocol: the same pixels, the same numbers, nothing invented, nothing skipped."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from shell import JUDGES, Outcome, command, results, world

from mibench.report import cite, frames, tables
from mibench.runs import find
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, import_images

PEOPLE = tuple(f"person {i}" for i in range(4))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, and its images as files."""
    monkeypatch.chdir(tmp_path)
    return world().copy(tmp_path)


def saved(root: Path, folder: Path, keep: dict[int, int] | None = None, suffix: str = "png") -> Path:
    """The reconstructions of the world's attack as files, all or the first few of some people."""
    path = next((root / "inversions").glob("kedmi-*")) / "images.safetensors"
    tensors, _ = artifacts.read_tensors(path, "reconstructions")
    for label in range(4):
        own = tensors["images"][tensors["labels"] == label]
        for place, image in enumerate(own[: (keep or {}).get(label, 0 if keep else len(own))]):
            file = folder / PEOPLE[label] / f"{place:02d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return folder


def score(folder: Path, root: Path, *words: str) -> Outcome:
    target = next((root / "targets").glob("[!.]*")).name
    return command("score", "--images", str(folder), "--target", target, *JUDGES, *words)


def test_the_same_pixels_get_the_same_numbers(root: Path, tmp_path: Path) -> None:
    told = score(saved(root, tmp_path / "theirs"), root)
    own = next((root / "scores").glob("kedmi-*"))
    mine, theirs = (json.loads((path / "scores.json").read_text()) for path in (own, told.last))
    for key in ("n", "identities", "target", "evaluators", "ceiling", "agreement", "perceptual", "chance"):
        assert mine[key] == theirs[key], key
    assert (own / "per_image.csv").read_bytes() == (told.last / "per_image.csv").read_bytes()
    assert "theirs" in told.out and "converted" not in told.err


def test_the_same_folder_is_the_same_run_wherever_it_lies(root: Path, tmp_path: Path) -> None:
    folder = saved(root, tmp_path / "theirs")
    first = score(folder, root, "--name", "x").last
    before = results(root / "inversions")
    folder.rename(tmp_path / "elsewhere")
    again = score(tmp_path / "elsewhere", root, "--name", "x")
    assert again.last == first and results(root / "inversions") == before
    file = tmp_path / "elsewhere" / PEOPLE[0] / "00.png"
    with Image.open(file) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    assert score(tmp_path / "elsewhere", root, "--name", "x").last != first
    command("score", "--images", str(tmp_path / "elsewhere"), "--target", "x")  # an unknown target is refused
    inversions = sorted((root / "inversions").glob("x-*"))
    assert len(inversions) == 2 and results(root / "inversions").items() >= before.items()


def test_nothing_is_known_of_how_they_were_made(root: Path, tmp_path: Path) -> None:
    told = score(saved(root, tmp_path / "theirs"), root)
    run = find(root, told.last.name)
    made = run.parents["inversion"].read("metrics.json")  # type: ignore[union-attr]
    assert made["queries_per_identity"] is None and made["gradient_images_per_identity"] is None
    table = frames(root).scores
    row = table[table["score"] == run.id].iloc[0]
    assert (row["attack"], row["access"], row["role"], row["prior"]) == ("theirs", "none", "attack", "")
    assert all(math.isnan(row[key]) for key in ("queries", "shared_queries", "prior_queries", "seconds"))
    assert tables.queries(row) is None
    assert table["protocol"].nunique() == 1  # they stand in the attacks' own table
    report = command("report", "results")
    line = next(
        line
        for line in (report.last / "tables.md").read_text().splitlines()
        if line.startswith("|") and "| theirs" in line
    )
    assert line.replace(" ", "").endswith("||||")
    shown = command("show", run.id)
    assert shown.code == 0 and "another program; queries unknown" in " ".join(shown.out.replace("│", " ").split())
    assert "mibench" in cite.bibtex(run)
    assert command("features", run.id).code == 0


def test_unequal_numbers_and_missing_people(root: Path, tmp_path: Path) -> None:
    """Rates are means over images; who is not attacked takes no part; another set of people is another protocol."""
    told = score(saved(root, tmp_path / "theirs", {1: 1, 3: 2}), root)
    assert "3 images of 2 of 4 identities, 1 to 2 each" in told.err
    report = json.loads((told.last / "scores.json").read_text())
    with (told.last / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["1", "3", "3"] and report["n"] == 3 and report["identities"] == 2
    found = report["evaluators"]["resnet"]["closed_top1"]
    assert found["value"] == sum(int(row["closed_top1@resnet"]) for row in rows) / 3 and found["clusters"] == 2
    card = report["card"]
    assert card["split"]["attacked"] == [1, 3] and card["selection"]["images_per_identity"] == [1, 2]
    assert frames(root).scores["protocol"].nunique() == 2
    told = command("report", "results", "--full")
    assert "who was attacked (the first ones; here labels 1, 3)" in " ".join(told.out.split())
    assert len(list(told.last.glob("grid-*.png"))) == 2


def test_other_sizes_and_formats_are_converted_and_said(root: Path, tmp_path: Path) -> None:
    folder = saved(root, tmp_path / "theirs", {0: 2, 1: 1})
    with Image.open(folder / PEOPLE[0] / "00.png") as image:
        image.resize((48, 40)).save(folder / PEOPLE[0] / "00.png")
    with Image.open(folder / PEOPLE[1] / "00.png") as image:
        image.convert("L").save(folder / PEOPLE[1] / "00.jpg", quality=90)
    (folder / PEOPLE[1] / "00.png").unlink()
    (folder / PEOPLE[1] / ".DS_Store").write_text("litter")
    told = score(folder, root)
    for line in (
        "1 image(s) converted: resized to 32 x 32",
        "1 image(s) converted: cropped to a square",
        "1 image(s) converted: JPEG",
        "1 image(s) converted: grey to colour",
    ):
        assert line in told.err
    inversion = next((root / "inversions").glob("theirs-*"))
    assert set(json.loads((inversion / "metrics.json").read_text())["converted"].values()) == {1}
    names = json.loads((inversion / "files.json").read_text())["files"]
    assert names == ["person 0/00.png", "person 0/01.png", "person 1/00.jpg"]
    tensors, _ = artifacts.read_tensors(inversion / "images.safetensors", "reconstructions")
    assert tensors["images"].shape == (3, 3, 32, 32) and tensors["images"].dtype == torch.uint8


def damage(folder: Path, what: str) -> None:
    one = folder / PEOPLE[0] / "00.png"
    if what == "unknown":
        (folder / PEOPLE[0]).rename(folder / "persom 0")
    elif what == "empty":
        (folder / PEOPLE[2]).mkdir()
    elif what == "loose":
        one.rename(folder / "x.png")
    elif what == "text":
        (folder / PEOPLE[0] / "notes.txt").write_text("x")
    elif what == "broken":
        one.write_bytes(one.read_bytes()[:60])
    elif what == "deep":
        (folder / PEOPLE[0] / "more").mkdir()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("unknown", "1 folder(s) are no identity of targets/digiface-cnn-re"),
        ("empty", "the first is 'person 2'; fill"),
        ("loose", "1 loose file(s), the first is x.png"),
        ("text", "no PNG or JPEG file, the first is"),
        ("broken", "1 of 2 image files cannot be read; the first is"),
        ("deep", "no PNG or JPEG file"),
    ],
)
def test_what_is_no_image_of_a_known_person_is_refused(root: Path, tmp_path: Path, what: str, said: str) -> None:
    folder = saved(root, tmp_path / "theirs", {0: 2})
    damage(folder, what)
    error = score(folder, root).error
    assert said in error and not list((root / "inversions").glob("theirs*"))
    assert what != "unknown" or "did you mean 'person 0'?" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--images", "nowhere", "--target", "TARGET"), "there is no such folder"),
        (("--images", "nowhere"), "name it with --target: one of digiface-cnn-re-"),
        (("--images", "nowhere", "--inversion", "x", "--target", "TARGET"), "exclude each other"),
        (("--target", "TARGET"), "belong to --images"),
        (("--images", "theirs", "--target", "TARGET", "--name", "ppa"), "is an attack of mibench"),
        (("--images", "theirs", "--target", "TARGET", "--name", "../x"), "letters, digits"),
        (("--images", "theirs", "--target", "INVERSION"), "is not a target"),
    ],
)
def test_what_was_meant_is_asked(root: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    saved(root, tmp_path / "theirs", {0: 1})
    names = {
        "TARGET": next((root / "targets").glob("[!.]*")).name,
        "INVERSION": next((root / "inversions").glob("[!.]*")).name,
    }
    assert said in command("score", *(names.get(word, word) for word in words)).error


def test_images_that_change_on_the_way_are_refused(root: Path, tmp_path: Path) -> None:
    folder = saved(root, tmp_path / "theirs", {0: 2})
    run = import_images.plan(root, find(root, next((root / "targets").glob("[!.]*")).name), folder)
    (folder / PEOPLE[0] / "01.png").unlink()
    with pytest.raises(UserError, match="have changed since"):
        import_images.work(run, resolve("cpu", "fp32"), Silent())
    assert not run.done
