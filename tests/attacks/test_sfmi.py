"""SFMI by its formulas: the schedule, rescaled gradients, one Heun step, no steering, what is asked, whom it finds."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import accuracy
from interruptions import Interruption
from torch import Tensor
from worlds import SHAPE, World, attack_on, gaussian_flow, quick, workspace

from mibench.attacks.sfmi import Sfmi, rescaled
from mibench.core import Access, Cost, Oracle, Reconstructions
from mibench.plugins import capabilities, registry
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

PLAIN: dict[str, Any] = {"images": 2, "steps": 10}


def run(world: World, oracle: Oracle | None = None, work: Any = None, **changed: Any) -> Reconstructions:
    attack = Sfmi(**(PLAIN | changed))
    return attack(oracle or world.oracle(), gaussian_flow(), torch.arange(3), 5, work or workspace(world))


def starts() -> Tensor:
    """x_0 of 3 identities with 2 restarts."""
    return gaussian_flow().sample(Noise(5, torch.arange(6)).of("sfmi")).reshape(-1, *SHAPE)


def test_the_schedule_has_its_published_values() -> None:
    """Equation 11 with M = .3, t0, t1, t2 = .1, .3, .7; by hand at .4: .15 (1 + cos(pi / 4))."""
    gamma = Sfmi().gamma
    values = {0.0: 0.0, 0.02: 0.06, 0.05: 0.15, 0.1: 0.3, 0.2: 0.3, 0.3: 0.3, 0.4: 0.2560660, 0.5: 0.15, 0.6: 0.0439340}
    for t, value in values.items():
        assert gamma(t) == pytest.approx(value, abs=1e-7), t
    assert gamma(0.7) == gamma(0.71) == gamma(1.0) == 0.0
    constant = Sfmi(t0=0.0, t1=1.0, t2=1.0)
    assert [constant.gamma(t) for t in (0.0, 0.5, 0.99)] == [0.3] * 3


def test_a_rescaled_gradient_is_as_long_as_the_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    g, v = (torch.randn(4, *SHAPE, generator=generator) * scale for scale in (1e-3, 7.0))
    found = rescaled(g, v)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), v.flatten(1).norm(dim=1), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(found.flatten(1), g.flatten(1)), torch.ones(4))
    assert not rescaled(torch.zeros_like(g), v).any()  # no direction, no steering, and no division by 0


@torch.no_grad()
def test_without_strength_it_draws_the_priors_samples_bit_for_bit() -> None:
    """And asks nothing, for which all images are marked."""
    world = World(6)
    oracle, prior = world.oracle(), gaussian_flow(steps=10)
    found = run(world, oracle, strength=0.0)
    assert torch.equal(found.images, prior.decode(starts().flatten(1)))
    assert not oracle.queries.any() and found.failed.all()


def steered(world: World, x: Tensor, y: Tensor, t: float, gamma: float) -> Tensor:
    """v - gamma |v| g / |g| of one row each, written out anew for images N(0, .25^2)."""
    rows = []
    for row in range(len(x)):
        point = x[row : row + 1].clone().requires_grad_()
        clean = t * 0.0625 / (t**2 * 0.0625 + (1 - t) ** 2) * point
        logits = world.target(((clean + 1) / 2).clamp(0, 1))[0]
        others = torch.cat([logits[: y[row]], logits[y[row] + 1 :]])
        g = torch.autograd.grad(others.max() - logits[y[row]], point)[0]
        v = ((clean - point) / (1 - t)).detach()
        rows.append(v - gamma * v.norm() * g / g.norm())
    return torch.cat(rows)


def test_three_steps_by_their_formulas() -> None:
    """N = 3, gamma .3 until .5, then a cosine to 0 at 1: corrected twice, Euler in the end."""
    world, x, y = World(6), starts(), torch.arange(3).repeat_interleave(2)
    gammas = [0.0, 0.3, 0.15 * (1 + math.cos(math.pi / 3))]
    first = -x  # M(x, 0) = 0 and gamma(0) = 0
    second = steered(world, x + first / 3, y, 1 / 3, gammas[1])
    x = x + (first + second) / 6
    first = steered(world, x, y, 1 / 3, gammas[1])
    second = steered(world, x + first / 3, y, 2 / 3, gammas[2])
    x = x + (first + second) / 6
    x = x + steered(world, x, y, 2 / 3, gammas[2]) / 3
    found = run(world, steps=3, t0=0.1, t1=0.5, t2=1.0)
    torch.testing.assert_close(found.latents, x.flatten(1), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.images, ((x + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


def test_the_published_values_cost_68_gradients_an_image() -> None:
    world, oracle = World(6), World(6).oracle()
    run(world, oracle, images=1, steps=50)
    assert oracle.queries[:3].tolist() == oracle.gradient_images[:3].tolist() == [68] * 3
    assert oracle.shared_queries == 0 and not oracle.queries[3:].any()
    assert Sfmi().cost(gaussian_flow()) == Cost(8 * 68, 8 * 68, 0)
    assert Sfmi(strength=0.0).cost(gaussian_flow()) == Cost(0, 0, 0)


@pytest.mark.parametrize("budget", [1000, 24, 23, 16, 4, 3, 0])
def test_a_budget_buys_fewer_steps_over_the_whole_schedule(budget: int) -> None:
    """12 gradients an image at N = 10: what is left pays for the largest N that it can, with the same start."""
    world, oracle = World(6), World(6).oracle(budget=budget)
    found = run(world, oracle)
    fits = max(n for n in range(1, 11) if n == 1 or 2 * Sfmi().gradients(n) <= budget)
    assert torch.equal(found.images, run(world, steps=fits).images)
    assert (fits == 10) == (budget >= 2 * Sfmi().gradients(10))
    assert int(oracle.queries.max()) == 2 * Sfmi().gradients(fits) <= budget


def test_every_gradient_goes_through_the_oracles_loss() -> None:
    """One value per image, and draws of its own for each look: what `eot` and `align` rely on."""
    world, seen = World(6), []
    oracle = world.oracle()
    loss = oracle.loss
    oracle.loss = lambda *given: seen.append((len(given[0]), given[3].purpose)) or loss(*given)  # type: ignore
    run(world, oracle)
    assert len(seen) == Sfmi().gradients(10) and {count for count, _ in seen} == {6}
    assert len({purpose for _, purpose in seen}) == len(seen)


def test_success_comes_from_steering_and_marks_who_was_not_reached() -> None:
    """Steering goes as |v|, the root of the number of pixels, which is an eighth of what it is at 64 x 64 x 3: the
    published strength moves this world's images by about as much as restarts differ."""
    world = World(10)
    weak, found = (attack_on(world, "sfmi", images=4, strength=strength) for strength in (0.3, 0.6))
    assert 0.8 < accuracy(world, weak) < accuracy(world, found) and accuracy(world, found) >= 0.95
    assert not found.failed.any()
    assert accuracy(world, attack_on(world, "sfmi", images=8, strength=0.0)) < 0.3


@pytest.mark.parametrize("cut", range(0, 3))
def test_interrupted_after_any_checkpoint_it_ends_with_the_same_bits(cut: int, tmp_path: Path) -> None:
    """6 images, 2 at once: interrupted in each of the three parts."""
    world = World(6)
    whole_oracle = world.oracle()
    whole = run(world, whole_oracle, workspace(world, 2))
    stop = Interruption(cut * 2 * Sfmi().gradients(10) + 1)
    stopped = Oracle(world.target, Access.WHITE_BOX, world.classes, None, stop)
    with pytest.raises(KeyboardInterrupt):
        run(world, stopped, workspace(world, 2, tmp_path))
    assert len(list(tmp_path.iterdir())) == cut
    oracle = world.oracle()
    found = run(world, oracle, workspace(world, 2, tmp_path))
    assert torch.equal(found.images, whole.images) and torch.equal(found.latents, whole.latents)
    assert torch.equal(oracle.gradient_images, whole_oracle.gradient_images)


def test_a_prior_without_a_flow_is_refused_in_one_line() -> None:
    world = World(4)
    for prior in (world.prior, world.diffusion()):
        with pytest.raises(UserError, match=r"sfmi needs a flow-matching model.*--prior.* flow") as caught:
            capabilities.require(quick("sfmi"), prior)
        assert "\n" not in str(caught.value)
    capabilities.require(quick("sfmi"), gaussian_flow())


@pytest.mark.parametrize(
    "settings", [{"images": 0}, {"steps": 0}, {"t0": 0.5}, {"t2": 1.1}, {"strength": -0.1}, {"strength": math.inf}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="sfmi: "):
        registry.configure("attacks", "sfmi", "paper", settings)


def test_pixels_that_break_are_reported() -> None:
    with pytest.raises(UserError, match="stopped being finite"):
        run(World(4, sharpness=float("nan")))
