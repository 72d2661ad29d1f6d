"""Two scores or folders: what changed, B minus A everywhere, and no word that a test does not support."""

# ruff: noqa: F811 (fixtures are imported)

import html
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from reported import HITS, bits, data, judge, noise, root, score, target, world  # noqa: F401
from shell import command

from mibench.core import Dataset
from mibench.report import diff, diff_words, load
from mibench.report.diff import Scores, folders
from mibench.report.page import compared, pictures
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


def test_people_are_told_by_their_hits_and_the_most_changed_first(results: list[Result]) -> None:
    a, b = of(results, "ppa", None), of(results, "ppa", 0.4)
    hits = [bits(HITS[area, "ppa"]) for area in (None, 0.4)]
    people = Scores(a, b).people
    assert sorted((one.label, one.hits_a, one.hits_b) for one in people) == [
        (label, *(sum(side[3 * label : 3 * label + 3]) for side in hits)) for label in range(4)
    ]
    sizes = [abs(one.difference) for one in people]
    assert sizes == sorted(sizes, reverse=True) and {one.images_a for one in people} == {3}


def test_other_arithmetic_is_told(results: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Scores(of(results, "ppa", None), of(results, "ppa", 0.4))
    assert pair.arithmetic == [] and diff_words.arithmetic(pair) == ""
    monkeypatch.setattr(diff.machines, "between", lambda one, other: ["precision bf16, fp32"])
    unlike = Scores(pair.a, pair.b)
    assert unlike.arithmetic == ["precision bf16, fp32"] and "not computed alike (precision" in diff_words.arithmetic(
        unlike
    )
    assert "1 of 1 matches" in diff.Folders([unlike], [], [], []).arithmetic[0]


# --- the page


def test_the_page_says_what_the_screen_says(world: Path, results: list[Result], data: Dataset) -> None:
    pair = Scores(of(results, "ppa", None), of(results, "ppa", 0.4))
    text = html.unescape(compared.render(pair, (world, world)))
    assert f'<h1 id="h-said">{pair.sentence}</h1>' in text
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    for quantity in pair.quantities:
        assert all(cell in cells for cell in diff_words.numbers(quantity))
    for one in pair.changed:
        assert one.field in cells and diff_words.value(one.b) in cells
    assert len(re.findall("<svg", text)) == 2 and text.count("data:image/") == 4 * 4  # two real rows, A's and B's


def test_a_page_to_hand_on_has_no_photographs_names_or_folders(
    root: Path, results: list[Result], data: Dataset
) -> None:
    pair = Scores(of(results, "ppa", None), of(results, "ppa", 0.4))
    whole, redacted = (compared.render(pair, (root, root), names) for names in (True, False))
    assert "person_" in whole and "private photograph" in whole
    assert "person_" not in redacted and "photograph of" not in redacted and "identity 0" in redacted
    assert redacted.count("data:image/") == 2 * 4 and str(root) not in redacted
    both = folders(results[:2], results[1:], [f"left out {root}/scores/x: gone"])
    assert str(root) in compared.render(both, (root, root)) and str(root) not in compared.render(
        both, (root, root), False
    )


def test_pictures_of_other_people_are_not_put_beside_each_other(
    results: list[Result], data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {"A": results[0], "B": results[1]}
    assert len(pictures.beside(pair).rows) == 4
    prints = iter("ab")
    monkeypatch.setattr(Result, "fingerprint", property(lambda self: next(prints)))
    beside = pictures.beside(pair)
    assert not beside.rows and "the data sets differ" in beside.missing[0]


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
    assert not (world / "report").exists(), "a page is written where it is asked for"
    assert "No clear difference" in text and "re.a_e" in text and max(map(len, text.splitlines())) <= 80


def test_the_command_writes_a_page_and_names_it_last(root: Path, results: list[Result], data: Dataset) -> None:
    a, b = of(results, "ppa", None).run.id, of(results, "ppa", 0.4).run.id
    path = Path(run(a, b, "--results", str(root), "--html").splitlines()[-1])
    assert path == root / "report" / f"diff-{a}-{b}.html" and "person_" in path.read_text(encoding="utf-8")
    run(a, b, "--results", str(root), "--html", "--no-private-images", "--json")
    assert "person_" not in path.read_text(encoding="utf-8")


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
