"""IF-GMI: exact projections, PPA's search in its first stage, joint steps by formula, what is painted kept or lost."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import SHAPE, LinearPrior, World, small_net, workspace

from mibench.attacks.if_gmi import IFGMI
from mibench.attacks.parts.balls import project_l1
from mibench.attacks.ppa import PPA
from mibench.core import Access, AttackContext, Oracle, Prior, Split
from mibench.core.losses import poincare
from mibench.plugins import capabilities, registry
from mibench.priors.pixels import PixelPrior
from mibench.priors.public import PublicImages
from mibench.priors.stylegan2 import StyleGan2
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

PLAIN: dict[str, Any] = {"images": 2, "pool": 40, "view_scale": (1.0, 1.0), "mirror": False}
"""Every image is seen as it is."""


# --- the ball


def bisected(x: Tensor, radius: float) -> Tensor:
    """sign(x) max(|x| - t, 0) with the t >= 0 at which the sum is the radius, found by halving an interval."""
    low, high = torch.zeros(len(x), 1, dtype=x.dtype), x.abs().amax(dim=1, keepdim=True)
    for _ in range(100):
        t = (low + high) / 2
        large = (x.abs() - t).clamp(min=0).sum(dim=1, keepdim=True) > radius
        low, high = torch.where(large, t, low), torch.where(large, high, t)
    return torch.where(x.abs().sum(dim=1, keepdim=True) <= radius, x, x.sign() * (x.abs() - high).clamp(min=0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.floats(0.01, 60.0), st.integers(0, 10**6))
def test_projection_agrees_with_bisection(rows: int, columns: int, radius: float, seed: int) -> None:
    x = 2 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    x[:, ::3] = 0.0
    x[:, 1::4] = 1.5  # ties
    found = project_l1(x, radius)
    torch.testing.assert_close(found, bisected(x, radius), rtol=0, atol=1e-9)
    torch.testing.assert_close(project_l1(found, radius), found, rtol=0, atol=1e-9)
    norm = x.abs().sum(dim=1)
    torch.testing.assert_close(found.abs().sum(dim=1), norm.clamp(max=radius))
    assert torch.equal(found[norm <= radius], x[norm <= radius])


def test_projection_of_a_row_worked_out_by_hand() -> None:
    """utils/stylegan.py: |x| = 1.2, .8, .5, .3 less t = (1.2 + .8 + .5 - 1.5) / 3; a fourth would be below its own."""
    x = torch.tensor([[0.5, -1.2, 0.3, 0.8]], dtype=torch.float64)
    wanted = torch.tensor([[1 / 6, -13 / 15, 0.0, 7 / 15]], dtype=torch.float64)
    torch.testing.assert_close(project_l1(x, 1.5), wanted, rtol=0, atol=1e-15)


def test_projection_is_the_nearest_point() -> None:
    """<x - P(x), v - P(x)> <= 0 for every v in the ball, which holds for no other point."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, generator=generator).double()
    found = project_l1(x, 2.0)
    vertices = 2.0 * torch.cat([torch.eye(8), -torch.eye(8)]).double()  # their hull is the ball
    assert float(((vertices - found) @ (x - found)[0]).max()) <= 1e-12


def test_a_wide_batch_of_features_in_float32() -> None:
    x = torch.randn(3, 65_536, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.001], [0.1], [10.0]])
    found = project_l1(x, 1000.0)
    torch.testing.assert_close(found.abs().sum(dim=1), x.abs().sum(dim=1).clamp(max=1000.0), rtol=1e-4, atol=0)
    assert torch.equal(found[0], x[0])


# --- the attack


def test_without_later_steps_it_is_ppa_without_selection() -> None:
    world, labels = World(5), torch.tensor([3, 0, 4])
    ppa = PPA(candidates=2, steps=12, lr=0.03, reference_batch=5, **PLAIN)(
        world.oracle(), world.prior, labels, 3, AttackContext()
    )
    found = IFGMI(steps=(12, 0, 0), lr=0.03, **PLAIN)(world.oracle(), world.prior, labels, 3, AttackContext())
    torch.testing.assert_close(found.latents, ppa.latents)
    torch.testing.assert_close(found.images, ppa.images)
    assert torch.equal(found.labels, ppa.labels)
    more = IFGMI(steps=(12, 4, 4), lr=0.03, **PLAIN)(world.oracle(), world.prior, labels, 3, AttackContext())
    with torch.no_grad():
        before, after = (poincare(world.target(one.images), one.labels) for one in (found, more))
    assert bool((after < before).all())


class Told(LinearPrior):
    """Its last block hears z again, and what flows into place 2 is twice what flows into place 1."""

    blocks = 2

    def advance(self, z: Tensor, inside: Tensor, block: int) -> Tensor:
        return 2.0 * inside

    def features_at(self, z: Tensor, block: int) -> Tensor:
        return block * (z @ self.directions)

    def decode_from(self, z: Tensor, inside: Tensor, block: int) -> Tensor:
        pre = inside * (2.0 if block == 1 else 1.0) / 4 + z @ self.directions.flip(1) / 5
        return (0.5 + 0.5 * torch.tanh(pre)).reshape(-1, *SHAPE)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.decode_from(z, self.features_at(z, 1), 1)


@pytest.mark.parametrize("radius", [1e6, 0.05])
def test_joint_steps_by_their_formula(radius: float) -> None:
    """Adam of betas (.1, .1), eps as in a batch of 5, anew at each stage; z and h are projected around its start."""
    world = World(5)
    prior = Told(7, "none").eval()
    labels = torch.arange(5)
    attack = IFGMI(steps=(2, 2, 3), radius=(radius, 2 * radius, 3 * radius), feature_lr=0.002, **PLAIN)
    start = replace(attack, steps=(0,))(world.oracle(), prior, labels, 1, AttackContext())
    found = attack(world.oracle(), prior, labels, 1, AttackContext())
    y, z, h = start.labels, start.latents, torch.zeros(10, 0)
    for stage, steps in enumerate((2, 2, 3)):
        if stage:
            h = prior.features_at(z, 1).detach() if stage == 1 else prior.advance(z, h, 1)
        moved, centres = [z, h], [z, h]
        m, v = [torch.zeros_like(one) for one in moved], [torch.zeros_like(one) for one in moved]
        for t in range(1, steps + 1):
            leaves = [one.clone().requires_grad_() for one in moved]
            x = prior.decode(leaves[0]) if stage == 0 else prior.decode_from(leaves[0], leaves[1], stage)
            loss = poincare(world.target(x), y).sum()
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
            for i, slope in enumerate(slopes):
                if slope is None:
                    continue
                m[i], v[i] = 0.1 * m[i] + 0.9 * slope, 0.1 * v[i] + 0.9 * slope**2
                step = m[i] / (1 - 0.1**t) / ((v[i] / (1 - 0.1**t)).sqrt() + 5e-8)
                away = moved[i] - (0.005, 0.002)[i] * step - centres[i]
                moved[i] = centres[i] + bisected(away.double(), radius * (stage + 1)).float()
        z, h = moved
    torch.testing.assert_close(found.latents, z, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.images, prior.decode_from(z, h, 2).detach(), rtol=0, atol=1e-5)
    if radius < 1:
        assert float((z - start.latents).abs().sum(dim=1).max()) <= (1 + 2 + 3) * radius + 1e-5


def test_stages_end_with_the_priors_blocks() -> None:
    paper = IFGMI()
    prior = World(5).prior
    assert paper.cost(prior) == (50 * 90, 50 * 90, 4000)
    prior.blocks = 7
    assert paper.cost(prior) == (50 * 120, 50 * 120, 4000)  # 50 steps, then 10 at each of 7 blocks
    prior.blocks = 1
    assert paper.cost(prior)[0] == 50 * 60


@pytest.mark.parametrize(
    ("preset", "pool", "steps", "lr", "area", "batch"),
    [
        ("paper", 2000, [50, *[10] * 7], 0.005, 0.9, 5),
        ("paper_celeba", 5000, [70, *[25] * 4], 0.005, 0.9, 4),
        ("paper_metfaces", 5000, [70, *[25] * 7], 0.005, 0.9, 5),
        ("paper_dogs", 2000, [100, *[10] * 6], 0.01, 0.75, 5),
    ],
)
def test_the_published_configurations(
    preset: str, pool: int, steps: list[int], lr: float, area: float, batch: int
) -> None:
    """main-*.yaml of ffhq_facescrub, ffhq_celeba, metfaces_celeba and afhq_stanford."""
    attack = registry.configure("attacks", "if_gmi", preset).plugin
    assert isinstance(attack, IFGMI)
    assert (attack.images, attack.pool, list(attack.steps)) == (50, pool, steps)
    assert attack.lr == attack.feature_lr == lr and attack.view_scale == (area, 1.0)
    assert attack.reference_batch == batch and attack.betas == (0.1, 0.1) and attack.objective == "poincare"
    assert attack.radius == (1000, 2000, 3000, 4000, 5000, 6000, 8000, 8000)


def test_mirror_images_are_for_the_pool_alone() -> None:
    """The configurations' transformations are CenterCrop, Resize and RandomResizedCrop."""
    world = World(5)
    z, y, noise = torch.randn(5, 7) / 3, torch.arange(5), Noise(0, torch.arange(5)).of("if_gmi")
    one, other = (
        IFGMI(mirror=mirror)._invert(world.oracle(), world.prior, z, y, [4, 2], noise, workspace(world))
        for mirror in (True, False)
    )
    assert torch.equal(one, other) and IFGMI(mirror=False).cost(world.prior).shared_queries == 2000


@pytest.mark.parametrize("keep", [True, False])
def test_the_authors_code_loses_what_was_painted_before(keep: bool) -> None:
    """Resuming at block k drops the image so far."""
    torch.manual_seed(3)
    split = Split(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.full((4,), -1))
    recipe = StyleGan2(latent_dim=6, style_dim=5, layers=2, width=2, most=8, psi=1.0)
    whole = recipe.build((3, 16, 16), 3, split).eval()
    prior = whole.space("w")
    oracle = Oracle(small_net(3).eval(), Access.WHITE_BOX, 3)
    attack = IFGMI(images=2, pool=10, steps=(1, 1, 1), lr=1e-9, feature_lr=1e-9, keep_rgb=keep)
    found = attack(oracle, whole, torch.arange(3), 0, AttackContext())
    z = found.latents
    assert (z[:, None] - prior.sample(Noise(0, torch.arange(10)).of("pool"))).abs().amax(dim=2).amin(dim=1).max() < 1e-6
    inside = prior.features_at(z, 2)
    if not keep:
        inside[:, -prior.skip_size(2) :] = 0.0  # type: ignore[operator]
    torch.testing.assert_close(found.images, prior.decode_from(z, inside, 2).detach(), rtol=0, atol=1e-5)
    assert bool(torch.isclose(found.images, prior.decode(z).detach(), atol=1e-5).all()) == keep


def test_a_latent_that_the_later_blocks_do_not_hear_stays() -> None:
    world = World(5)
    first = IFGMI(steps=(5,), **PLAIN)(world.oracle(), world.prior, torch.arange(5), 0, AttackContext())
    all_ = IFGMI(steps=(5, 5, 5), **PLAIN)(world.oracle(), world.prior, torch.arange(5), 0, AttackContext())
    assert torch.equal(first.latents, all_.latents) and not torch.equal(first.images, all_.images)


@pytest.mark.parametrize("prior", [PixelPrior(SHAPE), PublicImages(torch.zeros(3, *SHAPE, dtype=torch.uint8))])
def test_priors_that_cannot_be_entered_are_refused(prior: Prior) -> None:
    with pytest.raises(UserError, match=r"if_gmi needs a generator it can enter between its blocks; .* dcgan"):
        capabilities.require(IFGMI(), prior)


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"images": 0}, "images"),
        ({"pool": 3}, "pool"),
        ({"steps": (1, 1), "radius": (1.0,)}, "radius"),
        ({"steps": ()}, "radius"),
        ({"view_scale": (0.0, 1.0)}, "view_scale"),
        ({"betas": (0.1, 1.0)}, "betas"),
        ({"reference_batch": 0}, "reference_batch"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=f"if_gmi: .*{word}"):
        IFGMI(**setting)
