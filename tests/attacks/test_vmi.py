"""VMI: its distributions against closed forms and autograd, its steps against the formula, identities apart."""

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import LinearPrior, World, attack_on, workspace

from mibench.attacks.parts.flow import Flow, FullGaussian
from mibench.attacks.vmi import VMI
from mibench.core import AttackContext, Prior
from mibench.plugins import capabilities, registry
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

CPU = torch.device("cpu")


def moved(q: Flow | FullGaussian, size: float = 0.2) -> None:
    """Every parameter somewhere else than at its start."""
    with torch.no_grad():
        for place, parameter in enumerate(q.parameters()):
            parameter += size * Noise(7, torch.arange(len(parameter))).of(place).normal(*parameter.shape[1:])


def flow(count: int = 3, dim: int = 5, scale: float = 1.0) -> Flow:
    return Flow(Noise(2, torch.arange(count)), dim, 4, 6, scale)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_gaussians_kl_is_torchs(scale: float) -> None:
    q = FullGaussian(3, 6, CPU, scale)
    moved(q)
    noise = Noise(1, torch.arange(6))
    found = q.kl(q.draw(noise), noise)
    standard = torch.distributions.MultivariateNormal(torch.zeros(6), torch.eye(6))
    for identity in range(3):
        lower = scale * q.factor[identity].detach()
        one = torch.distributions.MultivariateNormal(q.mean[identity].detach(), lower @ lower.T)
        expected = torch.distributions.kl_divergence(one, standard)
        torch.testing.assert_close(found[2 * identity : 2 * identity + 2].detach(), expected.repeat(2))


def test_the_gaussians_draws_have_its_moments() -> None:
    q = FullGaussian(1, 3, CPU, 0.5)
    moved(q)
    z = q.draw(Noise(4, torch.arange(200_000))).detach()
    lower = 0.5 * q.factor[0].detach()
    torch.testing.assert_close(z.mean(dim=0), q.mean[0].detach(), rtol=0, atol=0.01)
    torch.testing.assert_close(z.T.cov(), lower @ lower.T, rtol=0, atol=0.01)


@pytest.mark.parametrize("family", ["flow", "gaussian"])
def test_both_start_as_the_prior_itself(family: str) -> None:
    noise = Noise(9, torch.arange(12))
    q = flow() if family == "flow" else FullGaussian(3, 5, CPU)
    z = q.draw(noise)
    torch.testing.assert_close(z.sort(dim=1).values, noise.normal(5).sort(dim=1).values)  # a flow permutes
    torch.testing.assert_close(q.kl(z, noise), torch.zeros(12), rtol=0, atol=1e-5)


def test_a_narrow_start_costs_what_a_narrow_gaussian_costs() -> None:
    """KL(N(0, s^2 I_d) | N(0, I_d)) = d (s^2 - 1 - 2 log s) / 2."""
    expected = 5 * (0.3**2 - 1 - 2 * math.log(0.3)) / 2
    noise = Noise(9, torch.arange(60_000))
    for q in (flow(scale=0.3), FullGaussian(3, 5, CPU, 0.3)):
        assert float(q.kl(q.draw(noise), noise).detach().mean()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("dim", [2, 5, 8])
def test_the_flow_is_invertible_and_its_determinant_is_the_jacobians(dim: int) -> None:
    q = flow(dim=dim)
    moved(q)
    x = Noise(3, torch.arange(3)).normal(4, dim)
    z = q.forward(x)
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(q.inverse(z), x, rtol=1e-4, atol=1e-4)
    for identity in range(3):
        for point in range(2):

            def one(value: Tensor, identity: int = identity) -> Tensor:
                return q.forward(value[None, None].expand(3, 1, -1))[identity, 0]

            jacobian = torch.autograd.functional.jacobian(one, x[identity, point])
            torch.testing.assert_close(jacobian.slogdet().logabsdet, q.log_determinant()[identity].detach())


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_the_flows_kl_is_the_log_ratio_of_the_densities(scale: float) -> None:
    """log q(z) by the change of variables through the inverse, not through the known eps."""
    q = flow(dim=6, scale=scale)
    moved(q)
    noise = Noise(8, torch.arange(9))
    z = q.draw(noise).detach()
    base = q.inverse(z.reshape(3, 3, 6)).reshape(9, 6)
    normal = torch.distributions.Normal(0.0, scale)
    log_q = normal.log_prob(base).sum(dim=1) - q.log_determinant().repeat_interleave(3)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    torch.testing.assert_close(q.kl(z, noise), log_q - log_p, rtol=1e-4, atol=1e-3)


def test_identities_do_not_see_each_other() -> None:
    q, alone = flow(), Flow(Noise(2, torch.tensor([1])), 5, 4, 6)
    for many, one in zip(q.parameters(), alone.parameters(), strict=True):
        assert torch.equal(many[1:2], one)
    moved(q)
    x = Noise(3, torch.arange(3)).normal(2, 5).requires_grad_()
    q.forward(x)[1].sum().backward()
    assert x.grad is not None and x.grad[1].abs().min() > 0 and x.grad[[0, 2]].abs().max() == 0


def test_draws_are_float32_under_autocast() -> None:
    """bf16 would keep 8 bits of a latent."""
    for q in (flow(), FullGaussian(3, 5, CPU)):
        moved(q)
        noise = Noise(1, torch.arange(6))
        plain = q.draw(noise)
        with Engine(CPU, "bf16").autocast():
            assert torch.equal(q.draw(noise), plain)


def distribution(family: str, labels: Tensor, seed: int, dim: int, attack: VMI) -> Flow | FullGaussian:
    if family == "gaussian":
        return FullGaussian(len(labels), dim, CPU, attack.scale)
    return Flow(Noise(seed, labels).of("vmi"), dim, attack.flow_steps, attack.flow_hidden, attack.scale)


@pytest.mark.parametrize("family", ["flow", "gaussian"])
def test_it_takes_the_published_steps(family: Any) -> None:
    """SGD 1e-4 with momentum .9 on the mean over 4 draws of CE + 1e-3 KL, for each identity by itself."""
    world, labels = World(5), torch.tensor([3, 1])
    attack = VMI(images=3, steps=0, samples=4, family=family, flow_steps=3, flow_hidden=8)
    q = distribution(family, labels, 5, world.prior.latent_dim, attack)
    velocity = [torch.zeros_like(parameter) for parameter in q.parameters()]
    stream = Noise(5, (labels[:, None] * 4 + torch.arange(4)).flatten()).of("vmi")
    last = Noise(5, (labels[:, None] * 3 + torch.arange(3)).flatten()).of("vmi-final")
    y = labels.repeat_interleave(4)
    for step in range(4):
        found = VMI(images=3, steps=step, samples=4, family=family, flow_steps=3, flow_hidden=8)(
            world.oracle(), world.prior, labels, 5, AttackContext()
        )
        torch.testing.assert_close(found.latents, q.draw(last).detach(), rtol=0, atol=1e-5)
        drawn = stream.of("step", step)
        z = q.draw(drawn)
        values = F.cross_entropy(world.target(world.prior.decode(z)), y, reduction="none")
        if family == "gaussian":
            wide = q.factor @ q.factor.mT  # type: ignore[union-attr]
            trace = wide.diagonal(dim1=1, dim2=2).sum(dim=1)
            kl = 0.5 * (trace - q.mean.shape[1] + q.mean.square().sum(dim=1) - torch.logdet(wide))  # type: ignore[union-attr]
        else:
            kl = q.kl(z, drawn).reshape(2, 4).mean(dim=1)
        loss = values.reshape(2, 4).mean(dim=1) + 1e-3 * kl
        gradients = torch.autograd.grad(loss.sum(), q.parameters())
        with torch.no_grad():
            for parameter, v, g in zip(q.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g)
                parameter -= 1e-4 * v


@pytest.mark.parametrize("family", ["flow", "gaussian"])
def test_both_families_succeed_and_narrow_down(family: str) -> None:
    world = World(10)
    found = attack_on(world, "vmi", family=family, images=4)
    assert (world.truth(found.images) == found.labels).float().mean() >= 0.9
    same = found.latents.reshape(10, 4, -1)
    assert same.std(dim=1).mean() < same.mean(dim=1).std(dim=0).mean()  # draws of one identity resemble each other


def test_the_kl_keeps_the_latents_where_the_prior_is() -> None:
    def length(kl_weight: float) -> float:
        return float(attack_on(World(6), "vmi", kl_weight=kl_weight).latents.square().mean())

    assert length(0.3) < length(0.0)


class TwoSpaces(LinearPrior):
    """Its w is 3 z + 2."""

    spaces: ClassVar[tuple[str, ...]] = ("z", "w")

    def space(self, name: str) -> Prior:
        return self if name == "z" else Shifted(self)


class Shifted(Prior):
    def __init__(self, inner: Prior) -> None:
        super().__init__()
        self.inner = [inner]
        self.latent_dim, self.image_shape = inner.latent_dim, inner.image_shape

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.inner[0].decode((z - 2) / 3)

    def sample(self, noise: Noise) -> Tensor:
        return 3 * noise.normal(self.latent_dim) + 2


def test_in_w_the_distribution_starts_as_the_priors_own_w() -> None:
    world, prior = World(4), TwoSpaces(6, "none")
    attack = registry.configure("attacks", "vmi", "quick", {"space": "w", "steps": 0, "images": 2000, "scale": 1.0})
    found = attack.plugin(world.oracle(), prior, torch.tensor([0]), 0, workspace(world))
    std, mean = torch.std_mean(found.latents)
    assert float(std) == pytest.approx(3.0, abs=0.15) and float(mean) == pytest.approx(2.0, abs=0.15)
    torch.testing.assert_close(found.images, prior.decode((found.latents - 2) / 3))


def test_what_makes_no_sense_is_refused() -> None:
    world = World(4)
    with pytest.raises(UserError, match="no w space"):
        capabilities.require(VMI(space="w"), world.prior)
    capabilities.require(VMI(), world.prior)
    for setting in ({"images": 0}, {"samples": 0}, {"flow_steps": 0}, {"flow_hidden": 0}, {"scale": 0.0}):
        with pytest.raises(UserError, match="vmi: "):
            registry.configure("attacks", "vmi", settings=setting)


def test_the_published_cost() -> None:
    """20 epochs of 157 steps of 64 images."""
    attack = registry.configure("attacks", "vmi", "paper").plugin
    assert attack.cost(World(4).prior) == (20 * 157 * 64, 20 * 157 * 64, 0)
    assert (attack.lr, attack.momentum, attack.kl_weight, attack.images, attack.scale) == (1e-4, 0.9, 1e-3, 50, 1.0)
