"""From an experiment to runs: several attacks at once, wrapped ones, their floors, and what is refused."""

import json
from pathlib import Path

import pytest
from shell import GAN, SMALL, Outcome, command, sets, world
from torch import nn
from worlds import World

from mibench.experiments import options, reading, suites
from mibench.experiments.plan import plan
from mibench.plugins import registry
from mibench.runtime.errors import UserError


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained target of four people."""
    monkeypatch.chdir(tmp_path)
    return world().copy(tmp_path)


def planned(*words: str) -> list[dict[str, object]]:
    told = command(*words, *SMALL, "--dry-run", "--json")
    assert told.code == 0, told.err
    return list(json.loads(told.out))


def inverted(told: Outcome) -> dict[str, float]:
    return dict(json.loads((told.last / "metrics.json").read_text()))


def test_a_wrapped_attack_asks_through_its_views_and_is_cited(trained: Path) -> None:
    told = command("invert", "--method", "gmi+eot", *SMALL, *GAN, *sets(steps=2, images=3, eot__copies=2))
    assert inverted(told)["gradient_images_per_identity"] == 3 * 2 * 2 and told.last.name.startswith("gmi+eot-")
    text = command("cite", told.last.name).out
    for key in ("zhang2020secret", "athalye2018obfuscated", "gulrajani2017improved", "tran2025random"):
        assert key in text
    shown = command("show", told.last.name).out
    assert "gmi+eot" in shown


def test_several_attacks_at_once_share_their_floors(trained: Path) -> None:
    runs = planned("attack", "--method", "gmi,ppa,mirror")
    names = [run["name"] for run in runs if run["kind"] == "inversions"]
    assert sorted(names) == sorted(
        ["gmi", "ppa", "mirror", "public_search", *["prior_sample"] * 2, *["prior_search"] * 2]
    )  # of the priors wgan_gp and dcgan


def test_all_is_every_attack_and_no_floor() -> None:
    chosen = [one.attack.name for one in reading.read_attackers("all,ppa+eot", "quick", {}, None, {})]
    cards = registry.cards("attacks")
    assert set(chosen) == {name for name in cards if cards[name]["role"] == "attack"} | {"ppa+eot"}
    assert len(chosen) == len(set(chosen))


def test_a_black_box_attack_is_matched_by_as_many_random_queries(trained: Path) -> None:
    for method, asks in (("cma_es", 160), ("mirror_bb", 2160)):
        floors = {run["name"]: run for run in planned("attack", "--method", method) if run["kind"] == "inversions"}
        matched = floors["random_search"]["spec"]["attack"]["settings"]  # type: ignore[index]
        attack = registry.configure("attacks", method, "quick").plugin
        assert matched["queries"] == asks and matched["images"] == attack.images
    assert not {"random_search", "label_search"} & {run["name"] for run in planned("attack", "--method", "ppa")}


@pytest.mark.parametrize("method", ["brep", "lokt"])
def test_a_label_only_attack_stands_on_what_labels_alone_give(method: str, trained: Path) -> None:
    """Scores are more than it is granted, so that no floor with scores is its floor; as many labels as it asks for."""
    runs = {run["name"]: run for run in planned("attack", "--method", method) if run["kind"] == "inversions"}
    assert set(runs) == {method, "prior_sample", "label_search"}
    attack = registry.configure("attacks", method, "quick").plugin
    cost = attack.cost(World(3).prior)
    matched = runs["label_search"]["spec"]["attack"]["settings"]  # type: ignore[index]
    assert matched["queries"] == cost.queries + cost.shared_queries and matched["images"] == attack.images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "brep", "--prior", "kedmi"), "brep is granted label_only access; the prior 'kedmi' learns from"),
        (("--method", "gmi,ppa", "--set", "steps=3"), "--set steps=... is for one attack; --method names 2"),
        (("--method", "gmi,gone"), "unknown attack 'gone'"),
        (("--method", "eot"), "eot wraps another attack: --method ATTACK+eot"),
        (("--method", "gmi", "--set", "eot.copies=3"), "unknown prefix of --set 'eot'"),
        (("--method", "rlb+eot"), "the attack inside, rlb, asks for none; wrap one that has: "),
        (("--method", "if_gmi", "--prior", "wgan_gp"), "if_gmi"),
        (("--method", "diff_mi", "--prior", "wgan_gp"), "diff_mi needs a diffusion model as prior"),
        (("--method", "mirror", "--prior", "public"), "mirror needs an unconditional generator"),
        (("--method", "plg", "--prior", "wgan_gp"), "plg needs"),
        (("--method", "gmi", "--budget", "1"), "a budget of 1 queries per identity is too small for one step of gmi"),
        (("--method", "rlb", "--budget", "1"), "a budget of 1 queries per identity is too small for one step of rlb"),
    ],
    ids=lambda value: " ".join(value[1::2]) if isinstance(value, tuple) else "",
)
def test_what_cannot_work_is_one_line(words: tuple[str, ...], message: str, trained: Path) -> None:
    tiny = GAN if {"wgan_gp"} & set(words) or "gmi" in words or "rlb" in words or "rlb+eot" in words else []
    assert message in command("invert", *words, *SMALL, *tiny).error


def test_a_preset_a_prior_does_not_offer_falls_back_to_the_papers() -> None:
    assert [reading.prior_preset("wgan_gp", preset) for preset in ("legacy", "quick")] == ["paper", "quick"]
    assert reading.prior_preset("dcgan", "quick") == "default"
    with pytest.raises(UserError, match="preset of gmi 'gone'"):
        reading.read_attackers("gmi", "gone", {}, None, {})


# --- what planning is: arithmetic

DEMO = """
evaluators/digiface-ir-13878f25
evaluators/digiface-resnet-cac67f23
inversions/gmi-3e624114
inversions/gmi-473c6749
inversions/gmi-9a4a1f24
inversions/ppa-292a7095
inversions/ppa-8f4fd9a8
inversions/ppa-dfa9e856
inversions/prior_sample-0e8b3f16
inversions/prior_sample-4f565f09
inversions/prior_sample-a02412b3
inversions/prior_sample-d80faf72
inversions/prior_sample-dda0a19a
inversions/prior_sample-efd9b8d0
inversions/prior_search-018cedba
inversions/prior_search-076fd320
inversions/prior_search-099d3d4a
inversions/prior_search-3c565845
inversions/prior_search-79603cca
inversions/prior_search-daad58c4
inversions/public_search-a65e7a67
inversions/public_search-bddc617f
inversions/public_search-e56f3ef3
priors/digiface-dcgan-50ee9959
priors/digiface-public-6431a972
priors/digiface-wgan_gp-9d11e0c3
scores/gmi-1fd1941d
scores/gmi-240e9c3d
scores/gmi-ecfad0a4
scores/ppa-438309b1
scores/ppa-9e574e42
scores/ppa-bbf4eaa3
scores/prior_sample-386af852
scores/prior_sample-43cce437
scores/prior_sample-48ee3580
scores/prior_sample-4f4702d6
scores/prior_sample-55789669
scores/prior_sample-85131ae7
scores/prior_search-0531bbc6
scores/prior_search-2f65e55f
scores/prior_search-643a5bb9
scores/prior_search-d14f7780
scores/prior_search-d344e6ee
scores/prior_search-e1f96141
scores/public_search-2207826e
scores/public_search-3886147f
scores/public_search-ebbe1b3d
targets/digiface-cnn-none-2a1a7c6e
targets/digiface-cnn-re-40d876a4
targets/digiface-cnn-re-9ebcc7e9
"""
"""Of `mibench demo --identities 20 --precision fp32`, as they were when commands still planned for themselves."""


def test_the_demo_asks_for_the_runs_it_always_did() -> None:
    told = json.loads(command("demo", "--identities", "20", "--precision", "fp32", "--dry-run", "--json").out)
    assert sorted(f"{run['kind']}/{run['name']}-{run['id']}" for run in told) == DEMO.split()


@pytest.fixture
def no_machinery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be loaded and no network can be built."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("planning opened a data set or built a network")

    monkeypatch.setattr(nn.Module, "__init__", refused)
    for name in registry.names("data"):
        monkeypatch.setattr(registry.load("data", name), "load", refused)


@pytest.mark.usefixtures("no_machinery")
@pytest.mark.parametrize("dataset", ["digiface", "orl", "mnist"])
def test_planning_opens_no_data_and_builds_no_network(dataset: str, tmp_path: Path) -> None:
    every = [name for name, card in registry.cards("attacks").items() if card["role"] == "attack"]
    for preset in ("quick", "paper"):
        experiment = options.grid(
            dataset=dataset,
            defenses=("all",),
            strengths="default",
            methods=every,
            adaptive=True,
            floors=("all",),
            preset=preset,
            identities=3,
        )
        assert len(plan(experiment, tmp_path)) > 1000
    assert plan(options.training(dataset=dataset), tmp_path) and plan(options.prior(dataset=dataset), tmp_path)
    for one in suites.read("demo", dataset=dataset):
        assert plan(one, tmp_path)


def test_a_folder_is_counted_not_read(tmp_path: Path, no_machinery: None) -> None:
    for person in ("private/a", "private/b", "public/c", "public/d", "public/e", "public/f"):
        (tmp_path / person).mkdir(parents=True)
        for number in range(3):
            (tmp_path / person / f"{number}.png").write_bytes(b"no picture at all")
    choice = registry.configure("data", "folder", settings={"path": str(tmp_path)})
    assert choice.shape == (2, (3, 64, 64), 9)  # one of four public people is set aside


def test_a_random_search_asks_what_the_attack_would_ask_at_its_budget(tmp_path: Path) -> None:
    for budget, asks in ((None, 160), (50, 50), (10**6, 160)):
        experiment = options.grid(
            defenses=("none",), methods=("cma_es",), floors=("random_search",), budget=budget, preset="quick"
        )
        inversions = {run.name: run.parents["inversion"] for run in plan(experiment, tmp_path)}
        assert inversions["random_search"].spec["attack"]["settings"]["queries"] == asks  # type: ignore[union-attr]
        assert inversions["cma_es"].spec["budget"] == budget  # type: ignore[union-attr]
