"""Suites: what a line stands for, and that adaptive attackers have no larger budget than the attack."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shell import command

from mibench.experiments import suites
from mibench.experiments.experiment import Targets
from mibench.experiments.options import grid
from mibench.experiments.plan import Planner, cost_of, plan
from mibench.plugins import registry
from mibench.runtime.absent import as_published
from mibench.runtime.errors import UserError

DATA = {"data": {"identities": 4, "train_images": 4, "heldout_images": 2, "public_images": 20, "distractors": 4}}


def written(folder: Path, text: str) -> str:
    path = folder / "suite.toml"
    path.write_text(text)
    return str(path)


def targets(folder: Path, **given: Any) -> list[Any]:
    return Planner(grid(**given), folder).targets


def settings_of(run: Any) -> dict[str, Any]:
    return {item["name"]: item["settings"] for item in run.spec["defenses"]}


def test_a_grid_sweeps_the_strength_of_the_card(tmp_path: Path) -> None:
    runs = targets(tmp_path, defenses=("none", "re"))
    values = registry.card("defenses", "re")["grid"]
    assert [settings_of(run).get("re", {}).get("a_e") for run in runs] == [None, *values]


def test_what_is_said_is_not_swept(tmp_path: Path) -> None:
    given = grid(defenses=("re a_e=0.3", "re location=torus"), strengths=("0.2", "0.5"), seeds=(0, 1))
    runs = Planner(given, tmp_path).targets
    found = [(run.spec["seed"], settings_of(run)["re"]["a_e"], settings_of(run)["re"]["location"]) for run in runs]
    each = [(0.3, "uniform"), (0.2, "torus"), (0.5, "torus")]
    assert found == [(seed, *one) for seed in (0, 1) for one in each]


def test_a_stack_sweeps_its_first_defense(tmp_path: Path) -> None:
    runs = targets(tmp_path, defenses=("re+ls",), strengths=("0.2", "0.4"))
    assert [settings_of(run)["re"]["a_e"] for run in runs] == [0.2, 0.4]
    assert len({json.dumps(settings_of(run)["ls"]) for run in runs}) == 1


def test_all_leaves_out_what_the_architecture_cannot_do(tmp_path: Path) -> None:
    def names(**given: Any) -> set[str]:
        runs = targets(tmp_path, defenses=("all",), strengths="default", **given)
        return {run.spec["defenses"][0]["name"] if run.spec["defenses"] else "none" for run in runs}

    everything = set(registry.names("defenses"))
    assert everything - names(model="resnet") <= {"tl"}
    assert everything - names(model="cnn") == {"rolss", "ssf", "tts"}


def test_adaptive_attackers_may_ask_no_more_than_the_attack(tmp_path: Path) -> None:
    experiment = grid(
        defenses=("none", "re a_e=0.4", "nls", "trap alpha=0.05"),
        strengths="default",
        methods=("ppa", "cma_es"),
        adaptive=True,
        identities=2,
        floors=(),
        settings=DATA,
    )
    runs = [run.parents["inversion"] for run in plan(experiment, tmp_path)]
    tried: dict[str, list[str]] = {}
    for run in runs:
        target = run.parents["target"].name
        tried.setdefault(target, []).append(run.name)
        if run.name == "ppa" and run.spec["attack"]["settings"]["objective"] == "max_margin":
            tried[target][-1] += " max_margin"
        assert experiment.dataset is not None
        cost = cost_of(experiment.attackers[0], experiment.dataset)
        most = cost.queries + cost.shared_queries
        changed = "+" in run.name or "max_margin" in tried[target][-1]
        assert run.spec["budget"] == (most if changed else None)
    assert tried["digiface-cnn-none"] == ["ppa+align", "ppa", "cma_es"]
    assert tried["digiface-cnn-re"] == ["ppa+align", "ppa+eot", "ppa", "cma_es"]
    known = [run.spec["attack"]["settings"]["untrap.alpha"] for run in runs if run.name == "ppa+untrap"]
    assert known == [0.05]
    assert tried["digiface-cnn-nls"] == ["ppa+align", "ppa max_margin", "ppa", "cma_es"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seedz = [1]", "seedz"),
        ("seeds = 1", "seeds must be a list"),
        ("defenses = [1]", "defenses must be a list"),
        ("adaptive = 1", "true or false"),
        ("informed = true", "informed is now called adaptive"),
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
        suites.read(written(tmp_path, text))
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
        plan(grid(settings=DATA, **given), tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(suites.suites()))
def test_every_shipped_suite_can_be_planned(name: str, tmp_path: Path) -> None:
    with as_published():
        for one in suites.read(name):
            assert one.title and plan(one, tmp_path)


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
    first, second = suites.read(written(tmp_path, "\n".join(lines)))
    for one, title, model, seeds, training in ((first, "x", "ir", (3,), {}), (second, "x", "cnn", (4,), {"epochs": 2})):
        assert isinstance(one.subject, Targets)
        assert (one.title, one.subject.seeds) == (title, seeds)
        assert {target.model for target in one.subject.each} == {model}
        assert all(target.training == training for target in one.subject.each)
    runs = Planner(second, tmp_path).targets
    assert {run.spec["training"]["epochs"] for run in runs} == {2}


def test_what_is_typed_lies_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "seeds = [0, 2]\nidentities = 9\n[settings.training]\nepochs = 2\nlr = 0.1\n")
    (one,) = suites.read(path, dataset="orl", seed=5, identities=3, sets=["epochs=4", "data.image_size=64"])
    assert isinstance(one.subject, Targets) and one.dataset is not None
    assert (one.subject.seeds, one.seed, one.identities) == ((5, 7), 5, 3)
    assert one.subject.each[0].training == {"epochs": 4, "lr": 0.1}
    assert (one.dataset.name, one.dataset.plugin.image_size) == ("orl", 64)


MILESTONES = st.sampled_from([[0.5, 0.9], [1]])
CELLS = st.fixed_dictionaries(
    {},
    optional={
        "defenses": st.lists(
            st.sampled_from(["none", "re", "re location=torus", "ls", "re+ls", "noise"]), min_size=1, max_size=3
        ),
        "strengths": st.sampled_from(["grid", "default"]) | st.lists(st.sampled_from([0.2, 0.5]), min_size=1),
        "seeds": st.integers(1, 3),
        "methods": st.lists(
            st.sampled_from(["ppa", "ppa steps=3 pool=500", "mirror_bb", "brep images=1"]), min_size=1, max_size=2
        ),
        "adaptive": st.booleans(),
        "preset": st.sampled_from(["quick", "paper"]),
        "model": st.sampled_from(["cnn", "ir"]),
        "identities": st.integers(1, 4),
        "budget": st.integers(1, 10**6),
        "pretrained": st.sampled_from(["none", "public"]),
        "evaluators": st.sampled_from(["vgg16_bn64,resnet"]),
        "settings": st.fixed_dictionaries(
            {"data": st.just(DATA["data"])},
            optional={
                "training": st.fixed_dictionaries(
                    {}, optional={"epochs": st.integers(1, 9), "lr": st.floats(1e-6, 1), "milestones": MILESTONES}
                ),
                "evaluator": st.fixed_dictionaries({}, optional={"batch": st.integers(2, 64)}),
            },
        ),
    },
)


@settings(max_examples=20, deadline=None)
@given(CELLS)
def test_options_and_toml_give_the_same_runs(cells: dict[str, Any]) -> None:
    """The same words on the command line, all of them text, and typed in a file."""
    words = ["sweep", "--dry-run", "--json", "--precision", "fp32"]
    options = {"defenses": "--defense", "methods": "--method"}
    for name, value in cells.items():
        if name == "settings":
            for owner, own in value.items():
                for key, one in own.items():
                    text = ",".join(map(str, one)) if isinstance(one, list) else str(one)
                    words += ["--set", f"{owner}.{key}={text}"]
        elif name in options:
            words += [word for one in value for word in (options[name], one)]
        elif name == "adaptive":
            words += ["--adaptive"] * value
        else:
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    typed = cells | ({"seeds": list(range(cells["seeds"]))} if "seeds" in cells else {})
    tables = typed.pop("settings", {})
    lines = [f"{name} = {json.dumps(value)}" for name, value in typed.items()]
    for owner, own in tables.items():
        lines += [f"[settings.{owner}]", *(f"{key} = {json.dumps(one)}" for key, one in own.items())]
    with TemporaryDirectory() as folder:
        path = written(Path(folder), "\n".join(lines))
        told = [command(*words, "--results", folder), command("run", path, *words[1:5], "--results", folder)]
    assert [one.code for one in told] == [0, 0], [one.err for one in told]
    ids = [[run["id"] for run in json.loads(one.out)] for one in told]
    assert ids[0] == ids[1]


def test_on_other_data_a_prior_of_the_zoo_is_learnt_as_the_suite_has_it() -> None:
    """Its entry was learnt for so long because it is made once; a user's data would wait for it."""
    own, other = ([one.attackers[0].prior for one in suites.read("demo", dataset=name)] for name in (None, "orl"))
    assert [prior.name for prior in other] == [prior.name for prior in own] == ["dcgan", "stylegan2"]
    assert other[1].spec() == registry.configure("priors", "stylegan2", "quick").spec()
    assert own[1].spec() == registry.configure("priors", "stylegan2", "long").spec()
