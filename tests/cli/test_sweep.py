"""Sweeps, suites, backbones and adaptive attackers as users type them."""

import csv
import json
import os
from functools import cache
from pathlib import Path

import pytest
from shell import GAN, JUDGES, SCRATCH, SMALL, Outcome, command, files, results, sets

from mibench.stages import train_backbone

QUICK = "ppa images=1 candidates=1 pool=20 steps=4"
FAST = sets(epochs=1)
"""In a sweep a bare field is the training's."""

SWEEP = [
    "sweep",
    "--full",
    "--defense",
    "none",
    "--defense",
    "re",
    "--strengths",
    "0.2,0.8",
    "--method",
    QUICK,
    "--adaptive",
    "--identities",
    "3",
    *SMALL,
    *JUDGES,
    *FAST,
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@cache
def swept() -> tuple[Path, Outcome]:
    folder = SCRATCH / "sweep"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        return folder, command(*SWEEP)
    finally:
        os.chdir(before)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_trains_attacks_and_shows_the_trade_off() -> None:
    folder, told = swept()
    assert told.code == 0, told.err
    targets = sorted(path.parent.name.rpartition("-")[0] for path in (folder / "results/targets").glob("[!.]*/done"))
    assert targets == ["digiface-cnn-none", "digiface-cnn-re", "digiface-cnn-re"]
    tried = {path.parent.name.rpartition("-")[0] for path in (folder / "results/inversions").glob("[!.]*/done")}
    assert tried == {"ppa", "ppa+align", "ppa+eot", "prior_search", "public_search"}
    for word in ("Privacy against utility", "re a_e=0.2", "re a_e=0.8", "hyper-", "Side effects", "ECE"):
        assert word in told.out


def test_the_report_of_a_sweep(tmp_path: Path) -> None:
    folder, _ = swept()
    told = command("report", str(folder / "results"), "--json")
    whole = json.loads(told.out)
    assert [row["defense"] for row in whole["tradeoff"]] == ["none", "re a_e=0.2", "re a_e=0.8"]
    assert whole["curves"][0]["points"] == 3 and whole["curves"][0]["access"] == "white_box"
    report = folder / "results/report"
    assert (report / "tradeoff.png").is_file()
    line = rows(report / "tradeoff.csv")[1]
    for name in ("natural_accuracy_low", "white_box_difference_high", "pgd_0.0005", "ece", "training_ratio"):
        assert line[name] != "", name


def test_an_adaptive_attacker_asks_no_more() -> None:
    folder, _ = swept()
    asked: dict[str, set[int]] = {}
    for path in (folder / "results/inversions").glob("ppa*/metrics.json"):
        made = json.loads(path.read_text())
        total = made["queries_per_identity"] + made["shared_queries"]
        asked.setdefault(path.parent.name.rpartition("-")[0], set()).add(total)
    assert len(asked["ppa"]) == 1 and max(asked["ppa+align"] | asked["ppa+eot"]) <= min(asked["ppa"])


def test_attack_adaptive_is_the_same(tmp_path: Path) -> None:
    folder, _ = swept()
    before = files(folder / "results/inversions")
    (re,) = [
        path
        for path in (folder / "results/targets").glob("*re-*")
        if json.loads((path / "run.json").read_text())["spec"]["defenses"][0]["settings"]["a_e"] == 0.8
    ]
    told = command(
        "attack",
        "--method",
        "ppa",
        "--adaptive",
        "--target",
        str(re),
        "--results",
        str(folder / "results"),
        "--identities",
        "3",
        "--dry-run",
        "--json",
        *JUDGES,
        *sets(images=1, candidates=1, pool=20, steps=4),
    )
    plan = json.loads(told.out)
    found = {one["name"]: one["done"] for one in plan if one["kind"] == "inversions"}
    assert {name: found[name] for name in ("ppa", "ppa+align", "ppa+eot")} == dict.fromkeys(
        ("ppa", "ppa+align", "ppa+eot"), True
    )
    assert files(folder / "results/inversions") == before


def test_a_suite_is_a_sweep_in_a_file(tmp_path: Path) -> None:
    folder, _ = swept()
    settings = "".join(
        f"[settings.{owner}]\n" + "".join(f"{key} = {value}\n" for key, value in own.items())
        for owner, own in (
            ("data", {word.partition("=")[0][5:]: word.partition("=")[2] for word in SMALL if "=" in word}),
            ("training", {"epochs": 1}),
            ("evaluator", {"epochs": 1}),
        )
    )
    head = [
        "defenses = ['none', 're']",
        "strengths = [0.2, 0.8]",
        f"methods = ['{QUICK}']",
        "adaptive = true",
        "identities = 3",
        "",
    ]
    (tmp_path / "mine.toml").write_text("\n".join(head) + settings)
    plan = json.loads(command("run", "mine.toml", "--results", str(folder / "results"), "--dry-run", "--json").out)
    assert plan and all(one["done"] for one in plan)


def test_suites_are_listed() -> None:
    assert "privacy-utility" in command("list", "suites").out
    found = json.loads(command("list", "suites", "--json").out)
    assert found["defenses"][0]["seeds"] == [0, 1, 2]
    assert "privacy-utility" in command("run", "privacy-utilty").error


def test_a_defense_that_needs_a_public_start_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_backbone, "RECIPE", {"epochs": 1})
    told = command("train-target", "--defense", "tl", *SMALL, *sets(training__epochs=1))
    assert told.code == 0, told.err
    kinds = {path.parent.parent.name for path in Path("results").glob("*/[!.]*/done")}
    assert kinds == {"targets", "backbones"}
    chain = json.loads(command("show", told.last.name, "--json").out)
    assert [one["kind"] for one in chain] == ["targets", "backbones"]
    shown = command("show", told.last.name).out
    assert "each a class of its own" in shown and "tl freeze=" in shown
    # The same start without the defense is another target on the same backbone; zero strength is that target.
    plain = command("train-target", "--pretrained", "public", *SMALL, *sets(training__epochs=1))
    zero = command("train-target", "--defense", "tl", *SMALL, *sets(training__epochs=1, freeze=0))
    weights = [(one.last / "model.safetensors").read_bytes() for one in (plain, zero, told)]
    assert weights[0] == weights[1] != weights[2]
    assert len(list(Path("results/backbones").glob("[!.]*/done"))) == 1


@pytest.mark.parametrize("defense", ["truncate", "rounding", "noise", "dp_sgd", "mid+truncate", "re+loft"])
def test_targets_of_unusual_shape_go_through_every_stage(defense: str) -> None:
    """A served score of exactly 0, a head of its own, another optimiser: trained, measured, inverted, scored."""
    told = command("train", "--defense", defense, *SMALL, *JUDGES, *sets(training__epochs=1))
    metrics = json.loads((told.last / "metrics.json").read_text())
    assert metrics["side_effects"]["served_sum_error"] < 1e-5
    words = [*sets(pool=20), "--method", "prior_search"]
    if defense == "truncate":
        words = [*sets(images=1), *GAN, "--method", "brep"]
    told = command("attack", *words, *SMALL, *JUDGES, "--identities", "2")
    assert told.code == 0, told.err


def test_memories_are_kept_with_the_target_and_come_out_the_same() -> None:
    words = ("train-target", "--defense", "ssd", *SMALL, *sets(training__epochs=1))
    first = results(command(*words).last)
    assert "memories.safetensors" in first and "heldout.safetensors" in first
    again = results(command(*words, "--force").last)
    assert first == again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--defense", "rolss"], "skip"),
        (["--defense", "ls+nls"], "cannot be combined"),
        (["--defense", "bido+dp_sgd"], "cannot be combined"),
        (["--defense", "tl", "--pretrained", "none"], "--pretrained public"),
        (["--pretrained", "mars"], "imagenet"),
        (["--defense", "re", "--set", "a_e=2"], "a_e"),
        (["--defense", "none+re"], "none"),
        (["--defense", "rex"], "re"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(words: list[str], said: str, tmp_path: Path) -> None:
    for verb in ("train", "train-target"):
        assert said in command(verb, *words, *SMALL).error
        assert not list(tmp_path.iterdir())
