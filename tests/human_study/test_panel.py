"""The published form: its pictures, its own answers, and what they say of the evaluation models' hits."""

# ruff: noqa: F811 (fixtures are imported)

import csv
import io
import json
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from PIL import Image
from reported import CLASSES, data, noise, root, split, world  # noqa: F401 (fixtures)
from shell import command

from mibench.core import Dataset
from mibench.human_study import exchange
from mibench.human_study.answers import Answers, lines, summary
from mibench.human_study.forms import PAIR, PANEL, Form
from mibench.human_study.questions import Question, ask
from mibench.human_study.server import Server
from mibench.human_study.sheets import panel
from mibench.human_study.verdicts import false_positives, verdicts
from mibench.runs import Run, finished
from mibench.runtime.errors import UserError
from mibench.stages import artifacts
from mibench.stats.intervals import proportion


@pytest.fixture
def inversion(root: Path) -> Run:
    """GMI against the undefended target: seven of twelve hits."""
    own = [run for run in finished(root, "inversions") if run.name == "gmi"]
    return next(run for run in own if not run.target.spec["defenses"])


@pytest.fixture
def photographed(data: Dataset) -> Dataset:
    """The same people with five training images each."""
    return replace(data, train=split(20, [label for label in range(4) for _ in range(5)], 5))


@pytest.fixture
def panels(inversion: Run, photographed: Dataset) -> list[Question]:
    return ask(inversion, photographed, 8, form=PANEL)


def test_both_forms_ask_about_the_same_images(inversion: Run, photographed: Dataset, panels: list[Question]) -> None:
    """The seed chooses the images, not the form; the photographs of a pair are the first of a panel's."""

    def about(questions: list[Question]) -> dict[tuple[str, int, int], Question]:
        return {(one.kind, one.label, one.place): one for one in questions}

    pairs = about(ask(inversion, photographed, 8))
    assert about(panels).keys() == pairs.keys()
    assert Counter(one.kind for one in panels) == {"reconstruction": 8, "same": 2, "other": 2}
    for key, one in about(panels).items():
        assert torch.equal(one.image, pairs[key].image) and one.id != pairs[key].id
        assert len(one.references) == 4 and torch.equal(one.references[:3], pairs[key].references)
        rows = {image.numpy().tobytes() for image in one.references}
        own = photographed.train.images[photographed.train.labels == one.label]
        assert len(rows) == 4 and rows <= {image.numpy().tobytes() for image in own}
        assert one.image.numpy().tobytes() not in rows


def test_a_panels_photographs_are_drawn_from_the_seed(inversion: Run, photographed: Dataset) -> None:
    first, again, other = (ask(inversion, photographed, 12, seed, PANEL) for seed in (0, 0, 1))
    assert all(torch.equal(a.references, b.references) for a, b in zip(first, again, strict=True))
    chosen = [{one.label: one.references for one in questions} for questions in (first, other)]
    assert any(not torch.equal(chosen[0][label], chosen[1][label]) for label in chosen[0])


def test_too_few_photographs_are_refused_in_one_line(root: Path, inversion: Run) -> None:
    told = command("judge", inversion.id, "--form", "panel", "--export", str(root / "x"), "--results", str(root))
    assert told.code == 2 and "shows 4 training images of each person, but person_" in told.error
    assert "has 2;" in told.error and not (root / "x").exists()
    assert "unknown form 'pairs'" in command("judge", inversion.id, "--form", "pairs", "--results", str(root)).error


def test_a_panel_has_the_published_layout(panels: list[Question]) -> None:
    """Ho et al.: 224 px each, 100 px of white behind A, B without gaps, 50 px of captions, 50 px of question in red."""
    colours = torch.tensor([[200, 10, 10], [10, 200, 10], [10, 10, 200], [90, 90, 10], [10, 90, 90]], dtype=torch.uint8)
    flat = [colour[:, None, None].expand(3, 64, 64) for colour in colours]
    sheet = panel(replace(panels[0], image=flat[0], references=torch.stack(flat[1:])))
    assert sheet.size == (1220, 324) and sheet.mode == "RGB"
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(324, 1220, 3).long()
    for left, colour in zip((0, 324, 548, 772, 996), colours, strict=True):
        assert (pixels[:224, left : left + 224] == colour).all()
    assert (pixels[:224, 224:324] == 255).all()

    def box(marks: torch.Tensor) -> tuple[int, int, int, int]:
        rows, columns = marks.any(1).nonzero()[:, 0], marks.any(0).nonzero()[:, 0]
        return int(columns[0]), int(columns[-1]), int(rows[0]), int(rows[-1])

    captions, question = pixels[224:274], pixels[274:]
    dark = (captions < 128).all(2)
    assert (captions.amax(2) == captions.amin(2)).all()  # black on white, greys between
    for words, centre in ((dark[:, :224], 112), (dark[:, 324:], 448)):
        left, right, top, bottom = box(words)
        assert abs((left + right) / 2 - centre) <= 2 and abs((top + bottom) / 2 - 25) <= 5 and bottom - top > 15
    assert not dark[:, 224:324].any()
    red = question[:, :, 1] < 128
    assert (question[:, :, 0] == 255).all() and (question[:, :, 1] == question[:, :, 2]).all()
    left, right, top, bottom = box(red)
    assert abs((left + right) / 2 - 610) <= 2 and abs((top + bottom) / 2 - 25) <= 5 and 600 < right - left < 1200


def test_panels_go_out_blind_and_come_back(panels: list[Question], tmp_path: Path) -> None:
    first, again = (exchange.export(panels, tmp_path / name) for name in "ab")
    asked = [json.loads(line) for line in first.read_text().splitlines()]
    assert first.read_bytes() == again.read_bytes() and [one["id"] for one in asked] == [one.id for one in panels]
    assert not any(word in first.read_text() for word in ("reconstruction", "catch", "held", *CLASSES))
    for one, question in zip(asked, panels, strict=True):
        assert one["answers"] == ["yes", "no"] and "yes or no" in one["question"]
        assert one["image"] == f"panels/{question.id}.png"
        with Image.open(tmp_path / "a" / one["image"]) as sheet:
            assert sheet.tobytes() == panel(question).tobytes() and not sheet.info
    path = tmp_path / "answers.jsonl"
    said = {one.id: ("Yes.", "no")[place % 2] for place, one in enumerate(panels)}
    path.write_text("\n".join(json.dumps({"id": name, "answer": answer}) for name, answer in said.items()))
    found = exchange.read_answers(path, panels)
    assert found == {name: answer.lower().strip(".") for name, answer in said.items()}


def test_answers_of_two_forms_never_mix(
    inversion: Run, photographed: Dataset, panels: list[Question], tmp_path: Path
) -> None:
    pair, of_panel = Answers(inversion), Answers(inversion, PANEL)
    pair.record("me", {"a": "same"})
    of_panel.record("me", {"a": "yes"})
    assert (pair.of("me"), of_panel.of("me")) == ({"a": "same"}, {"a": "yes"})
    with pytest.raises(UserError, match="unknown answer 'same'"):
        of_panel.record("me", {"a": "same"})
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"id": panels[0].id, "answer": "yes"}))
    with pytest.raises(UserError, match="give the --form and --seed of the export"):
        exchange.read_answers(path, ask(inversion, photographed, 8))
    path.write_text(json.dumps({"id": panels[0].id, "answer": "same"}))
    with pytest.raises(UserError, match="the answer must be yes, no; got 'same'"):
        exchange.read_answers(path, panels)
    pair.path.write_bytes(of_panel.path.read_bytes())  # even where nothing in it is answered
    with pytest.raises(UserError, match="in the form pair"):
        pair.read()


def test_answers_of_the_first_release_are_still_read(inversion: Run) -> None:
    store = Answers(inversion)
    store.folder.mkdir(parents=True)
    store.path.write_text(json.dumps({"inversion": inversion.id, "answers": {"me": {"a": "unsure"}}}))
    assert store.of("me") == {"a": "unsure"}


# --- the evaluation models' false positives -------------------------------------------------------------------------


def put(label: int, place: int, form: Form = PANEL) -> Question:
    empty = torch.zeros(3, 2, 2, dtype=torch.uint8)
    return Question(f"{label}-{place}", form, "reconstruction", label, place, empty, empty[None])


def test_false_positives_counted_by_hand() -> None:
    """Six images of three people; hits 1 1 1 0 0 1, the judge says yes no no no yes no: TP 1, FP 3, TN 1, FN 1."""
    questions = [put(0, 0), put(0, 1), put(1, 2), put(1, 3), put(2, 4), put(2, 5)]
    given = dict(zip((one.id for one in questions), ("yes", "no", "no", "no", "yes", "no"), strict=True))
    hits = torch.tensor([1, 1, 1, 0, 0, 1]).bool()
    found = false_positives(list(reversed(questions)), given, hits)
    assert found is not None and [found[key] for key in ("tp", "fp", "tn", "fn", "undecided")] == [1, 3, 1, 1, 0]
    rejected = proportion(torch.tensor([True, True, False, True]), torch.tensor([0, 1, 1, 2]))
    taken = proportion(torch.tensor([False, True, True, True]), torch.tensor([0, 0, 1, 2]))
    assert found["false_positive_rate"]["value"] == 3 / 4 and found["false_discovery_rate"]["value"] == 3 / 4
    assert found["false_positive_rate"] == rejected._asdict() and found["false_discovery_rate"] == taken._asdict()
    assert (rejected.n, rejected.clusters) == (taken.n, taken.clusters) == (4, 3)
    # Two more true negatives: the published rate falls, the share of hits that are rejected stays.
    more = [*questions, put(3, 6), put(3, 7)]
    found = false_positives(more, given | {"3-6": "no", "3-7": "no"}, torch.cat([hits, torch.zeros(2).bool()]))
    assert found is not None
    assert found["false_positive_rate"]["value"] == 3 / 6 and found["false_discovery_rate"]["value"] == 3 / 4


def test_who_cannot_tell_rejects_nothing_and_empty_denominators_have_no_rate() -> None:
    questions = [put(0, 0, PAIR), put(1, 1, PAIR), put(2, 2, PAIR)]
    found = false_positives(questions, {"0-0": "unsure", "1-1": "different"}, torch.tensor([True, False, True]))
    assert found is not None and (found["undecided"], found["tn"], found["fp"]) == (1, 1, 0)
    assert found["false_positive_rate"]["value"] == 0 and found["false_discovery_rate"] is None
    assert false_positives(questions, {"0-0": "unsure"}, torch.tensor([True] * 3)) is None
    assert false_positives(questions, {}, torch.tensor([True] * 3)) is None


def test_verdicts_are_those_of_the_scores(inversion: Run, world: Path) -> None:
    """The fixture's first evaluation model has the written hits, the second denies each."""
    found = verdicts(inversion)
    own = {f"{rule}@{name}" for rule in ("open_top1", "closed_top1") for name in ("resnet", "ir")}
    assert set(found) == own | {"likeness"} and torch.equal(found["likeness"], found["open_top1@resnet"])
    score = next(one for one in finished(inversion.root, "scores") if one.inversion.id == inversion.id)
    with (score.path / "per_image.csv").open(newline="") as file:
        written = torch.tensor([int(row["open_top1@resnet"]) for row in csv.DictReader(file)]).bool()
    assert torch.equal(found["open_top1@resnet"], written) and torch.equal(found["open_top1@ir"], ~written)
    (score.path / "per_image.csv").write_text("label\n0\n")
    with pytest.raises(UserError, match="was changed or cut short"):
        verdicts(inversion)


def test_reconstructions_without_a_score_have_no_false_positives(inversion: Run, panels: list[Question]) -> None:
    shutil.rmtree(inversion.root / "scores")
    assert verdicts(inversion) == {}
    found = summary(panels, {one.id: "yes" for one in panels}, verdicts(inversion))
    assert found["false_positives"] == {} and "FP" not in "\n".join(lines("me", found))


def test_catch_trials_are_no_reconstructions(panels: list[Question], inversion: Run) -> None:
    """A judge who is right about every catch trial and says no of every reconstruction: all hits are false."""
    given = {one.id: "yes" if one.kind == "same" else "no" for one in panels}
    found = summary(panels, given, verdicts(inversion))
    assert found["form"] == "panel" and found["catch_accuracy"]["value"] == 1.0
    assert found["reconstructions"]["called_same"]["value"] == 0.0 and found["reconstructions"]["unsure"] is None
    own = [one for one in panels if one.kind == "reconstruction"]
    hits = int(verdicts(inversion)["open_top1@resnet"][[one.place for one in own]].sum())
    table = found["false_positives"]["open_top1@resnet"]
    assert (table["fp"], table["tn"], table["tp"], table["fn"]) == (hits, 8 - hits, 0, 0) and 0 < hits < 8
    assert table["false_discovery_rate"]["value"] == 1.0 and table["false_positive_rate"]["value"] == hits / 8
    text = "\n".join(lines("vlm", found))
    assert text.startswith("vlm, panel: 12 answered") and "FP/(FP+TN)" in text and "FP/(TP+FP)" in text
    assert f"100.0% [{100 * table['false_discovery_rate']['low']:.0f}, 100] of {hits}" in text


# --- the page and the command ---------------------------------------------------------------------------------------


def test_the_page_shows_the_very_panel_that_a_program_sees(
    inversion: Run, panels: list[Question], tmp_path: Path
) -> None:
    exchange.export(panels, tmp_path)
    with Server(panels, Answers(inversion, PANEL), "me") as server:
        state = server.state()
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            address = f"{server.url}image/{panels[0].id}/"
            with urlopen(f"{address}panel.png", timeout=10) as reply:
                shown = Image.open(io.BytesIO(reply.read()))
            with pytest.raises(HTTPError, match="404") as refused:  # what is in it is not shown on its own
                urlopen(f"{address}x.png", timeout=10)
            refused.value.close()
        finally:
            server.shutdown()
            thread.join()
    assert state["form"] == "panel" and state["question"] == PANEL.question
    with Image.open(tmp_path / f"panels/{panels[0].id}.png") as sheet:
        assert sheet.tobytes() == shown.tobytes()


def test_out_as_panels_and_back(
    root: Path, inversion: Run, photographed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "dataset", lambda run: photographed)
    own = ("--form", "panel", "--results", str(root))
    assert f"mibench judge {inversion.id} --form panel" in command("judge", inversion.id, "--summary", *own).error
    file = command("judge", inversion.id, "--export", str(tmp_path), "--pairs", "8", *own).last
    answers = tmp_path / "answers.jsonl"
    names = [json.loads(line)["id"] for line in file.read_text().splitlines()]
    answers.write_text("\n".join(json.dumps({"id": name, "answer": "No"}) for name in names))
    told = command("judge", inversion.id, "--import", str(answers), "--rater", "vlm", *own)
    assert told.code == 0 and "vlm, panel: 12 answered" in told.out and "open_top1@resnet" in told.out
    found = json.loads(command("judge", inversion.id, "--summary", "--json", *own).out)["vlm"]
    assert found["false_positives"]["open_top1@resnet"]["false_discovery_rate"]["value"] == 1.0
    assert "nobody has judged" in command("judge", inversion.id, "--summary", "--results", str(root)).error
    refused = command("judge", inversion.id, "--import", str(answers), "--results", str(root))
    assert "line 1: no question has the id" in refused.error
