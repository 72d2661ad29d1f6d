"""What a plan takes for granted is said: priors of another domain, recipes left alone, verifiers that cannot judge."""

from pathlib import Path

import pytest
from worlds import tree

from mibench.core import Access
from mibench.evaluation import faces
from mibench.experiments import options
from mibench.experiments.experiment import Attacker
from mibench.experiments.plan import plan
from mibench.experiments.reading import read_attackers
from mibench.experiments.remarks import remarks
from mibench.metrics import Unavailable
from mibench.plugins import capabilities, registry
from mibench.runtime.errors import UserError
from mibench.stages import train_verifier

SHIPPED = [name for name, card in registry.cards("priors").items() if card["domain"] not in ("public", "none")]
ATTACKS = registry.attacks("attack")


def preset(name: str) -> str:
    return "quick" if "quick" in registry.presets("attacks", name) else "default"


def attacker(name: str, prior: str | None = None, **settings: object) -> Attacker:
    return read_attackers(name, preset(name), {}, prior, settings)[0]


def test_every_prior_says_what_it_draws() -> None:
    assert SHIPPED == ["dcgan"]
    for name, card in registry.cards("priors").items():
        assert card["domain"] in ("public", "none", *registry.names("data")), name


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_prior_that_draws_the_data(name: str) -> None:
    made = attacker(name)
    assert made.on("digiface").prior == made.prior and made.on("digiface").elsewhere is None
    for data in ("orl", "mnist", "folder"):
        prior = made.on(data).prior
        assert capabilities.in_domain(prior.name, data)
        if made.prior.name in SHIPPED:  # what the attack is granted is not exceeded to learn it
            asks = prior.plugin.target_access
            assert asks is None or asks <= Access.of(registry.card("attacks", name)["access"])
        else:
            assert prior == made.prior


def test_a_prior_that_is_asked_for_by_name_is_taken() -> None:
    assert attacker("ppa", "dcgan").on("folder").prior.name == "dcgan"


def test_settings_go_to_the_prior_that_is_used() -> None:
    made = attacker("ppa", steps="7")
    assert made.on("orl").prior.plugin.steps == 7
    with pytest.raises(UserError, match="unknown setting of dcgan 'steps'"):
        made.on("digiface")
    with pytest.raises(UserError, match="'gone'"):
        attacker("ppa", gone="7")


def told(dataset: str, **given: object) -> list[str]:
    experiment = options.grid(dataset=dataset, defenses=("none",), **given)  # type: ignore[arg-type]
    return remarks([experiment], plan(experiment, Path("nowhere")))


def test_a_prior_that_stands_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "present", lambda: ([], [Unavailable("verified@dlib", "not installed", "run: pip")]))
    (prior, verifier) = told("orl")
    assert prior == (
        "the prior is stylegan2, learnt on the public images of 'orl'; dcgan draws digiface and is used elsewhere only "
        "with --prior dcgan"
    )
    assert verifier.startswith("no verifier judges: verified@dlib: not installed; run: pip; the own-ball gate")
    assert told("digiface") == []
    assert len(told("orl", methods=("gmi",))) == 1  # gmi's own prior learns anyway
    monkeypatch.setattr(faces, "present", lambda: (["dlib"], []))
    assert told("orl", methods=("gmi",)) == []


def test_a_prior_of_another_domain_is_named() -> None:
    line = told("orl", prior="dcgan")[0]
    assert line.startswith("the prior dcgan draws digiface, not what 'orl' shows") and "--prior stylegan2" in line


def test_a_recipe_of_targets_alone_is_said_and_how_to_change_the_others() -> None:
    assert told("digiface", settings={"training": {"epochs": "3"}}) == [
        "training.epochs is of targets alone; evaluation models and verifiers keep their own recipe: change it with "
        "--set evaluator.epochs=... --set verifier.epochs=..."
    ]
    shorter = {"training": {"epochs": "3"}, "evaluator": {"epochs": "3"}}
    (line,) = told("digiface", settings=shorter)
    assert "verifiers keep" in line and "evaluator" not in line
    assert told("digiface", settings={**shorter, "verifier": {"epochs": "3"}}) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, ""),
        ({"bystanders": 19}, "a verifier learns from at least 20 people who play no other part; 'digiface' has 19"),
        ({"identities": 19}, "a verifier judges at least 20 private people; 'digiface' has 19"),
        ({"heldout_images": 1}, "people of 'digiface' have 1: hold at least 2 out"),
    ],
)
def test_data_on_which_no_verifier_can_judge(settings: dict[str, int], why: str) -> None:
    data = registry.configure("data", "digiface", settings=settings)
    missing = train_verifier.missing(data)
    assert why in missing and bool(missing) == bool(why)
    assert (train_verifier.plan(Path("nowhere"), data, "resnet", "fp32") is None) == bool(why)


def test_a_folder_has_no_verifier_and_says_so(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"p{i}": 2 for i in range(3)}, {f"q{i}": 2 for i in range(3)})
    data = registry.configure("data", "folder", settings={"path": str(root)})
    assert train_verifier.missing(data).endswith("'folder' has none")
