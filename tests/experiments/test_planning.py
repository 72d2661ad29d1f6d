"""From what is typed to runs: several attacks at once, wrapped ones, their floors, and what is refused."""

import json
from pathlib import Path

import pytest
from shell import GAN, SMALL, Outcome, command, sets, world

from mibench.experiments import planning
from mibench.plugins import registry
from mibench.runtime.errors import UserError


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained target of four people."""
    monkeypatch.chdir(tmp_path)
    return world().copy(tmp_path)


def planned(*words: str) -> list[dict[str, object]]:
    told = command(*words, *SMALL, "--dry-run")
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
    chosen = planning.choose_methods("all,ppa+eot", "quick", {})
    cards = registry.cards("attacks")
    assert set(chosen) == {name for name in cards if cards[name]["role"] == "attack"} | {"ppa+eot"}
    assert len(chosen) == len(set(chosen))


def test_a_black_box_attack_is_matched_by_as_many_random_queries(trained: Path) -> None:
    for method, asks in (("cma_es", 160), ("mirror_bb", 2160)):
        floors = {run["name"]: run for run in planned("attack", "--method", method) if run["kind"] == "inversions"}
        matched = floors["random_search"]["spec"]["attack"]["settings"]  # type: ignore[index]
        attack = registry.configure("attacks", method, "quick").plugin
        assert matched["queries"] == asks and matched["images"] == attack.images
    assert "random_search" not in {run["name"] for run in planned("attack", "--method", "ppa")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "brep", "--prior", "kedmi"), "brep is granted label_only access; the prior 'kedmi' learns from"),
        (("--method", "gmi,ppa", "--set", "steps=3"), "--set steps=... is for one attack; --method names 2"),
        (("--method", "gmi,gone"), "unknown attack 'gone'"),
        (("--method", "eot"), "eot wraps another attack: --method ppa+eot"),
        (("--method", "gmi", "--set", "eot.copies=3"), "unknown prefix of --set 'eot'"),
        (("--method", "rlb+eot"), "eot averages gradients and the attack inside asks for none"),
        (("--method", "if_gmi", "--prior", "wgan_gp"), "if_gmi"),
        (("--method", "diff_mi", "--prior", "wgan_gp"), "diff_mi needs a diffusion model as prior"),
        (("--method", "mirror", "--prior", "public"), "mirror scores one pool for all identities"),
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
    assert [planning.prior_preset("wgan_gp", preset) for preset in ("legacy", "quick")] == ["paper", "quick"]
    assert planning.prior_preset("wgan_gp", "paper_celeba") == "paper"
    assert planning.prior_preset("dcgan", "quick") == "default"
    assert "cma_es" in planning.choose_methods("all", "quick", {})
    assert "cma_es" not in planning.choose_methods("all", "paper", {})
    assert planning.choose_methods("all", "paper_celeba", {}) == ["if_gmi", "ppa"]
    with pytest.raises(UserError, match="preset of gmi 'gone'"):
        planning.choose_methods("gmi", "gone", {})
