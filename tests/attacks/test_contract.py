"""Laws of every attack, on worlds so simple that failing there is a mistake."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import COMPOSED, PLANNED, accuracy, world_of
from torch import Tensor
from worlds import ToldPrior, World, attack_on, quick

from mibench.core import AttackContext
from mibench.plugins import capabilities, registry
from mibench.priors.public import PublicImages
from mibench.runtime.errors import UserError
from mibench.testing.attacks import LAWS, AttackTrial
from mibench.testing.laws import report

ALONE = [name for name, card in registry.cards("attacks").items() if card["role"] != "wrapper"]
NAMES = [*ALONE, *COMPOSED]
MANY = {"batch", "budget", "fair budget", "resume", "resume under a budget"}
"""Laws that take many runs: of the composed attacks those in PLANNED are tried, one of each kind."""


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name: str) -> None:
    """The laws that other packages' attacks are held to: `mibench.testing.attacks`."""
    trial = AttackTrial(name, attack=COMPOSED.get(name))
    laws = [law for law in LAWS if name in [*ALONE, *PLANNED] or law.name not in MANY]
    report(trial, laws)


def test_a_hundred_identities_by_five_in_one_batch() -> None:
    world = World(100)
    settings: dict[str, Any] = {"images": 5, "steps": 6}
    together = attack_on(world, "gmi", work=AttackContext(batch=500), **settings)
    alone = [attack_on(world, "gmi", torch.tensor([label]), **settings).latents for label in range(100)]
    torch.testing.assert_close(together.latents, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gmi", "kedmi"])
def test_both_kinds_of_critic_lead_to_success(name: str) -> None:
    world = World(10, "kp1")
    assert accuracy(world, attack_on(world, name)) >= 0.9


@pytest.mark.parametrize("name", ["gmi", "kedmi"])
def test_a_prior_without_a_critic_is_refused_in_one_line(name: str) -> None:
    world = World(4, "none")
    for prior in (world.prior, PublicImages(world.public().images)):
        with pytest.raises(UserError, match=f"{name} needs a prior with a critic") as caught:
            capabilities.require(quick(name), prior)
        assert "--prior" in str(caught.value) and "\n" not in str(caught.value)
    for critic in ("wgan", "kp1"):
        capabilities.require(quick(name), World(4, critic).prior)  # type: ignore[arg-type]


def test_priors_of_the_wrong_kind_are_refused() -> None:
    world = world_of()
    with pytest.raises(UserError, match="ppa needs a generator"):
        capabilities.require(quick("ppa"), PublicImages(world.public().images))
    for name in ("ppa", "mirror", "mirror_bb", "brep", "if_gmi"):
        with pytest.raises(UserError, match=f"{name} .*--prior.* dcgan"):
            capabilities.require(quick(name), ToldPrior(world.prior))
    for name in ("plg", "lokt"):
        with pytest.raises(UserError, match="told whom to draw; choose with --prior"):
            capabilities.require(quick(name), world.prior)
    with pytest.raises(UserError, match="--prior one that has: public"):
        capabilities.require(quick("public_search"), world.prior)


def test_a_learning_rate_that_breaks_the_search_names_the_step() -> None:
    world = World(4, sharpness=float("nan"))
    with pytest.raises(UserError, match=r"stopped being finite at step 0 of 12"):
        attack_on(world, "gmi", steps=12)


def test_checkpoints_hold_the_counts(tmp_path: Path) -> None:
    oracle = world_of().oracle()
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])

    def kept() -> Tensor:
        """A process of its own: what an earlier one has kept is not computed again."""
        return AttackContext(folder=tmp_path).once("part", oracle, lambda: oracle.logits(x, y))

    value = kept()
    assert oracle.queries.tolist()[:2] == [1, 1]
    assert torch.equal(kept(), value) and oracle.queries.tolist()[:2] == [2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-part.pt"]


def test_a_name_is_kept_once(tmp_path: Path) -> None:
    """A second part of the same name would be given what the first one kept, by a resumed run at the latest."""
    oracle = world_of().oracle()
    for folder in (tmp_path, None):
        work = AttackContext(folder=folder)
        assert work.once("part", oracle, lambda: torch.zeros(1)) == 0
        with pytest.raises(UserError, match=r"kept two things as work\.once\('part'\)") as caught:
            replace(work, batch=3).once("part", oracle, lambda: torch.ones(1))
        assert "\n" not in str(caught.value)
        assert work.below("round").once("part", oracle, lambda: torch.ones(1)) == 1
        with pytest.raises(UserError, match=r"'round'"):
            work.below("round")
        for name in ("../part", "", "a/b", ".part"):
            with pytest.raises(UserError, match="a name is 1 to 100 letters"):
                work.once(name, oracle, lambda: torch.ones(1))
    assert sorted(path.name for path in tmp_path.rglob("*.pt")) == ["checkpoint-part.pt"] * 2
