"""What the checks are told of a score: its floors, its rivals, private images among its reconstructions."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from reported import RE, bits, data, judge, noise, root, score, target, verifier, world
from shell import command

from mibench.core import Dataset
from mibench.plugins import registry
from mibench.report import facts as told
from mibench.report.load import results
from mibench.report.naming import data_settings
from mibench.report.result import Result
from mibench.runs import Run

__all__ = ["data", "noise", "root", "world"]


def scores(root: Path) -> dict[tuple[str, str], Result]:
    return {(one.attack, one.target.name): one for one in results(root)}


def of(root: Path, attack: str, defense: str = "none") -> told.Facts:
    known = scores(root)
    return told.facts(known[attack, f"digiface-cnn-{defense}"], list(known.values()))


def test_an_attack_stands_beside_the_best_floor_of_its_own_target(root: Path) -> None:
    gmi, floor = of(root, "gmi"), of(root, "prior_search")
    assert gmi.floor is not None and gmi.floor.name == "prior_search" and gmi.floor.rate.value == 1
    assert gmi.floor.gap.value == pytest.approx(6 / 12 - 1) and gmi.likeness is not None
    assert gmi.likeness.value == pytest.approx(6 / 12)
    assert floor.role == "floor" and floor.floor is None
    assert of(root, "gmi", "re").floor is None  # the floor is of another target


def test_the_gap_is_paired_over_people(tmp_path: Path, noise: Dataset, data: Dataset) -> None:
    judges, victim = [judge(tmp_path, name, noise) for name in ("resnet", "ir")], target(tmp_path, [], noise)
    for attack, hits in (("ppa", "111000111000"), ("prior_search", "111000000000"), ("prior_sample", "000000000000")):
        score(tmp_path, attack, victim, judges, bits(hits), noise)
    ppa = of(tmp_path, "ppa")
    assert ppa.floor is not None and ppa.floor.name == "prior_search"
    assert ppa.floor.gap.value == pytest.approx(1 / 4) and ppa.floor.gap.clusters == 4


def test_random_search_counts_beside_a_quick_preset_where_it_asked_no_more_than_the_attack(
    tmp_path: Path, noise: Dataset, data: Dataset
) -> None:
    judges, victim = [judge(tmp_path, name, noise) for name in ("resnet", "ir")], target(tmp_path, [], noise)
    quick = dict(registry.presets("attacks", "c2f")["quick"])
    score(tmp_path, "c2f", victim, judges, bits("000000000000"), noise, settings=quick)
    score(tmp_path, "gmi", victim, judges, bits("000000000000"), noise)
    score(tmp_path, "prior_search", victim, judges, bits("111111111111"), noise)
    assert of(tmp_path, "c2f").random is None
    asked = score(tmp_path, "random_search", victim, judges, bits("111000000000"), noise, settings={"queries": 1080})
    found = of(tmp_path, "c2f").random
    assert found is not None and found.name == "random_search" and found.gap.value == pytest.approx(-1 / 4)
    assert of(tmp_path, "gmi").random is None  # no check asks
    path = asked.inversion.path / "metrics.json"
    more = json.loads(path.read_text()) | {"shared_queries": 1001}
    path.write_text(json.dumps(more))
    known = [one for one in results(tmp_path) if one.attack != "random_search"]
    assert told.facts(known[0], known).random is None


def test_rivals_are_the_attacks_on_the_same_target(root: Path) -> None:
    assert of(root, "gmi").rivals == 2 and of(root, "gmi").cross_fitted


def test_what_else_the_checks_are_told(tmp_path: Path, noise: Dataset, data: Dataset) -> None:
    judges = [judge(tmp_path, name, noise) for name in ("resnet", "ir")]
    checkers = [verifier(tmp_path, name) for name in ("resnet", "ir")]
    victim = target(tmp_path, [{"name": "re", "settings": RE}], noise)
    score(tmp_path, "ppa", victim, judges, bits("111000111000"), noise, verifiers=checkers)
    ppa = of(tmp_path, "ppa", "re")
    assert (ppa.people, ppa.others, ppa.data, ppa.prior, ppa.prior_draws) == (4, 3, "digiface", "dcgan", "digiface")
    assert {name: share for name, share in ppa.gates} == {
        "verifier resnet": 0.01,
        "verifier ir": 0.01,
        "the threshold of resnet": 0.05,
        "the threshold of ir": 0.05,
    }
    assert ppa.named == (("resnet", 0.475), ("ir", 0.475)) and ppa.fit is None  # an older target


def test_a_private_image_is_one_to_which_every_model_sees_no_distance(
    tmp_path: Path, noise: Dataset, data: Dataset
) -> None:
    judges, victim = [judge(tmp_path, name, noise) for name in ("resnet", "ir")], target(tmp_path, [], noise)
    made = score(tmp_path, "ppa", victim, judges, bits("111000111000"), noise)
    (result,) = results(tmp_path)
    assert told.facts(result).copies == 0
    table = result.per_image
    table.loc[3, ["knn_train@resnet", "knn_heldout@ir"]] = (
        1e-2  # of 7.25; one model by one split, the other by the other
    )
    table.loc[5, "knn_train@resnet"] = 0.0  # to one model alone
    table.to_csv(made.path / "per_image.csv", index=False)
    done, written = made.path / "done", (made.path / "per_image.csv").read_bytes()
    digests = json.loads(done.read_text()) | {"per_image.csv": hashlib.sha256(written).hexdigest()}
    done.write_text(json.dumps(digests))
    assert told.facts(Result(made, result.score)).copies == 1
    assert told.facts(Result(made, replace(result.score, copies=4))).copies == 4  # counted byte by byte


def test_a_folder_is_called_by_its_name_and_not_by_its_content() -> None:
    own = {"content": "d" * 64, "image_size": 32, "heldout": 0.2, "seed": 0, "colour": True, "flip": True}
    given = {key: value for key, value in own.items() if key != "content"} | {"path": "/home/ann/my pictures"}
    run = Run(
        Path("nowhere"),
        "targets",
        "folder-cnn-none",
        {"dataset": {"name": "folder", "settings": own}},
        inputs={"dataset": {"name": "folder", "settings": given}},
    )
    assert data_settings(run) == {"path": "my pictures", "image_size": 32}


def test_checks_list_what_passed_and_the_report_names_each_that_fired(root: Path) -> None:
    said = json.loads(command("checks", str(root), "--json").out)
    fired = {one["check"] for one in said["findings"]}
    assert {"not_above_floor", "few_people", "few_distractors", "strangers_named"} <= fired
    assert "pixels_differ" in said["passed"] and not fired & set(said["passed"])
    text = command("checks", str(root)).out
    assert f"passed ({len(said['passed'])}): " in text
    shown = command("report", str(root)).out
    assert all(shown.count(name) == 1 for name in fired) and f"{len(said['passed'])} of " in shown
