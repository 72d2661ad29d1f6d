"""Sweeps: what a line of a suite stands for, and that informed attackers have no larger budget than the attack."""

import json
from pathlib import Path
from typing import Any

import pytest
from mibench.experiments.sweep import Sweep

from mibench.experiments import planning, sweep
from mibench.plugins import registry
from mibench.runtime.errors import UserError

DATA = {"data": {"identities": 4, "train_images": 4, "heldout_images": 2, "public_images": 20, "distractors": 4}}


def written(folder: Path, text: str) -> str:
    path = folder / "suite.toml"
    path.write_text(text)
    return str(path)


def settings_of(run: Any) -> dict[str, Any]:
    return {item["name"]: item["settings"] for item in run.spec["defenses"]}


def test_a_grid_sweeps_the_strength_of_the_card(tmp_path: Path) -> None:
    runs = sweep.plan_targets(Sweep(defenses=("none", "re")), tmp_path, "fp32")
    grid = registry.card("defenses", "re")["grid"]
    assert [settings_of(run).get("re", {}).get("a_e") for run in runs] == [None, *grid]


def test_what_is_said_is_not_swept(tmp_path: Path) -> None:
    given = Sweep(defenses=("re a_e=0.3", "re location=torus"), strengths=("0.2", "0.5"), seeds=(0, 1))
    runs = sweep.plan_targets(given, tmp_path, "fp32")
    found = [(run.spec["seed"], settings_of(run)["re"]["a_e"], settings_of(run)["re"]["location"]) for run in runs]
    each = [(0.3, "uniform"), (0.2, "torus"), (0.5, "torus")]
    assert found == [(seed, *one) for seed in (0, 1) for one in each]


def test_a_stack_sweeps_its_first_defense(tmp_path: Path) -> None:
    runs = sweep.plan_targets(Sweep(defenses=("re+ls",), strengths=("0.2", "0.4")), tmp_path, "fp32")
    assert [settings_of(run)["re"]["a_e"] for run in runs] == [0.2, 0.4]
    assert len({json.dumps(settings_of(run)["ls"]) for run in runs}) == 1


def test_all_leaves_out_what_the_architecture_cannot_do(tmp_path: Path) -> None:
    def names(**given: Any) -> set[str]:
        runs = sweep.plan_targets(Sweep(defenses=("all",), strengths="default", **given), tmp_path, "fp32")
        return {run.spec["defenses"][0]["name"] if run.spec["defenses"] else "none" for run in runs}

    everything = set(registry.names("defenses"))
    assert everything - names(model="resnet") <= {"tl"}
    assert everything - names(model="cnn") == {"rolss", "ssf", "tts"}


def test_informed_attackers_may_ask_no_more_than_the_attack(tmp_path: Path) -> None:
    given = Sweep(
        defenses=("none", "re a_e=0.4", "nls", "trap alpha=0.05"),
        strengths="default",
        methods=("ppa", "cma_es"),
        informed=True,
        identities=2,
        floors=(),
        settings=DATA,
    )
    runs = [run.parents["inversion"] for run in sweep.plan(given, tmp_path, "fp32")]
    tried: dict[str, list[str]] = {}
    for run in runs:
        target = run.parents["target"].name
        tried.setdefault(target, []).append(run.name)
        if run.name == "ppa" and run.spec["attack"]["settings"]["objective"] == "max_margin":
            tried[target][-1] += " max_margin"
        plain = next(one for one in runs if one.name == "ppa" and one.parents["target"] is run.parents["target"])
        most = planning.queries(plain)
        changed = "+" in run.name or "max_margin" in tried[target][-1]
        assert run.spec["budget"] == (most if changed else None)
    assert tried["digiface-cnn-none"] == ["ppa", "ppa+align", "cma_es"]
    assert tried["digiface-cnn-re"] == ["ppa", "ppa+align", "ppa+eot", "cma_es"]
    known = [run.spec["attack"]["settings"]["untrap.alpha"] for run in runs if run.name == "ppa+untrap"]
    assert known == [0.05]
    assert tried["digiface-cnn-nls"] == ["ppa", "ppa+align", "ppa max_margin", "cma_es"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seedz = [1]", "seedz"),
        ("seeds = 1", "seeds must be a list"),
        ("defenses = [1]", "defenses must be a list"),
        ("informed = 1", "true or false"),
        ("identities = 0", "at least 1"),
        ("model = 3", "must be a text"),
        ("strengths = 'all'", "grid"),
        ("sweep = 3", "[[sweep]]"),
        ("a = ", "not a TOML file"),
        ("settings = 3", "settings are tables"),
        ("defenses = []", "at least one"),
    ],
)
def test_mistakes_in_a_suite_are_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep.read(written(tmp_path, text))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"defenses": ("rex",)}, "re"),
        ({"defenses": ("re a_e",)}, "name and settings"),
        ({"defenses": ("re a_e=2",)}, "a_e"),
        ({"methods": ("ppa steps",)}, "name and settings"),
        ({"methods": ("ppx",)}, "ppa"),
        ({"defenses": ("rolss",)}, "skip"),
        ({"model": "cnm"}, "cnn"),
        ({"defenses": ("ls+nls",)}, "cannot be combined"),
        ({"floors": ("flor",)}, "floor"),
        ({"pretrained": "mars"}, "imagenet"),
    ],
)
def test_mistakes_in_a_sweep_are_told_before_anything_is_trained(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        sweep.plan(Sweep(settings=DATA, **given), tmp_path, "fp32")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(sweep.suites()))
def test_every_shipped_suite_can_be_planned(name: str, tmp_path: Path) -> None:
    for one in sweep.read(name):
        assert one.title and sweep.plan_targets(one, tmp_path, "fp32")


def test_parts_of_a_suite_share_what_is_above_them(tmp_path: Path) -> None:
    lines = [
        "title = 'x'",
        "seeds = [3]",
        "[[sweep]]",
        "model = 'ir'",
        "[[sweep]]",
        "seeds = [4]",
        "[sweep.settings.training]",
        "epochs = 2",
    ]
    first, second = sweep.read(written(tmp_path, "\n".join(lines)))
    assert (first.title, first.model, first.seeds) == ("x", "ir", (3,))
    assert (second.title, second.model, second.seeds) == ("x", "cnn", (4,))
    (run,) = sweep.plan_targets(Sweep(defenses=("none",), settings=second.settings), tmp_path, "fp32")
    assert run.spec["training"]["epochs"] == 2
