"""What both LOMMA attacks share: every term, the study, and that their switches lead back to GMI and KEDMI."""

import pytest
import torch
from attacking import LOMMA_SHORT, LOMMA_VARIANTS
from torch.nn import functional as F
from worlds import World, workspace

from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.lomma_gmi import LommaGMI
from mibench.attacks.lomma_kedmi import LommaKEDMI
from mibench.attacks.parts.lomma import feature_distance
from mibench.core import AttackContext, to_float
from mibench.plugins import capabilities, registry
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


def test_without_its_changes_it_is_gmi_and_kedmi_to_the_bit() -> None:
    world, labels = World(4), torch.arange(4)
    off = {"logit_loss": False, "augmented": False, "steps": 6, "images": 2}
    pairs = [
        (LommaGMI(**off), GMI(images=2, steps=6, reference_batch=60)),
        (LommaGMI(**off | {"augmented": True}, students=()), GMI(images=2, steps=6, reference_batch=60)),
        (LommaKEDMI(**off), KEDMI(images=2, steps=6, clip_in_loop=True)),
    ]
    for lomma, other in pairs:
        oracle, asked = world.oracle(), world.oracle()
        one = lomma(oracle, world.prior, labels, 3, AttackContext())  # it needs no public images
        two = other(asked, world.prior, labels, 3, AttackContext())
        assert torch.equal(one.latents, two.latents) and torch.equal(one.images, two.images)
        assert torch.equal(oracle.queries, asked.queries) and oracle.shared_queries == 0
        assert lomma.cost(world.prior, 400) == other.cost(world.prior, 400)


@pytest.mark.parametrize(("logit_loss", "augmented"), LOMMA_VARIANTS)
def test_the_target_is_shown_the_public_images_once_if_at_all(logit_loss: bool, augmented: bool) -> None:
    world = World(4)
    attack = LommaGMI(images=2, steps=2, logit_loss=logit_loss, augmented=augmented, **LOMMA_SHORT)
    oracle = world.oracle()
    attack(oracle, world.prior, torch.arange(2), 0, workspace(world, 7))
    shown = 400 if logit_loss or augmented else 0
    assert oracle.shared_queries == attack.cost(world.prior, 400).shared_queries == shown
    assert oracle.shared_gradients == 0 and oracle.queries.tolist() == [4, 4, 0, 0]  # students are not counted


def test_the_study_holds_the_targets_own_statistics() -> None:
    world = World(4)
    known = LommaGMI(augmented=False).study(world.oracle(), 0, workspace(world, 33))
    assert known is not None and known.students == []
    phi = world.target.features(to_float(world.public().images)).detach()
    torch.testing.assert_close(known.mean, phi.mean(dim=0))
    torch.testing.assert_close(known.std, phi.std(dim=0))


def test_the_regulariser_is_the_mean_square_over_dimensions() -> None:
    features, mean = Noise(1, torch.arange(3)).normal(7), torch.linspace(-1, 1, 7)
    expected = torch.stack([F.mse_loss(row, mean) for row in features])
    torch.testing.assert_close(feature_distance(features, mean[None]), expected)


def test_what_it_lacks_is_named() -> None:
    world = World(4)
    with pytest.raises(UserError, match="lomma_kedmi learns from public images"):
        LommaKEDMI(steps=1)(world.oracle(), world.prior, torch.arange(2), 0, AttackContext())
    for name in ("lomma_gmi", "lomma_kedmi"):
        attack = registry.configure("attacks", name).plugin
        with pytest.raises(UserError, match=f"{name} needs a prior with a critic"):
            capabilities.require(attack, World(4, "none").prior)
        for setting in ({"images": 0}, {"student_batch": 1}, {"clip": 0.0}):
            with pytest.raises(UserError, match=name):
                registry.configure("attacks", name, settings=setting)
    with pytest.raises(UserError, match="reference_batch"):
        LommaGMI(reference_batch=0)


def test_the_published_settings() -> None:
    gmi, kedmi = (registry.configure("attacks", name, "paper").plugin for name in ("lomma_gmi", "lomma_kedmi"))
    students = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2")
    for attack in (gmi, kedmi):
        assert (attack.steps, attack.lr, attack.identity, attack.preg_weight) == (2400, 0.02, 100.0, 1.0)
        assert (attack.students, attack.pretrained, attack.student_epochs) == (students, True, 20)
        assert (attack.images, attack.logit_loss, attack.augmented, attack.preg) == (5, True, True, "sample")
    assert gmi.reference_batch == 60 and gmi.cost(World(4).prior, 30_000) == (12_000, 12_000, 30_000)
    assert kedmi.log_var == 1.0 and kedmi.cost(World(4).prior, 30_000) == (2400, 2400, 30_000)
