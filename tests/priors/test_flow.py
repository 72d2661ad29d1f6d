"""Laws of flow matching: closed-form flows, Heun's order, the loss at its optimum, the law of t, resuming."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import assert_resumes, session
from torch import Tensor
from worlds import SHAPE, gaussian_flow, public

from mibench.core import Split, TrainingContext
from mibench.plugins import registry
from mibench.priors.flow import Flow, FlowPrior, Predictor, logit_normal, rate
from mibench.priors.unet import Eigenspace
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

TINY: dict[str, Any] = {
    "width": 4,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (8,),
    "heads": 2,
    "steps": 6,
    "batch": 4,
    "sampler_steps": 3,
    "decay": 0.5,
    "lr": 1e-3,
}


def built(split: Split, **changed: Any) -> tuple[Flow, FlowPrior]:
    recipe = Flow(**(TINY | changed))
    torch.manual_seed(0)
    return recipe, recipe.build(tuple(split.images.shape[1:]), 3, split)


def latents(count: int, *purpose: object) -> Tensor:
    return Noise(3, torch.arange(count)).of(*purpose).normal(*SHAPE)


# --- the flow


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_flow_to_a_point_is_straight_and_every_step_exact(steps: int) -> None:
    """Where all images are one image m, M = m and v = (m - x_t) / (1 - t) = m - x_0 all along the path."""
    point = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) - 0.5
    prior, x = gaussian_flow(point, 0.0), latents(4)
    seen: list[tuple[float, Tensor]] = []

    def field(at: Tensor, t: float) -> Tensor:
        seen.append((t, prior.velocity(at, t)))
        torch.testing.assert_close(at, (1 - t) * x + t * point, rtol=0, atol=1e-5)
        return seen[-1][1]

    found = prior.integrate(x, steps, field)
    torch.testing.assert_close(found, point.expand_as(x), rtol=0, atol=1e-5)
    for _, v in seen:
        torch.testing.assert_close(v, point - x, rtol=0, atol=1e-4)
    # Predictors at i / N, correctors at (i + 1) / N, none at 1.
    wanted = [t / steps for i in range(steps) for t in (i, i + 1)][:-1]
    assert [t for t, _ in seen] == pytest.approx(wanted)


def gaussian_flow_at(x: Tensor, t: float, mean: float, spread: float) -> Tensor:
    """x_t = t m + sqrt(t^2 s^2 + (1 - t)^2) x_0: what keeps x_t ~ N(t m, t^2 s^2 + (1 - t)^2) on an affine flow."""
    return t * mean + math.sqrt(t**2 * spread**2 + (1 - t) ** 2) * x


@pytest.mark.parametrize(("mean", "spread"), [(0.3, 0.5), (-0.6, 0.8), (0.0, 0.6)])
def test_heun_follows_the_exact_gaussian_flow_with_order_two(mean: float, spread: float) -> None:
    """Up to t = 1 - 1 / 8, where the steps are Heun's alone: halving them divides the error by 4."""
    prior, x = gaussian_flow(mean, spread), latents(6).double()
    errors = []
    for steps in (16, 32, 64, 128):
        reached: dict[float, Tensor] = {}

        def field(at: Tensor, t: float, reached: dict[float, Tensor] = reached) -> Tensor:
            reached[t] = at  # the corrector's look comes first, then the next step's replaces it
            share = t * spread**2 / (t**2 * spread**2 + (1 - t) ** 2)
            return (mean + share * (at - t * mean) - at) / (1 - t)

        prior.integrate(x, steps, field)
        errors.append(float((reached[0.875] - gaussian_flow_at(x, 0.875, mean, spread)).abs().max()))
    assert all(3.3 < before / after < 4.7 for before, after in pairwise(errors)), errors


@torch.no_grad()
@pytest.mark.parametrize(("mean", "spread"), [(0.3, 0.5), (-0.6, 0.25)])
def test_noise_ends_as_the_data(mean: float, spread: float) -> None:
    """x_1 = m + s x_0. The last, Euler's step ends in M(x, 1 - h), short by a factor of about 1 - h^2 / 2s^2."""
    prior, x = gaussian_flow(mean, spread), latents(20)
    rough, fine = (prior.integrate(x, steps) - mean for steps in (100, 200))
    errors = [float((found / (spread * x)).median() - 1) for found in (rough, fine)]
    assert abs(errors[1]) < 0.006 and abs(errors[1]) < 0.35 * abs(errors[0])
    torch.testing.assert_close(fine, spread * x, rtol=0, atol=0.03 * spread)


def test_velocity_is_equation_4() -> None:
    prior, x = gaussian_flow(0.2, 0.6), latents(3)
    share = 0.3 * 0.36 / (0.09 * 0.36 + 0.49)
    wanted = (0.2 + share * (x - 0.06) - x) / 0.7
    torch.testing.assert_close(prior.velocity(x, 0.3), wanted, rtol=0, atol=1e-5)


def test_decode_is_in_range_differentiable_and_one_by_one() -> None:
    prior = gaussian_flow(0.1, 0.3)
    z = latents(6).flatten(1).requires_grad_()
    x = prior.decode(z)
    assert x.shape == (6, *SHAPE) and x.min() >= 0 and x.max() <= 1
    slope = torch.autograd.grad(x.sum(), z)[0]
    moved = prior.decode(z + 1e-2).sum() - prior.decode(z - 1e-2).sum()
    assert float(slope.sum()) == pytest.approx(float(moved.detach()) / 2e-2, rel=1e-2)
    torch.testing.assert_close(prior.decode(z[2:3]), x[2:3], rtol=0, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(prior.decode(z), x)


# --- the loss


def test_t_is_logit_normal() -> None:
    """Moments and quartiles of logit(t) ~ N(-.8, .8^2); the median of t is 1 / (1 + e^.8) = .310."""
    t = logit_normal(Noise(0, torch.arange(20_000)).of("t"), -0.8, 0.8).double()
    assert t.min() > 0 and t.max() < 1
    u = torch.log(t / (1 - t))
    assert float(u.mean()) == pytest.approx(-0.8, abs=4 * 0.8 / 20_000**0.5)
    assert float(u.std()) == pytest.approx(0.8, rel=4 / 40_000**0.5)
    assert float(t.median()) == pytest.approx(1 / (1 + math.exp(0.8)), abs=0.01)
    quartile = 1 / (1 + math.exp(0.8 + 0.8 * 0.67449))
    assert float((t < quartile).double().mean()) == pytest.approx(0.25, abs=0.013)


@torch.no_grad()
@pytest.mark.parametrize("spread", [0.0, 0.25, 1.0])
def test_the_loss_at_its_optimum(spread: float) -> None:
    """Var[x_1 - x_0 | x_t] = s^2 / (t^2 s^2 + (1 - t)^2) for each pixel; 0 where all images are one."""
    prior, keys = gaussian_flow(0.1, spread), Noise(5, torch.arange(3000))
    x = 0.1 + spread * keys.of("data").normal(*SHAPE)
    recipe = Flow(**TINY)
    t = logit_normal(keys.of("t"), recipe.mean, recipe.spread).double()
    wanted = (spread**2 / (t.square() * spread**2 + (1 - t).square())).mean()
    found = float(recipe.loss(prior, x, keys))
    assert found == pytest.approx(float(wanted), rel=0.01, abs=1e-5)
    if spread:
        for worse in (gaussian_flow(0.15, spread), gaussian_flow(0.1, 0.8 * spread), gaussian_flow(0.1, 1.25 * spread)):
            assert float(recipe.loss(worse, x, keys)) > found


def test_the_loss_is_that_of_the_velocity() -> None:
    split = public()
    recipe, prior = built(split)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, noise = 2 * split.images[:4].float() / 255 - 1, Noise(1, torch.arange(4))
    t, start = logit_normal(noise.of("t"), -0.8, 0.8), noise.of("x0").normal(3, 16, 16)
    wanted = []
    for row in range(4):
        at = (1 - t[row]) * start[row] + t[row] * x[row]
        v = prior.velocity(at[None], float(t[row]))[0]
        wanted.append((v - (x[row] - start[row])).square().mean())
    torch.testing.assert_close(recipe.loss(prior, x, noise), torch.stack(wanted).mean(), rtol=1e-4, atol=1e-5)


# --- the network


def test_eigenfaces_predict_best_for_gaussian_images() -> None:
    """With every eigenvector kept, E[x_1 | x_t] = m + t C (t^2 C + (1 - t)^2 I)^-1 (x_t - t m), by a plain inverse."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=generator) * torch.linspace(0.1, 1.0, 12) + 0.3
    space = Eigenspace(12, 1, 11)
    space.fit(x, torch.arange(40)[None])
    away = (x - x.mean(dim=0)).double()
    covariance, mean = away.T @ away / 40, x.mean(dim=0).double()
    noisy = torch.randn(5, 12, 1, 1, generator=generator)
    for t in (0.0, 0.3, 0.98):
        inside = t**2 * covariance + (1 - t) ** 2 * torch.eye(12).double()
        shifted = noisy[:, :, 0, 0].double() - t * mean
        wanted = mean + t * (covariance @ torch.linalg.solve(inside, shifted.T)).T
        found = space.clean(noisy, torch.full((5, 1, 1, 1), t), torch.zeros(5, dtype=torch.int64))
        torch.testing.assert_close(found[:, :, 0, 0], wanted.float(), rtol=1e-4, atol=1e-4)


def test_an_untrained_network_is_the_gaussian_of_the_public_images() -> None:
    split = public(count=30)
    recipe, prior = built(split, eigenfaces=8, steps=1, lr=0.0)
    recipe.train(prior, split, None, session())
    assert isinstance(prior.network, Predictor) and prior.network.gaussian is not None
    mean = (2 * split.images.float() / 255 - 1).mean(dim=0)
    with torch.no_grad():
        torch.testing.assert_close(prior.predict(torch.randn(2, 3, 16, 16), 0.0), mean.expand(2, -1, -1, -1))
        assert not built(split)[1].predict(torch.randn(2, 3, 16, 16), 0.4).any()


def test_the_network_is_told_the_time() -> None:
    _, prior = built(public())
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 3, 16, 16)
    assert not torch.allclose(prior.predict(x, 0.3), prior.predict(x, 0.3004))


# --- training


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = public()

    def trained(told: TrainingContext) -> tuple[FlowPrior, list[dict[str, float]]]:
        recipe, prior = built(split, mirror=True, eigenfaces=4)
        return prior, recipe.train(prior, split, None, told)

    _, log = assert_resumes(trained, (1, 2, 3), tmp_path, monkeypatch)
    assert len(log) == 3


def test_training_lowers_the_loss() -> None:
    split = public(8, count=4)
    recipe, prior = built(split, steps=80, lr=1e-2, attention=(), batch=16)
    x, noise = 2 * split.images.float() / 255 - 1, Noise(1, torch.arange(4))
    before = float(recipe.loss(prior, x, noise).detach())
    recipe.train(prior, split, None, session())
    with torch.no_grad():
        assert float(recipe.loss(prior, x, noise)) < 0.7 * before


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    found = [rate(step, 100, 0.1) for step in range(100)]
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert found[54] == pytest.approx(0.5) and found[99] == pytest.approx(0.0, abs=1e-12)
    assert all(after < before for before, after in pairwise(found[9:]))
    assert rate(0, 4, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_published_settings() -> None:
    paper = registry.configure("priors", "flow", "paper").plugin
    assert (paper.mean, paper.spread, paper.steps, paper.lr, paper.sampler_steps) == (-0.8, 0.8, 500_000, 2e-5, 50)
    assert registry.configure("priors", "flow", "quick", {"mean": "-1.5"}).plugin.mean == -1.5


@pytest.mark.parametrize(
    "settings",
    [{"width": 6, "heads": 2}, {"steps": 0}, {"decay": 1.0}, {"warm_up": 1.0}, {"spread": -1.0}, {"eigenfaces": -1}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="flow: ") as caught:
        registry.configure("priors", "flow", "quick", settings)
    assert "\n" not in str(caught.value)
