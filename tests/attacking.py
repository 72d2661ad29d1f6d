"""What the tests of several attacks share: short settings, composed attacks, priors, students."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import World, quick, workspace

from mibench.attacks.align import Align
from mibench.attacks.eot import EOT
from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.parts.lomma import Lomma
from mibench.attacks.ppa import PPA
from mibench.attacks.ppdg import PPDG
from mibench.attacks.untrap import Untrap
from mibench.core import Attack, AttackContext, Oracle, Prior, Reconstructions, to_float
from mibench.defenses.re import RandomErasing
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise
from mibench.testing.attacks import ROUNDING, accuracy, same

__all__ = ["ROUNDING", "accuracy", "same"]
"""What tests take from here that mibench.testing has; the rest of this file is for them too."""

GMI_SHORT = GMI(images=2, steps=8, lr=0.5)


PPA_SHORT = PPA(images=2, candidates=3, pool=24, steps=5, lr=0.03, betas=(0.9, 0.999), selection_views=3)


KEDMI_SHORT = KEDMI(images=2, steps=8, lr=0.05, log_var=-2.0)


PPDG_SHORT: dict[str, Any] = {
    "candidates": 4,
    "keep": 2,
    "views": 3,
    "pivot_steps": 6,
    "pivot_lr": 0.1,
    "steps": 3,
    "lr": 1e-3,
}


COMPOSED: dict[str, Attack] = {
    "gmi+eot": EOT(GMI_SHORT, copies=3),
    "gmi+align": Align(GMI_SHORT, copies=3),
    "ppa+eot": EOT(PPA_SHORT, copies=3),
    "ppa+eot+align": Align(EOT(PPA_SHORT, copies=2), copies=2, mode="transform", select=True),
    "ppa+ppdg": PPDG(PPA_SHORT, **PPDG_SHORT),
    "gmi+untrap": Untrap(GMI_SHORT, images=4, steps=3),
    "ppa+untrap+eot": EOT(Untrap(PPA_SHORT, images=3, steps=2), copies=2),
    "kedmi+ppdg+eot": EOT(PPDG(KEDMI_SHORT, **PPDG_SHORT), copies=2),
}


PLANNED = ["gmi+eot", "ppa+eot+align", "ppa+ppdg", "ppa+untrap+eot"]
"""One of each kind, for the laws that take many runs."""


ERASE = RandomErasing(a_e=0.4, fill="zero").transform


def erased(world: World, batch: int = 256, folder: Path | None = None) -> AttackContext:
    """A workspace whose target was trained on erased images."""
    return replace(workspace(world, batch, folder), transform=ERASE)


def run(
    attack: Attack,
    world: World,
    labels: Tensor | None = None,
    seed: int = 0,
    work: AttackContext | None = None,
    oracle: Oracle | None = None,
) -> Reconstructions:
    labels = torch.arange(world.classes) if labels is None else labels
    return attack(oracle or world.oracle(), world.prior, labels, seed, work or erased(world))


LOMMA_SHORT: dict[str, Any] = {"students": ("cnn", "cnn"), "student_epochs": 1, "student_lr": 0.05}


LOMMA_VARIANTS = [(True, True), (True, False), (False, True), (False, False)]


def identity_loss(
    attack: Lomma, world: World, students: list[Classifier], x: Tensor, y: Tensor, noise: Noise
) -> Tensor:
    """The identity loss of LOMMA spelled out, https://arxiv.org/abs/2304.01669, section 4."""
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


class Activated(Prior):
    """A world's linear prior behind w = LeakyReLU(z): a prior with a w space, as StyleGAN's is."""

    spaces = ("z", "w")

    def __init__(self, world: World, inside: bool = False) -> None:
        super().__init__()
        self.world, self.inside = world, inside
        self.latent_dim, self.image_shape = world.prior.latent_dim, world.prior.image_shape
        self.slope = 0.2 if inside else 1.0
        self.spaces = ("w",) if inside else ("z", "w")

    def space(self, name: str) -> Prior:
        return Activated(self.world, True) if name == "w" and not self.inside else super().space(name)

    def sample(self, noise: Noise) -> Tensor:
        z = super().sample(noise)
        return F.leaky_relu(z, 0.2) if self.inside else z

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.world.prior.decode(z if self.inside else F.leaky_relu(z, 0.2))


@cache
def world_of(classes: int = 6) -> World:
    """Shared by tests that only read it; every one of them checks nothing that another could have changed."""
    return World(classes)


def assert_refused(name: str, settings: dict[str, Any], message: str = "") -> None:
    """Settings that make no sense are one line that begins with the attack's name."""
    with pytest.raises(UserError, match=f"^{name}.*{message}") as caught:
        quick(name, **settings)
    assert "\n" not in str(caught.value)
