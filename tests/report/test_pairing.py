"""Whatever two parts of a report both show agrees to the last digit; what cannot differ by construction says so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibench import models
from mibench.core import Access, Defense, Oracle
from mibench.evaluation.score import Score
from mibench.plugins import registry
from mibench.report import pairing
from mibench.report.content import Content
from mibench.report.pairing import IDENTICAL, Attacked, compare, identical
from mibench.report.result import Result
from mibench.report.tables import rows
from mibench.runs import Run
from mibench.stats.intervals import clustered_interval, proportion
from mibench.stats.pairing import Hits
from mibench.stats.strongest import first_half

ATTACKS = {"ppa": "white_box", "gmi": "white_box", "cma_es": "black_box", "brep": "label_only"}
DEFENSES: Mapping[str, list[tuple[str, Mapping[str, object]]]] = {
    "none": [],
    "re": [("re", {"a_e": 0.4})],
    "truncate": [("truncate", {"k": 1})],
    "temperature": [("temperature", {"temperature": 5.0})],
    "rounding": [("rounding", {"digits": 1})],
    "re+truncate": [("re", {"a_e": 0.4}), ("truncate", {"k": 1})],
}
DATA = {"name": "digiface", "settings": {}}


@dataclass(frozen=True)
class Told(Run):
    """A run whose files are given."""

    files: Mapping[str, Any] = field(default_factory=dict)

    def read(self, file: str) -> dict[str, Any]:
        return dict(self.files[file])


def told(kind: str, name: str, spec: Mapping[str, Any], parents: Mapping[str, Any], files: Mapping[str, Any]) -> Told:
    known = {"run.json": {"provenance": {"seconds": 1.0, "training_cpu_seconds": 2.0}}, "done": {}}
    return Told(Path("results"), kind, name, spec, parents, files=known | files)


def rated(value: float, n: int = 40) -> dict[str, float | None]:
    return proportion(torch.arange(n) < round(value * n), torch.arange(n) % 8).as_json()


def target(defense: str, seed: int, natural: float = 0.8) -> Told:
    stack = [
        {"name": name, "settings": registry.defaults("defenses", name) | dict(own)} for name, own in DEFENSES[defense]
    ]
    spec = {"dataset": DATA, "defenses": stack, "model": "cnn", "seed": seed, "training": {}}
    return told(
        "targets",
        f"digiface-cnn-{defense}",
        spec,
        {},
        {"metrics.json": {"dataset_fingerprint": "f" * 64, "natural_accuracy": rated(natural), "side_effects": {}}},
    )


PRIOR = told(
    "priors",
    "dcgan",
    {"dataset": DATA, "prior": {"name": "dcgan", "settings": {}}, "seed": 0},
    {},
    {"metrics.json": {"target_queries": 0}},
)


def evaluator(name: str) -> Told:
    own = {"natural_accuracy": rated(0.9), "dataset_fingerprint": "f" * 64}
    return told("evaluators", name, {"dataset": DATA, "model": name, "seed": 1000}, {}, {"metrics.json": own})


def result(victim: Told, attack: str, people: torch.Tensor, hits: torch.Tensor, pixels: str | None = None) -> Result:
    """What scoring would have written of these hits."""
    spec = {
        "access": ATTACKS[attack],
        "attack": {"name": attack, "settings": {}},
        "budget": None,
        "identities": len(people.unique()),
        "seed": 0,
    }
    made = {"queries_per_identity": 10.0, "gradient_images_per_identity": 0.0, "shared_queries": 0}
    inversion = told("inversions", attack, spec, {"prior": PRIOR, "target": victim}, {"metrics.json": made})
    own = {key: clustered_interval(hits, people).as_json() for key in ("open_top1", "open_top5", "closed_top1")}
    own |= {key: own["open_top1"] for key in ("closed_top5", "knn_train", "knn_heldout")} | {
        "fid": 1.0,
        "kid": 0.1,
        "kid_error": 0.01,
        "n": 8,
        "n_real": 8,
    }
    own |= {"heldout_accuracy": rated(0.9), "heldout_accuracy_open": rated(0.9), "distractors": 3}
    own |= {"distractors_are_public": False, "knn_real_to_real": 7.25, "calibration": None}
    saved = {
        "n": len(hits),
        "identities": len(people.unique()),
        "classes": 9,
        "likeness": own["open_top1"],
        "likeness_ceiling": own["open_top1"],
        "gate": "own_ball@resnet",
        "verifiers": {},
        "both_verified": None,
        "truth": {},
        "agreement": {},
        "evaluators": {"resnet": own},
        "ceiling": {"resnet": own},
        "chance": {"closed_top1": 1 / 9, "open_top1@resnet": 1 / 12},
        "natural_accuracy": victim.read("metrics.json")["natural_accuracy"],
        "target": {"top1": own["open_top1"], "confidence": own["open_top1"], "passes": 1, "answer_difference": 0.0},
        "perceptual": {},
        "unavailable": [],
        "pixels": pixels or "",
    }
    run = told("scores", attack, {}, {"inversion": inversion, "evaluators": [evaluator("resnet")]}, {})
    made_up = Result(run, Score.from_json(saved))
    seen = Hits(people, hits, torch.full_like(people, int(victim.spec["seed"])))
    vars(made_up)["verdicts"] = dict.fromkeys(("likeness", "open_top1@resnet", "own_ball@resnet"), seen)
    images = {"label": people.numpy(), "likeness": hits.long().numpy()}
    images |= {name: np.full(len(people), 0.5) for name in ("knn_train@resnet", "target_confidence")}
    vars(made_up)["_read"] = (tuple(f"person {who}" for who in people.tolist()), images)
    return made_up


WORLD = {
    "defenses": st.lists(st.sampled_from(list(DEFENSES)[1:]), min_size=1, max_size=3, unique=True),
    "attacks": st.lists(st.sampled_from(list(ATTACKS)), min_size=1, unique=True),
    "seeds": st.integers(1, 2),
    "count": st.integers(2, 7),
    "alike": st.booleans(),
    "dice": st.integers(0, 2**32),
}


def world(defenses: list[str], attacks: list[str], seeds: int, count: int, alike: bool, dice: int) -> list[Result]:
    """Some defenses, attacks and training seeds; hits at random; if not alike, each attack made its own numbers."""
    draw = np.random.default_rng(dice)
    results = []
    for defense, seed in product(["none", *defenses], range(seeds)):
        victim = target(defense, seed, float(draw.choice([0.5, 0.7, 0.75, 0.8])))
        for attack in attacks:
            sizes = torch.from_numpy(np.full(count, 3) if alike else draw.integers(1, 4, count))
            people = torch.arange(count).repeat_interleave(sizes)
            hits = torch.from_numpy(draw.random(len(people)) < draw.choice([0.0, 0.3, 0.7, 1.0]))
            results.append(result(victim, attack, people, hits))
    return results


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


BOUNDS = ("", "_low", "_high")


@given(**WORLD)
@settings(max_examples=20, deadline=None)
def test_two_parts_never_show_two_numbers_of_one_quantity_and_none_without_a_width(**drawn: Any) -> None:
    content = Content(world(**drawn))
    agree(content)
    have_a_width(content)


def agree(content: Content) -> None:
    table = {row["score"]: row for row in rows(content.table) if isinstance(row["score"], str)}
    every = {(row["score_with"], row["score_without"]): row for row in rows(content.differences)}
    differences = {pair: row for pair, row in every.items() if not any("|" in score for score in pair)}
    points = {point.label: point for point in content.points}
    leaks = {(row["defense"], row["attack"]): row for row in rows(content.leaks.targets)}
    tradeoff = {row["defense"]: row for row in rows(content.tradeoff)}
    compared = 0
    for (one, other), row in differences.items():
        assert row["with"] == table[one]["likeness"] and row["without"] == table[other]["likeness"]
        assert row["natural_accuracy_with"] == table[one]["natural_accuracy"]
    for label, point in points.items():
        for access, attacked in point.attacks.items():
            shown = tradeoff[label]
            if len(point.targets) > 1:
                continue
            score = " | ".join(one.run.id for one in attacked.results)
            if len(attacked.results) > 1:  # chosen on either half of the people
                assert " | " in shown[f"{access.key}_attack"]
                continue
            for end in BOUNDS:  # attack accuracy: main table, trade-off
                assert shown[f"{access.key}{end}"] == table[score][f"likeness{end}"]
                assert same(shown[f"natural_accuracy{end}"], table[score][f"natural_accuracy{end}"])
            twin = points["none"].attacks.get(access)
            alone = twin is not None and len(twin.results) == 1 and point.defended
            row = differences.get((score, twin.results[0].run.id)) if twin and alone else None
            if row is not None:  # the difference: its own table, trade-off
                compared += 1
                for end in BOUNDS:
                    assert same(row[f"difference{end}"], shown[f"{access.key}_difference{end}"])
                assert same(row["p"], shown[f"{access.key}_p"])
                assert (row["verdict"] == IDENTICAL) == shown[f"{access.key}_identical"]
    alone = all(len(attacked.results) == 1 for point in points.values() for attacked in point.attacks.values())
    if alone:
        assert compared >= 1
    for (defense, attack), own in leaks.items():  # leakage: main table, one row a person
        for row in table.values():
            if (row["target_label"], row["attack_label"]) == (defense, attack):
                assert all(own[f"rate{end}"] == row[f"likeness{end}"] for end in BOUNDS)
        people = content.leaks.people.query("defense == @defense")
        assert people["hits"].sum() / people["n"].sum() == pytest.approx(own["rate"], abs=1e-15)


def have_a_width(content: Content) -> None:
    seen = 0
    for name, columns in {
        "differences": ["difference"],
        "tradeoff": [*(access.key for access in Access), *(f"{access.key}_difference" for access in Access)],
        "curves": ["at_minus_2", "at_minus_5", "at_minus_10"],
        "inequality": ["rate", "never", "always"],
    }.items():
        for row, column in product(rows(content.frames[name]), columns):
            value, low, high = (row[f"{column}{end}"] for end in BOUNDS)
            if not math.isnan(low):
                seen += 1
                assert low < high and low <= value <= high, (name, column)
    assert seen


# --- the strongest attack, and training seeds -----------------------------------------------------------------------


def rated_hits(rates: torch.Tensor, each: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """People 0, 1, ... with these shares of hits."""
    people = torch.arange(len(rates)).repeat_interleave(each)
    return people, torch.arange(each).repeat(len(rates)) < (rates * each).round().repeat_interleave(each)


def test_a_defense_is_judged_by_an_attack_that_was_chosen_on_other_people() -> None:
    """Either attack finds one half of the people: chosen there, it is counted on the other, which it misses."""
    half = first_half(torch.arange(12))
    one, other = half.double(), (~half).double()
    bare = [result(target("none", 0), attack, *rated_hits(torch.full((12,), 0.75))) for attack in ("ppa", "gmi")]
    defended = [result(target("re", 0), "ppa", *rated_hits(one)), result(target("re", 0), "gmi", *rated_hits(other))]
    content = Content([*bare, *defended])
    table = {(row["defense"], row["attack"]): row for row in rows(content.table) if row["role"] == "attack"}
    assert table["re a_e=0.4", "ppa"]["likeness"] == table["re a_e=0.4", "gmi"]["likeness"] == 0.5
    judged = next(row for row in rows(content.differences) if row["judged_by"])
    assert judged["attack"] == "strongest" and sorted(judged["attack_with"].split(" | ")) == ["gmi", "ppa"]
    assert (judged["with"], judged["without"]) == (0.0, 0.75) and judged["difference"] == -0.75
    assert set(judged["score_with"].split(" | ")) == {one.run.id for one in defended}
    line = next(row for row in rows(content.tradeoff) if row["defense"] == "re a_e=0.4")
    for end in BOUNDS:  # the trade-off and the leakage say the same of the same images
        assert line[f"white_box_difference{end}"] == judged[f"difference{end}"]
        leak = next(row for row in rows(content.leaks.targets) if row["defense"] == "re a_e=0.4")
        assert leak[f"rate{end}"] == line[f"white_box{end}"] == line[f"judged{end}"]
    assert content.leaks.people.query("defense == 're a_e=0.4'")["hits"].sum() == 0
    assert line["judged_by"] == judged["attack_with"] and line["judged_access"] == "white_box"


@pytest.mark.parametrize("turned", [False, True])
def test_an_attack_with_other_settings_is_another_attack(turned: bool) -> None:
    """Neither the name of its preset nor the order of its runs decides which of the two is the strongest."""
    rates = torch.full((12,), 0.25)
    weak, strong = (result(target("none", 0), "ppa", *rated_hits(rates + more)) for more in (0.0, 0.5))
    one, other = (strong, weak) if turned else (weak, strong)
    one, other = one.run.inversion, other.run.inversion
    one.spec["attack"]["settings"], other.spec["attack"]["settings"] = {"steps": 3}, {"steps": 7}
    best = Content([weak, strong]).points[0].strongest
    assert best is not None and best.rate.value == 0.75 and best.attack == f"ppa steps={3 if turned else 7}"


def test_other_judges_see_the_images_that_were_chosen_by_the_headline() -> None:
    half = first_half(torch.arange(12))
    defended = [
        result(target("re", 0), name, *rated_hits(own.double())) for name, own in (("ppa", half), ("gmi", ~half))
    ]
    for one in defended:
        one.verdicts["own_ball@resnet"] = Hits(one.hits.people, ~one.hits.hits, one.hits.seeds)
    best = Attacked.strongest([Attacked.of(one.attack, [one]) for one in defended])
    own = best.judged_by("own_ball@resnet")
    assert best.rate.value == 0 and own is not None and own.rate.value == 1 and len(own.hits.hits) == 48
    assert best.judged_by("verified@gone") is None


@pytest.mark.parametrize("seeds", [1, 2])
def test_tables_that_compare_targets_say_what_their_intervals_speak_of(seeds: int) -> None:
    draw = np.random.default_rng(0)
    results = []
    for defense, seed in product(("none", "re"), range(seeds)):
        hits = torch.from_numpy(draw.random(80) < 0.3 + 0.3 * seed)
        results.append(result(target(defense, seed), "ppa", torch.arange(20).repeat_interleave(4), hits))
    content = Content(results)
    compared = [one for one in content.sections() if one.title.startswith(("What each defense", "Privacy against"))]
    assert len(compared) == 2
    told = [any("These trained networks" in note for note in section.notes) for section in compared]
    assert told == [True, seeds == 1]  # differences are of one seed each
    if seeds == 2:  # seeds .3 apart: the interval over people of these networks would be a quarter as wide
        (line,) = (row for row in rows(content.tradeoff) if row["defense"] == "none")
        whole = Attacked.of("ppa", [one for one in results if one.target.spec["defenses"] == []])
        alone = proportion(whole.hits.hits, whole.hits.people)
        assert line["white_box_high"] - line["white_box_low"] > 2 * (alone.high - alone.low)
        assert any("At least 2 training seeds" in note for note in compared[1].notes)


# --- identical by construction --------------------------------------------------------------------------------------

PEOPLE = torch.arange(5).repeat_interleave(2)
HITS = PEOPLE % 2 == 0


def pair_of(defense: str, attack: str, pixels: str | None = "a", other: str | None = "a") -> tuple[Result, Result]:
    return result(target(defense, 0), attack, PEOPLE, HITS, pixels), result(
        target("none", 0), attack, PEOPLE, HITS, other
    )


@pytest.mark.parametrize(
    ("defense", "attack", "unseen"),
    [
        ("truncate", "brep", True),  # the arg max stays
        ("temperature", "brep", True),
        ("rounding", "brep", False),  # two classes may round to the same score
        ("truncate", "cma_es", False),  # the scores are what it changes
        ("truncate", "ppa", True),  # who holds the weights takes the scores before
        ("rounding", "ppa", True),
        ("re", "brep", False),
        ("re", "ppa", False),
    ],
)
def test_what_an_attacker_cannot_see_makes_no_difference(defense: str, attack: str, unseen: bool) -> None:
    one, other = pair_of(defense, attack)
    assert identical(one, other) is unseen
    content = Content([one, other])
    (row,) = rows(content.differences)
    column = next(column for column in _section(content, "What each defense").columns if column.top == "difference")
    assert (column.cell(row, 1) == IDENTICAL) is unseen and row["difference"] == 0
    assert math.isnan(row["difference_low"]) is math.isnan(row["p"]) is math.isnan(row["p_adjusted"]) is unseen
    key = ATTACKS[attack]
    (line,) = (line for line in rows(content.tradeoff) if line["family"] != "none")
    assert line[f"{key}_identical"] is unseen and math.isnan(line[f"{key}_difference_low"]) is unseen
    note = any("nothing to estimate" in text for text in _section(content, "What each defense").notes)
    assert note is unseen


def _section(content: Content, title: str) -> Any:
    return next(section for section in content.sections() if section.title.startswith(title))


@pytest.mark.parametrize(("one", "other"), [("a", "b"), (None, None), ("a", None)])
def test_other_pixels_or_unknown_ones_are_a_comparison_like_any(one: str | None, other: str | None) -> None:
    a, b = pair_of("truncate", "brep", one, other)
    assert not identical(a, b)
    found = compare(Attacked.of("brep", [a]), Attacked.of("brep", [b]))
    assert found is not None and found.interval.low < 0 < found.interval.high and found.p == 1


def test_a_stack_hides_only_what_each_of_its_defenses_hides() -> None:
    stack, alone, bare = (result(target(name, 0), "brep", PEOPLE, HITS, "a") for name in ("re+truncate", "re", "none"))
    assert identical(stack, alone) and not identical(stack, bare)


def test_one_seed_that_is_not_identical_makes_a_comparison() -> None:
    pairs = [
        (
            result(target("truncate", seed), "brep", PEOPLE, HITS, "a"),
            result(target("none", seed), "brep", PEOPLE, HITS, own),
        )
        for seed, own in ((0, "a"), (1, "b"))
    ]
    ones, others = ([pair[side] for pair in pairs] for side in (0, 1))
    both = compare(Attacked.of("brep", ones), Attacked.of("brep", others))
    first = compare(Attacked.of("brep", ones[:1]), Attacked.of("brep", others[:1]))
    assert both is not None and first is not None and first.identical and not both.identical
    assert both.interval.clusters == 5 and both.interval.n == 20


def test_identical_rows_are_no_tests_and_raise_no_other_p_value() -> None:
    few = PEOPLE == 0
    results = [result(target("none", 0), "brep", PEOPLE, HITS, "a"), result(target("none", 0), "cma_es", PEOPLE, HITS)]
    results += [result(target("truncate", 0), "brep", PEOPLE, HITS, "a")]
    results += [result(target("truncate", 0), "cma_es", PEOPLE, few)]
    content = Content(results)
    known = {row["attack"]: row for row in rows(content.differences)}
    assert known["brep"]["verdict"] == IDENTICAL and known["cma_es"]["p_adjusted"] == known["cma_es"]["p"] < 1
    assert pairing.holm(pd.Series([0.01, math.nan, 0.04])) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)


# --- what cards claim -----------------------------------------------------------------------------------------------

UNSEEN = {name: card["unseen_by"] for name, card in registry.cards("defenses").items() if "unseen_by" in card}


def test_the_cards_that_claim_to_be_unseen() -> None:
    assert set(UNSEEN) == {"truncate", "temperature", "rounding", "noise", "ssd"}
    assert {key for keys in UNSEEN.values() for key in keys} <= {access.key for access in Access}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_card_calls_unseen_is_not_seen(name: str) -> None:
    """Training is as without it, a white-box attacker gets the same features and logits, labels are the same."""
    kind = registry.load("defenses", name)
    trains = ("surgery", "wrap", "epoch", "transform", "batch", "taps", "penalty")
    assert all(getattr(kind, hook) is getattr(Defense, hook) for hook in trains) and kind.sampling == Defense.sampling
    torch.manual_seed(0)
    network = models.build("cnn", 12, (3, 32, 32)).eval()
    x = torch.rand(64, 3, 32, 32)
    strength = registry.card("defenses", name)["strength"]
    for value in registry.card("defenses", name)["grid"]:
        defense = registry.configure("defenses", name, settings={strength: value}).plugin
        memory = defense.memory(12, (3, 32, 32))
        served = defense.deploy(network, torch.nn.Module() if memory is None else memory)
        bare, shaped = Oracle(network, Access.LABEL_ONLY, 12), Oracle(served, Access.LABEL_ONLY, 12)
        if "label_only" in UNSEEN[name]:
            assert torch.equal(bare.labels(x, None), shaped.labels(x, None))
        bare, shaped = Oracle(network, Access.WHITE_BOX, 12), Oracle(served, Access.WHITE_BOX, 12)
        for ask in ("answers", "probs", "labels"):
            pairs = zip(_tuple(getattr(bare, ask)(x, None)), _tuple(getattr(shaped, ask)(x, None)), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def _tuple(answer: Any) -> tuple[torch.Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)
