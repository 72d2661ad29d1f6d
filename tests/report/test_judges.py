"""Where judges disagree about a defense: what counts as disagreement, and that the report says it first."""

# ruff: noqa: F811 (fixtures are imported)

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reported import RE, bits, data, judge, noise, score, target, verifier  # noqa: F401 (fixtures)
from rich.console import Console

from mibench.core import Dataset
from mibench.report import captions, files, load, show, terminal
from mibench.report.captions import caption
from mibench.report.content import Content
from mibench.report.judges import MOST, Disagreement, Effect, disagreement, lines, sentence, words
from mibench.report.tables import ABOVE, columns, protocols, rows
from mibench.runs import find
from mibench.stats.intervals import Interval
from mibench.stats.pairing import Hits


def effect(low: float, value: float, high: float, judge: str = "x") -> Effect:
    return Effect(judge, Interval(value, low, high, 200, 100))


DOWN, UP = effect(-0.09, -0.06, -0.01), effect(0.08, 0.16, 0.25)
MAYBE_DOWN, MAYBE_UP, NOTHING = effect(-0.06, -0.02, 0.02), effect(-0.02, 0.02, 0.06), effect(-0.04, 0.0, 0.04)


@pytest.mark.parametrize(
    ("effects", "kind"),
    [
        ([DOWN, UP], Disagreement.SIGN),
        ([DOWN, MAYBE_UP], Disagreement.SIGN),
        ([DOWN, DOWN, MAYBE_DOWN], Disagreement.CLEARNESS),
        ([DOWN, NOTHING], Disagreement.CLEARNESS),
        ([DOWN, DOWN], Disagreement.NONE),
        ([MAYBE_DOWN, MAYBE_UP, NOTHING], Disagreement.NONE),  # nothing is clear to anybody
        ([UP], Disagreement.NONE),
        ([], Disagreement.NONE),
    ],
)
def test_disagreement_case_by_case(effects: list[Effect], kind: Disagreement) -> None:
    assert disagreement(effects) is kind is disagreement(effects[::-1])
    assert bool(sentence("re under ppa", effects)) is (kind is not Disagreement.NONE)


bounded = st.tuples(*[st.floats(-1, 1)] * 3).map(lambda three: effect(*sorted(three)))


@given(st.lists(bounded, max_size=5))
def test_a_mirrored_world_disagrees_alike_and_one_more_judge_never_makes_peace(effects: list[Effect]) -> None:
    mirrored = [effect(-one.interval.high, -one.interval.value, -one.interval.low) for one in effects]
    assert disagreement(mirrored) is disagreement(effects)
    order = list(Disagreement)
    for place in range(len(effects)):
        assert order.index(disagreement(effects[:place])) <= order.index(disagreement(effects))


def test_a_sentence_names_each_judge_with_its_number() -> None:
    sides = [DOWN._replace(judge="open-set resnet"), UP._replace(judge="verifier ir")]
    assert sentence("re a_e=0.4 under gmi", sides) == (
        "re a_e=0.4 under gmi: the judges disagree about the sign; less leaks by open-set resnet -6.0 [-9.0,-1.0]; "
        "more by verifier ir +16.0 [+8.0,+25.0] points"
    )
    soft = [DOWN._replace(judge="a"), NOTHING._replace(judge="b")]
    assert sentence("x under y", soft) == "x under y: clear by a -6.0 [-9.0,-1.0], not by b +0.0 [-4.0,+4.0] points"
    assert [words(name) for name in ("open_top1@resnet", "own_ball@resnet", "verified@ir")] == [
        "open-set resnet",
        "own-ball resnet",
        "verifier ir",
    ]


# --- in the report: ten people, two verifiers, the second of which sees the opposite ----------------------------------

NONE, LESS = "110" * 4, "000" * 4


@pytest.fixture
def results(tmp_path: Path, data: Dataset) -> Path:
    judges = [judge(tmp_path, name, data) for name in ("resnet", "ir")]
    matchers = [verifier(tmp_path, name) for name in ("resnet", "ir")]
    bare, defended = target(tmp_path, [], data), target(tmp_path, [{"name": "re", "settings": RE}], data)
    for victim, hits, verified in ((bare, NONE, LESS), (defended, LESS, "111" * 4)):
        score(tmp_path, "ppa", victim, judges, bits(hits), data, verifiers=matchers, verified=bits(verified))
    return tmp_path


def test_the_first_line_says_that_judges_disagree(results: Path, tmp_path: Path) -> None:
    found = load.results(results)
    for one in found:  # the same verdicts on six times as many people: four cannot make anything clear
        people = torch.cat([one.hits.people + 4 * place for place in range(6)])
        vars(one)["verdicts"] = {name: Hits(people, own.hits.repeat(6)) for name, own in one.verdicts.items()}
        del vars(one)["hits"]
    content = Content(found)
    table = {row["judge"]: row for row in rows(content.judges)}
    assert list(table) == ["open_top1@resnet", "own_ball@resnet", "verified@resnet", "verified@ir"]
    (headline,) = rows(content.differences)
    for name in list(table)[:3]:  # these say what the headline says
        assert table[name]["difference"] == headline["difference"] == pytest.approx(-2 / 3)
        assert table[name]["difference_low"] == headline["difference_low"]
    assert table["verified@ir"]["difference"] == 1
    assert {row["judges"] for row in table.values()} == {Disagreement.SIGN.words}
    (line,) = content.disagreements
    assert line.startswith(
        "Judges disagree: re a_e=0.4 under ppa: the judges disagree about the sign; less leaks by ope"
    )
    console = Console(file=io.StringIO(), width=400, color_system=None)
    console.print(terminal.render(content, console))
    assert console.file.getvalue().startswith(f"! {line}\n")  # type: ignore[attr-defined]
    files.write(tmp_path, content, [])
    assert (tmp_path / "tables.md").read_text().startswith("**Judges disagree: re a")
    assert json.loads((tmp_path / "tables.json").read_text())["disagreements"] == [line]
    assert Content(load.results(results)).disagreements == []


def test_the_report_says_who_the_judges_are(results: Path) -> None:
    content = Content(load.results(results))
    group = next(protocols(content.table))
    told = "\n".join(caption(group))
    assert "resnet names the person (open-set) and the verifier resnet" in told and "(FAR 1%)" in told
    assert "resnet 47.5 of 40, ir 47.5 of 40" in told
    assert "resnet trained on 300 other people, AUC 0.987, accepts 90.0% of real held-out images" in told
    assert "These trained networks" in told and ABOVE not in told
    headers = [column.header for column in columns(group)]
    assert headers[:4] == ["defense", "natural accuracy", "attack", "likeness"]
    assert {"verified resnet 1%", "verified ir 1%", "both verifiers", "verified ir .1%"} <= set(headers)
    assert not [name for name in content.table if name.partition("@")[0] in ("kappa", "calibrated", "times_real")]


def test_images_that_beat_photographs_are_marked_and_explained(tmp_path: Path, data: Dataset) -> None:
    judges = [judge(tmp_path, name, data) for name in ("resnet", "ir")]
    score(tmp_path, "ppa", target(tmp_path, [], data), judges, bits("1" * 12), data)
    group = next(protocols(Content(load.results(tmp_path)).table))
    (note,) = [line for line in caption(group) if line.startswith(ABOVE)]
    assert "(ppa)" in note and "prototypical" in note and "latents" not in note
    column = next(column for column in columns(group) if column.header == "likeness")
    cells = {row["attack"]: column.cell(row, 0) for row in rows(group)}
    assert cells["ppa"].startswith(f"100{ABOVE} [") and ABOVE not in cells["real held-out"] and cells["chance"] == ""
    group["latent_rank1"] = 0.32
    assert any("ground truth, know better: rank-1 32.0% of ppa's" in line for line in caption(group))
    assert any("there is no verifier, which takes 20 people" in line for line in caption(group))


def test_many_disagreements_are_counted() -> None:
    def line(defense: str, judge: str, value: float) -> dict[str, object]:
        bounds = {"difference": value, "difference_low": value - 0.01, "difference_high": value + 0.01}
        return {"protocol": "p", "defense": defense, "attack": "ppa", "judge": judge, "n": 9, "identities": 3} | bounds

    table = pd.DataFrame(
        [line(f"d{place}", name, sign / 2) for place in range(MOST + 2) for name, sign in (("a", 1), ("b", -1))]
    )
    told = lines(table)
    assert len(told) == MOST + 1 and told[-1] == "Judges disagree about the sign of 2 more effects: judges.csv."
    soft = pd.DataFrame([line("d", "a", 0.5), line("d", "b", 0.005)])
    assert lines(soft) == ["Clear to some judges only: d under ppa (judges.csv)."] and lines(pd.DataFrame()) == []


def test_show_names_the_verifiers_and_who_taught_them(results: Path) -> None:
    run = find(results, next((results / "scores").glob("[!.]*")).name)
    console = Console(width=400, file=io.StringIO(), color_system=None)
    console.print(show.chain(run))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "gate verified@resnet; real held-out images 91.7" in text and "at FAR .1%" in text
    assert text.count("verifier digiface-") == 2 and "taught by 300 people who play no other part" in text


def test_the_caption_counts_the_images_in_which_a_face_was_found() -> None:
    group = pd.DataFrame({"role": ["attack", "floor", "ceiling"], "face_found@dlib": [0.25, 0.5, 1.0]})
    assert captions._unseen(group, "dlib").startswith(", finds a face in 25.0 to 50.0% of the reconstructions")
    assert "in 50.0% of" in captions._unseen(group[1:], "dlib")
    assert captions._unseen(group, "ir") == "", "a verifier that was trained here aligns nothing"
