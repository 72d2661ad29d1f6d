"""From an experiment to runs: several attacks at once, wrapped ones, their floors, and what is refused."""

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from shell import GAN, JUDGES, SMALL, Outcome, command, sets, world
from torch import nn
from worlds import World

from mibench import runs
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
    assert reading.prior_preset("wgan_gp", "paper_celeba") == "paper"

    def everybody(preset: str) -> list[str]:
        return [one.attack.name for one in reading.read_attackers("all", preset, {}, None, {})]

    assert "cma_es" in everybody("quick") and "cma_es" not in everybody("paper")  # which is in no paper
    assert everybody("paper_celeba") == ["if_gmi", "ppa"]
    with pytest.raises(UserError, match="preset of gmi 'gone'"):
        reading.read_attackers("gmi", "gone", {}, None, {})


# --- what planning is: arithmetic

DEMO = """
evaluators/digiface-ir-b44fb975461c
evaluators/digiface-resnet-7298a8f163bf
inversions/ppa-11a765c4a9f9
inversions/ppa-354db6c37a8c
inversions/ppa-4a278f19c38c
inversions/ppa-4c27ab4c0aca
inversions/ppa-8954cc6201fe
inversions/ppa-ba94c7eded2d
inversions/prior_search-3cb8c31b4d33
inversions/prior_search-64a8db0d6697
inversions/prior_search-92f7c3405e2e
inversions/prior_search-d1d974d8b565
inversions/prior_search-d6678f507ef2
inversions/prior_search-e2aa82099912
inversions/public_search-349341b84a68
inversions/public_search-676b8982b895
inversions/public_search-b1e6bd1a2a0e
priors/digiface-dcgan-485bd5b8a24c
priors/digiface-public-dec6c2edea8c
priors/digiface-stylegan2-2b4f3a4d2b68
scores/ppa-11fe0101e763
scores/ppa-3ebd54ee5e92
scores/ppa-6e0497609197
scores/ppa-74795ebe29f4
scores/ppa-86593d160c90
scores/ppa-95301af7104d
scores/prior_search-213e994ff5ab
scores/prior_search-2d1e612742ce
scores/prior_search-41baf66261c0
scores/prior_search-49ee87e50ee1
scores/prior_search-8d13339081da
scores/prior_search-a30ac2a7f7f4
scores/public_search-199080699396
scores/public_search-35be5ff53145
scores/public_search-7c45953b659c
targets/digiface-cnn-none-23b9c2f66a4e
targets/digiface-cnn-re-04f5e35c06d7
targets/digiface-cnn-re-c8abd17f6473
verifiers/digiface-ir-e4e365c96cfb
verifiers/digiface-resnet-5ba06109fef4
"""
"""Of `mibench demo --identities 20 --precision fp32`, under protocol 3."""


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
    for preset in ("quick", "paper") if dataset == "digiface" else ("quick",):
        experiment = options.grid(
            dataset=dataset,
            defenses=("all",),
            strengths="default",
            methods=("all",),  # those that have the preset
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


PLAIN = """
from dataclasses import dataclass
import torch
from mibench.core import Attack, Cost, Reconstructions
CARD = {"summary": "one draw, looked at once", "access": "black_box", "prior": "dcgan", "role": "attack"}

@dataclass(frozen=True)
class Plain(Attack):
    seedling: int = 1

    def cost(self, prior, public=0):
        return Cost(1, 0, 0)

    def __call__(self, oracle, prior, labels, seed, work):
        from mibench.runtime.rng import Noise
        z = prior.sample(Noise(seed, labels))
        images = prior.decode(z)
        oracle.probs(images, labels)
        return Reconstructions(images, labels, z, torch.zeros(len(labels), dtype=torch.bool))
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An attack of another package that has no number of images to choose."""
    (tmp_path / "plain_attack.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("plain", "plain_attack", "mibench.attacks")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "mibench.attacks" else [])
    registry._modules.cache_clear()
    yield
    registry._modules.cache_clear()


@pytest.mark.usefixtures("plain")
def test_an_attack_without_a_number_of_images_is_run_and_judged_on_floors_of_their_own_number(trained: Path) -> None:
    told = command("attack", "--method", "plain", "--preset", "default", *SMALL, *JUDGES)
    assert told.code == 0, told.err
    made = [run for run in runs.finished(trained, "inversions") if run.prior and run.prior.name == "digiface-dcgan"]
    inversions = {run.name: run for run in made}
    assert inversions["plain"].read("metrics.json")["images"] == 4
    own = {name: registry.defaults("attacks", name)["images"] for name in ("prior_sample", "prior_search")}
    assert {name: inversions[name].spec["attack"]["settings"]["images"] for name in own} == own
    matched = inversions["random_search"].spec["attack"]["settings"]
    assert (matched["queries"], matched["images"]) == (1, 1)  # where it keeps 5 by default
