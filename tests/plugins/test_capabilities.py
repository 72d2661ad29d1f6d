"""What cards declare is what is built; whoever is registered is named in a refusal, and nobody else."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from mibench.core import Capabilities, Split
from mibench.core.capabilities import CAPABILITIES
from mibench.models import build
from mibench.plugins import capabilities, registry
from mibench.runtime.errors import UserError
from mibench.stages import train_target

ARCHITECTURES = [name for card in registry.cards("models").values() for name in card["architectures"]]
PRIORS = registry.names("priors")
SMALL = {
    "wgan_gp": {"width": 4},
    "kedmi": {"width": 4},
    "plg": {"width": 4},
    "tacgan": {"width": 4},
    "stylegan2": {"width": 4, "most": 8, "style_dim": 8, "latent_dim": 8, "layers": 2},
    "ddpm": {"width": 8, "multipliers": "1,1", "blocks": 1, "heads": 1},
    "flow": {"width": 8, "multipliers": "1,1", "blocks": 1, "heads": 1},
}


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", PRIORS)
def test_a_card_declares_what_the_prior_offers(name: str, side: int) -> None:
    trainer = registry.configure("priors", name, settings=SMALL.get(name, {})).plugin
    shape = (3, side, side)
    public = Split(torch.zeros(4, *shape, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    built = trainer.build(shape, 3, public)
    declared = capabilities.declared(name, trainer.blocks_of(shape))
    assert declared.offers() == built.offers() and declared.critic_kind == built.critic_kind
    assert declared.blocks == built.blocks and declared.spaces == built.spaces
    assert (capabilities.declared(name).blocks > 0) == (built.blocks > 0)


@pytest.mark.parametrize("name", ["digiface", "folder", "mnist", "orl"])  # the others: tests/data/test_published.py
def test_a_source_counts_what_it_loads(name: str, tmp_path: Path) -> None:
    settings: dict[str, object] = {}
    if name == "digiface":
        settings = {"identities": 3, "public_images": 7, "distractors": 2, "train_images": 2, "image_size": 16}
    if name == "folder":
        from PIL import Image

        every = ((side, who, n) for side in ("private", "public") for who in range(4) for n in range(3))
        for number, (side, who, n) in enumerate(every):
            path = tmp_path / side / f"{side}{who}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number * 9, number, 0)).save(path)
        settings = {"path": str(tmp_path), "image_size": 16}
    source = registry.configure("data", name, settings=settings).plugin
    data = source.load()
    assert source.shape() == (len(data.classes), data.image_shape, len(data.public))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("defense", registry.names("defenses"))
def test_cards_tell_what_surgery_would_find(defense: str, architecture: str, tmp_path: Path) -> None:
    choice, data = registry.configure("defenses", defense), registry.configure("data", "digiface")
    try:
        run = train_target.plan(tmp_path, data, architecture, [choice], 0, "fp32", pretrained="public")
    except UserError as error:
        assert "choose with --model one that has: " in str(error)
        assert architecture not in str(error).partition(" one that has: ")[2].split(", ")
        with torch.device("meta"), pytest.raises(UserError):
            choice.plugin.surgery(build(architecture, 10, (3, 64, 64)))
    else:
        train_target.preflight(run)


@pytest.mark.parametrize("word", CAPABILITIES)
def test_every_word_is_offered_by_someone_and_asked_for_by_someone_or_told(word: str) -> None:
    assert capabilities.offering("priors", word)
    cards = registry.cards("attacks").values()
    assert any(word in card.get("requires", ()) for card in cards)


def test_attacks_require_words_that_exist() -> None:
    for name, card in registry.cards("attacks").items():
        assert set(card.get("requires", ())) <= CAPABILITIES.keys(), name


@pytest.mark.parametrize("name", registry.attacks("attack") + registry.attacks("floor"))
def test_an_attacks_own_prior_has_what_it_requires(name: str) -> None:
    plugin = registry.configure("attacks", name).plugin
    capabilities.require(plugin, capabilities.declared(registry.card("attacks", name)["prior"]))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", registry.attacks("attack"))
def test_a_refusal_names_exactly_those_who_would_do(name: str, prior: str) -> None:
    plugin = registry.configure("attacks", name).plugin
    try:
        capabilities.require(plugin, capabilities.declared(prior))
    except UserError as error:
        said, _, offered = str(error).partition("; choose with --prior one that has: ")
        assert said.startswith(f"{name} needs ") or "space" in said
        named = set(offered.split(", "))
        assert prior not in named and registry.card("attacks", name)["prior"] in named and "\n" not in said


def test_priors_of_other_packages_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_prior.py").write_text("CARD = {'summary': 'theirs', 'critic': 'wgan', 'spaces': ['z', 'q']}\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("theirs", "their_prior", "mibench.priors")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "mibench.priors" else [])
    registry._modules.cache_clear()
    try:
        assert "theirs" in capabilities.offering("priors", "critic")
        assert capabilities.offering("priors", "space q") == ["theirs"]
        gmi = registry.configure("attacks", "gmi").plugin
        with pytest.raises(UserError, match=r"gmi needs a prior with a critic; .*theirs"):
            capabilities.require(gmi, Capabilities())
        capabilities.require(gmi, capabilities.declared("theirs"))
    finally:
        registry._modules.cache_clear()


def test_nobody_to_name_is_said() -> None:
    plugin = registry.configure("attacks", "ppa", settings={"space": "v"}).plugin
    with pytest.raises(UserError, match="no v space, only z; nothing installed has it"):
        capabilities.require(plugin, Capabilities())
