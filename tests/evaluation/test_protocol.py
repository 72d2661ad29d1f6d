"""Protocol cards: what changes them, what they group by, and what a report says of tables that are apart."""

# ruff: noqa: F811 (fixtures are imported)

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from reported import HITS, bits, data, finish, noise, root, score, world  # noqa: F401 (fixtures)
from rich.console import Console

from mibench.core import Dataset
from mibench.evaluation import protocol as cards
from mibench.report import frame, load, protocol, terminal, write
from mibench.report.content import Content
from mibench.runs import Run, find
from mibench.stages.score import origin


def made(folder: Path) -> tuple[Run, Run, list[Run]]:
    """The undefended target, its gmi inversion, the evaluation models."""
    target = find(folder, next((folder / "targets").glob("*-none-*")).name)
    judges = [find(folder, next((folder / "evaluators").glob(f"digiface-{name}-*")).name) for name in ("resnet", "ir")]
    inversions = [find(folder, path.name) for path in sorted((folder / "inversions").glob("gmi-*"))]
    return target, next(one for one in inversions if one.parents["target"] == target), judges


def labels(count: int = 4, images: int = 3) -> torch.Tensor:
    return torch.arange(count).repeat_interleave(images)


def card_of(data: Dataset, inversion: Run, judges: list[Run], whom: torch.Tensor) -> dict[str, object]:
    """The card that scoring this inversion would write."""
    models = [{"model": run.spec["model"], "run": run.id, "seed": run.spec["seed"]} for run in judges]
    return cards.card(data, whom, models, [], origin(inversion))


def with_card(folder: Path, run: Run, card: dict[str, object]) -> Run:
    """The same score again, as it is written today."""
    report = run.read("scores.json") | {"card": card, "card_hash": cards.digest(card)}
    table = (run.path / "per_image.csv").read_text()
    run.discard()
    return finish(run, {"scores.json": report, "per_image.csv": table})


def test_the_card_names_every_field_of_the_issue(root: Path, data: Dataset) -> None:
    _, inversion, judges = made(root)
    card = card_of(data, inversion, judges, labels())
    assert card["split"] == {
        "attacked": None,
        "classes": 4,
        "dataset": inversion.target.spec["dataset"],
        "identities": 4,
        "fingerprint": data.fingerprint(),
    }
    assert [one["run"] for one in card["evaluators"]] == [run.id for run in judges]
    assert (card["images"]["height"], card["images"]["crop"]) == (8, "centre square, bicubic")
    assert card["reference"] == {
        "distractor_people": 3,
        "distractors_are_public": False,
        "heldout_images": 8,
        "train_images": 8,
    }
    assert card["selection"]["images_per_identity"] == [3, 3] and card["budget"]["queries_per_identity"] is None
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_whatever_differs_changes_the_hash_and_nothing_else_does(root: Path, data: Dataset) -> None:
    _, inversion, judges = made(root)
    first = cards.digest(card_of(data, inversion, judges, labels()))
    again = cards.digest(card_of(data, inversion, judges, labels().flip(0)))
    assert first == again  # the order of images is no part of it
    spec = dict(inversion.spec)
    others = [
        card_of(data, inversion, judges[::-1], labels()),
        card_of(data, inversion, judges, labels(3)),
        card_of(data, inversion, judges, labels(images=2)),
        card_of(data, inversion, judges, labels()[3:]),
        card_of(data, Run(root, "inversions", "gmi", spec | {"budget": 7}, inversion.parents), judges, labels()),
    ]
    assert len({first, *map(cards.digest, others)}) == 6


def test_imported_images_have_an_unknown_selection(root: Path, data: Dataset) -> None:
    _, inversion, judges = made(root)
    theirs = Run(root, "inversions", "x", dict(inversion.spec), {"target": inversion.target})
    card = card_of(data, theirs, judges, labels())
    assert card["selection"]["by"] == "another program, unknown" and card["budget"]["known"] is False


def test_a_card_does_not_part_what_was_together(root: Path, data: Dataset) -> None:
    """Scores with and without a card, of one protocol, stay in one table; the hash is in the row."""
    before = frame.scores(load.results(root))
    _, inversion, judges = made(root)
    run = find(root, before[before["inversion"] == inversion.id]["score"].iloc[0])
    card = card_of(data, inversion, judges, labels())
    with_card(root, run, card)
    after = frame.scores(load.results(root))
    assert after["protocol"].nunique() == 1 and set(after["protocol"]) == set(before["protocol"])
    told = after.set_index("score")["card"]
    assert told[run.id] == cards.digest(card) and (told.drop(run.id).fillna("") == "").all()
    same = [column for column in before if column != "card"]
    pd.testing.assert_frame_equal(before[same], after[same])
    assert protocol.apart(load.results(root), after["protocol"]) == []


def test_other_people_are_another_protocol_though_as_many(root: Path, data: Dataset) -> None:
    """The mistake it must see: two attacks on two people each, but not on the same two."""
    target, _, judges = made(root)
    first = score(root, "ppa", target, judges, bits("110110"), data, identities=2)
    other = score(root, "gmi", target, judges, bits("110110"), data, identities=2)
    inversion = other.parents["inversion"]
    assert isinstance(inversion, Run)
    assert len({one.protocol for one in load.results(root) if one.score.identities == 2}) == 1
    with_card(root, other, card_of(data, inversion, judges, torch.tensor([2, 2, 3, 3])))
    found = [one for one in load.results(root) if one.score.identities == 2]
    assert len({one.protocol for one in found}) == 2
    order = [one.protocol for one in sorted(found, key=lambda one: one.run.id != first.id)]
    (line,) = protocol.apart(found, order)
    assert "who was attacked (the first ones; here labels 2, 3)" in line


def test_the_report_says_which_field_differs_and_no_other(root: Path, data: Dataset) -> None:
    target, _, judges = made(root)
    score(root, "ppa", target, judges, bits("110"), data, identities=1)
    score(root, "ppa", target, judges[::-1], bits("111111111111"), data)
    found = load.results(root)
    table = frame.scores(found)
    lines = protocol.apart(found, table["protocol"])
    assert len(lines) == 2
    order = list(dict.fromkeys(table["protocol"]))
    assert [line.split()[1] for line in lines] == order[1:]
    people = next(line for line in lines if "identities attacked" in line)
    judged = next(line for line in lines if "evaluation models" in line)
    assert "identities attacked (4 of 4; here 1 of 4)" in people and "evaluation models" not in people
    named = [f"resnet {judges[0].id}, ir {judges[1].id}", f"ir {judges[1].id}, resnet {judges[0].id}"]
    assert all(text in judged for text in named) and "identities attacked" not in judged
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(terminal.render(Content(found), console))
    assert protocol.TITLE in console.file.getvalue()  # type: ignore[attr-defined]
    folder = write(root, Console(file=io.StringIO(), width=120))
    assert all(line in (folder / "tables.md").read_text() for line in lines)
    assert json.loads((folder / "tables.json").read_text())["apart"] == lines


def test_one_protocol_has_nothing_to_explain(root: Path) -> None:
    found = load.results(root)
    assert len(found) == len(HITS) and protocol.apart(found, frame.scores(found)["protocol"]) == []


@pytest.mark.parametrize(("given", "wanted"), [([0, 1, 2], None), ([1, 0], None), ([0, 2], [0, 2]), ([1], [1])])
def test_the_first_so_many_need_no_names(given: list[int], wanted: list[int] | None) -> None:
    assert cards.attacked(torch.tensor(given)) == wanted
