"""Two scores or folders: what changed, B minus A everywhere, and no word that a test does not support."""

# ruff: noqa: F811 (fixtures are imported)

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from reported import HITS, bits, data, judge, noise, root, score, target, world  # noqa: F401
from shell import command

from mibench.core import Dataset
from mibench.report import diff, load
from mibench.report.diff import Scores, folders
from mibench.report.pairing import IDENTICAL, Attacked, compare
from mibench.report.result import Result
from mibench.runtime.errors import UserError


@pytest.fixture(scope="module")
def results(world: Path) -> list[Result]:
    return load.results(world)


def of(results: list[Result], attack: str, strength: float | None) -> Result:
    for one in results:
        stack = one.target.spec["defenses"]
        if one.attack == attack and (stack[0]["settings"]["a_e"] if stack else None) == strength:
            return one
    raise AssertionError((attack, strength))


def test_a_run_and_itself_are_identical(results: list[Result]) -> None:
    for one in results:
        pair = Scores(one, one)
        assert pair.apart == "" and pair.changed == [] and pair.same_images
        for quantity in [pair.headline, *pair.judges]:
            assert quantity.words == IDENTICAL and math.isnan(quantity.p)
            assert quantity.difference is not None and quantity.difference.value == 0
            assert math.isnan(quantity.difference.low)
        assert pair.sentence.startswith("Identical")


def test_the_other_way_round_is_the_negative(results: list[Result]) -> None:
    opposite = {"lower": "higher", "higher": "lower"}
    for one in results:
        for other in results:
            there, back = Scores(one, other), Scores(other, one)
            assert [(c.part, c.field, c.a, c.b) for c in there.changed] == [
                (c.part, c.field, c.b, c.a) for c in back.changed
            ]
            for forth, again in zip(there.quantities, back.quantities, strict=True):
                assert (forth.a, forth.b) == (again.b, again.a)
                assert forth.words == opposite.get(again.words, again.words)
                if forth.difference is None or again.difference is None:
                    assert forth.difference is again.difference is None
                    continue
                assert forth.p == pytest.approx(again.p, nan_ok=True)
                turned = (-again.difference.value, -again.difference.high, -again.difference.low)
                assert forth.difference[:3] == pytest.approx(turned, nan_ok=True, abs=1e-12)


def test_differences_are_those_of_the_report(results: list[Result]) -> None:
    defended, undefended = of(results, "ppa", 0.4), of(results, "ppa", None)
    wanted = compare(Attacked.of("ppa", [defended]), Attacked.of("ppa", [undefended]))
    pair = Scores(undefended, defended)
    assert wanted is not None and pair.headline.difference == wanted.interval and pair.headline.p == wanted.p
    hits = [bits(HITS[area, "ppa"]) for area in (0.4, None)]
    assert wanted.interval.value == pytest.approx((sum(hits[0]) - sum(hits[1])) / 12)
    changed = {(one.part, one.field): (one.a, one.b) for one in pair.changed}
    assert changed.pop(("defense", "stack")) == ("none", "re") and changed["defense", "re.a_e"] == (None, 0.4)
    assert {part for part, _ in changed} == {"defense"}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, noise: Dataset) -> Path:
    """Targets of two training seeds; and a score by one evaluation model, which is another protocol."""
    folder = tmp_path_factory.mktemp("crowd")
    judges = [judge(folder, name, noise) for name in ("resnet", "ir")]
    plain = target(folder, [], noise)
    score(folder, "ppa", plain, judges, [1] * 12, noise)
    score(folder, "ppa", target(folder, [], noise, seed=1), judges, [1] * 11 + [0], noise)
    score(folder, "gmi", plain, judges[:1], [0] * 12, noise)
    return folder


def test_words_follow_the_test_and_four_people_support_none(results: list[Result]) -> None:
    pair = Scores(of(results, "ppa", None), of(results, "ppa", 0.8))
    assert pair.headline.difference is not None and pair.headline.difference.value < -0.9
    assert pair.headline.p >= 0.05 and pair.headline.words == "no clear difference"  # 2 ** -3: four signs
    assert "not evidence that they are equal" in pair.sentence


def test_two_training_seeds_are_paired_over_people(crowd: Path) -> None:
    one, other = sorted(
        (one for one in load.results(crowd) if one.attack == "ppa"), key=lambda r: r.target.spec["seed"]
    )
    pair = Scores(one, other)
    assert compare(Attacked.of("ppa", [one]), Attacked.of("ppa", [other])) is None
    assert pair.headline.difference is not None and pair.headline.difference.value == pytest.approx(-1 / 12)
    assert pair.headline.difference.clusters == 4
    assert [(c.part, c.field, c.a, c.b) for c in pair.changed] == [("target", "seed", 0, 1)]


def test_two_protocols_are_not_subtracted_and_the_reason_is_said(crowd: Path) -> None:
    by_attack = {one.attack: one for one in load.results(crowd)}
    pair = Scores(by_attack["ppa"], by_attack["gmi"])
    assert "evaluation models" in pair.apart and pair.sentence.startswith("Not comparable. Protocol ")
    assert all(one.difference is None and one.words == "not tested" for one in pair.quantities)


def test_folders_match_by_specification(world: Path, results: list[Result], root: Path) -> None:
    gone = next((root / "scores").glob("gmi-*"))
    shutil.rmtree(gone)
    both = folders(results, load.results(root))
    assert len(both.matches) == len(results) - 1 and [one.run.path.name for one in both.only_a] == [gone.name]
    assert not both.only_b and all(one.words == IDENTICAL for one in both.quantities)
    assert both.sentence.endswith(f"Images equal byte for byte: {len(both.matches)} of {len(both.matches)}.")
    assert json.loads(json.dumps(both.to_json(), allow_nan=False))["says"] == both.sentence


def test_the_same_specification_with_other_pixels_is_not_identical(
    results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = of(results, "ppa", 0.4)
    images = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr(diff, "_images", lambda run: {"images": next(images), "labels": torch.zeros(1)})
    pair = Scores(one, one)
    assert not pair.same_images and pair.headline.words == "no clear difference" and pair.headline.p == 1


# --- the command


def run(*words: str) -> str:
    told = command("diff", *words)
    assert told.code == 0, told.err
    return told.out


def test_the_command_takes_ids_beginnings_and_paths(world: Path, results: list[Result]) -> None:
    a, b = of(results, "ppa", None), of(results, "ppa", 0.4)
    shown = [
        json.loads(run(*pair, "--results", str(world), "--json"))
        for pair in ((a.run.id, b.run.id[:7]), (str(a.run.path), b.inversion.id))
    ]
    assert shown[0] == shown[1] == json.loads(json.dumps(Scores(a, b).to_json()))
    text = run(a.run.id, b.run.id, "--results", str(world))
    assert "No clear difference" in text and "re.a_e" in text and max(map(len, text.splitlines())) <= 80


def test_mistakes_teach(world: Path, results: list[Result], root: Path, tmp_path: Path) -> None:
    one, other = results[0].run, results[1].run
    empty = tmp_path / "empty"
    empty.mkdir()
    where = ("--results", str(world))
    for words, said in {
        (one.id, one.id, *where): "A and B are both the score",
        (one.id, "zzz", *where): "unknown run 'zzz'",
        (one.id, results[0].target.id, *where): "is no score",
        (str(world), one.id, *where): "give two scores or two results folders",
        (str(world), str(world)): "the same folder",
        (str(world), str(empty)): "no finished scores in",
    }.items():
        told = command("diff", *words)
        assert told.code == 2 and said in told.err and told.out == "", told.err
    damaged = root / "scores" / other.path.name
    (damaged / "per_image.csv").write_text("")
    told = command("diff", one.id, other.id, "--results", str(root))
    assert told.code == 2 and "per_image.csv was changed" in told.err
    told = command("diff", str(world), str(root))
    assert told.code == 0 and "only in A (1)" in told.out and "left out" in told.err
    (damaged / "scores.json").unlink()
    with pytest.raises(UserError, match=r"scores\.json is missing"):
        load.result(damaged)
