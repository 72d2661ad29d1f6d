"""LOMMA against the formulas: every term, both update rules, and that its switches lead back to GMI and KEDMI."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import World, workspace

from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.lomma_gmi import LommaGMI
from mibench.attacks.lomma_kedmi import LommaKEDMI
from mibench.attacks.parts.lomma import Lomma, feature_distance
from mibench.core import AttackContext, to_float
from mibench.models.base import Classifier
from mibench.plugins import capabilities, registry
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

SHORT: dict[str, Any] = {"students": ("cnn", "cnn"), "student_epochs": 1, "student_lr": 0.05}
VARIANTS = [(True, True), (True, False), (False, True), (False, False)]


def identity(attack: Lomma, world: World, students: list[Classifier], x: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """attacks.md section 9, spelled out."""
    logits = [world.target(x), *(student(x) for student in students)]
    value = torch.zeros(len(y))
    for one in logits:
        own = -one[torch.arange(len(y)), y]
        value = value + (own if attack.logit_loss else own + one.logsumexp(dim=1))
    value = value / len(logits)
    if not attack.logit_loss:
        return value
    phi = world.target.features(to_float(world.public().images)).detach()
    wanted = phi.mean(dim=0)[None]
    if attack.preg == "sample":
        wanted = wanted + phi.std(dim=0) * noise.of("preg").normal(phi.shape[1])
    return value + attack.preg_weight * ((world.target.features(x) - wanted) ** 2).mean(dim=1)


def students_of(attack: Lomma, world: World) -> list[Classifier]:
    known = attack.study(world.oracle(), 5, workspace(world))
    return known.students if known is not None else []


@pytest.mark.parametrize(("logit_loss", "augmented"), VARIANTS)
@pytest.mark.parametrize("preg", ["mean", "sample"])
def test_gmi_takes_the_published_steps(logit_loss: bool, augmented: bool, preg: Any) -> None:
    """z' = clamp(z - .9 v + 1.9 v'), v' = .9 v - lr g, g of (-D + 100 (mean_i NLL_i + PREG)) / 60."""
    world, y, labels = World(4), torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2])
    attack = LommaGMI(images=2, steps=0, logit_loss=logit_loss, augmented=augmented, preg=preg, **SHORT)
    students = students_of(attack, world)
    assert len(students) == (2 if augmented else 0)
    noise = Noise(5, torch.tensor([0, 1, 4, 5])).of("gmi")

    def found(steps: int) -> Tensor:
        return replace(attack, steps=steps)(world.oracle(), world.prior, labels, 5, workspace(world)).latents

    z, v = found(0), torch.zeros(4, world.prior.latent_dim)
    torch.testing.assert_close(z, noise.of("start").normal(world.prior.latent_dim))
    for step in range(3):
        point = z.clone().requires_grad_()
        x = world.prior.decode(point)
        loss = -world.prior.critic(x) + 100 * identity(attack, world, students, x, y, noise.of("step", step))
        g = torch.autograd.grad(loss.sum(), point)[0] / 60
        old, v = v, 0.9 * v - 0.02 * g
        z = (z - 0.9 * old + 1.9 * v).clamp(-1.0, 1.0)
        torch.testing.assert_close(found(step + 1), z, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("logit_loss", "augmented"), VARIANTS)
def test_kedmi_takes_the_published_steps(logit_loss: bool, augmented: bool) -> None:
    """Adam .02 on mu = 0, log_var = 1 for softplus(-lse D) + 100 (mean_i NLL_i + PREG), z clamped in and after."""
    world, labels = World(4, "kp1"), torch.tensor([0, 2])
    attack = LommaKEDMI(images=3, steps=0, logit_loss=logit_loss, augmented=augmented, **SHORT)
    students = students_of(attack, world)
    noise = Noise(5, labels).of("kedmi")
    shape = (2, world.prior.latent_dim)
    mu, log_var = torch.zeros(shape, requires_grad=True), torch.ones(shape, requires_grad=True)
    adam = torch.optim.Adam([mu, log_var], lr=0.02)
    final = Noise(5, (labels[:, None] * 3 + torch.arange(3)).flatten()).of("kedmi-final").normal(shape[1])
    for step in range(4):
        found = replace(attack, steps=step)(world.oracle(), world.prior, labels, 5, workspace(world))
        with torch.no_grad():
            wide = [value.repeat_interleave(3, 0) for value in (mu, log_var)]
            expected = (wide[0] + torch.exp(wide[1] / 2) * final).clamp(-1, 1)
        torch.testing.assert_close(found.latents, expected, rtol=0, atol=1e-4)
        drawn = noise.of("step", step)
        z = mu + torch.exp(log_var / 2) * drawn.normal(shape[1])
        x = world.prior.decode(z.clamp(-1, 1))
        loss = F.softplus(-world.prior.critic(x)) + 100 * identity(attack, world, students, x, labels, drawn)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()


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


@pytest.mark.parametrize(("logit_loss", "augmented"), VARIANTS)
def test_the_target_is_shown_the_public_images_once_if_at_all(logit_loss: bool, augmented: bool) -> None:
    world = World(4)
    attack = LommaGMI(images=2, steps=2, logit_loss=logit_loss, augmented=augmented, **SHORT)
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


def test_students_help_with_an_identity_that_the_target_hides() -> None:
    """The target's gradient is zeroed for images (its answers stay): the students alone lead to the identity."""
    world = World(10)
    alone = {"preg_weight": 0.0, "realism": 0.0, "students": ["cnn"]}
    known = registry.configure("attacks", "lomma_gmi", "quick", alone).plugin
    hidden = World(10)
    features = hidden.target.features
    hidden.target.features = lambda x: features(x).detach() + 0 * x.sum()  # type: ignore[method-assign]
    labels = torch.arange(10)

    def accuracy(attack: Lomma) -> float:
        found = attack(hidden.oracle(), world.prior, labels, 0, workspace(world))
        return float((world.truth(found.images) == found.labels).float().mean())

    assert accuracy(known) >= 0.8
    assert accuracy(replace(known, augmented=False)) <= 0.3


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
