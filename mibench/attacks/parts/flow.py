"""Distributions of latents, one per identity, that a variational attack fits: a full Gaussian and a normalising flow.

The parameters of all identities are stacked along the first axis and applied by batched matrix products, so that any
number of identities is one launch and none of them sees another.

References:
    | Variational Model Inversion Attacks (Wang et al., NeurIPS 2021)
    | https://arxiv.org/abs/2201.10787
    | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, NeurIPS 2018), the step of a flow
    | https://arxiv.org/abs/1807.03039
    | NICE: Non-linear Independent Components Estimation (Dinh, Krueger and Bengio, 2014), the additive coupling
    | https://arxiv.org/abs/1410.8516
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.runtime.rng import Noise, generator

__all__ = ["Flow", "FullGaussian"]


@dataclass
class FullGaussian:
    """N(m, s^2 L L^T) per identity, L any square matrix; it starts as N(0, s^2 I).

    Args:
        count: Identities.
        dim: Of the latent.
        device: Where.
        scale: s, fixed.
    """

    count: int
    dim: int
    device: torch.device
    scale: float = 1.0
    mean: Float[Tensor, "n d"] = field(init=False)
    factor: Float[Tensor, "n d d"] = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.count, self.dim, device=self.device, requires_grad=True)
        identity = torch.eye(self.dim, device=self.device)
        self.factor = identity.repeat(self.count, 1, 1).requires_grad_()

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.mean, self.factor]

    def draw(self, noise: Noise) -> Float[Tensor, "m d"]:
        """m + s L eps: an equal number of draws for each identity, in a row, one per stream of the noise."""
        eps = self.scale * noise.normal(self.dim).reshape(self.count, -1, self.dim)
        with torch.autocast(self.device.type, enabled=False):
            z = self.mean[:, None] + eps @ self.factor.mT
        return z.reshape(-1, self.dim)

    def kl(self, z: Float[Tensor, "m d"], noise: Noise) -> Float[Tensor, " m"]:
        """KL(q | N(0, I)) = (|sL|^2 + |m|^2 - d) / 2 - log |det sL|, the same for all draws of an identity.

        Differs: the authors estimate E|z|^2 from 1,000 draws.
        """
        wide = self.scale * self.factor
        square = wide.square().sum(dim=(1, 2)) + self.mean.square().sum(dim=1) - self.dim
        with torch.autocast(self.device.type, enabled=False):
            determinant = torch.linalg.slogdet(wide).logabsdet
        return (0.5 * square - determinant).repeat_interleave(len(z) // self.count)


@dataclass
class Flow:
    """z = f(s eps), eps ~ N(0, I), f steps of actnorm, permutation, additive coupling; it starts as N(0, s^2 I).

    actnorm: x <- exp(a) x + b. Coupling: x = (u, v) <- (u, v + net(u)) with net = Linear, ELU, Linear, ELU, Linear,
    whose last layer starts at 0. The permutations are the same for all identities.

    Args:
        noise: One stream per identity: their nets' first weights.
        dim: Of the latent.
        steps: Of the flow.
        hidden: Width of the nets.
        scale: s, fixed.

    Differs: one level (the authors' Glow splits off half of the channels at each of 3 levels). They draw through the
    inverse of such steps, with actnorms, set from 100 draws, inside the coupling nets too and a learnt scale on what
    these give; and they estimate the KL from draws of its own.
    """

    noise: Noise
    dim: int
    steps: int
    hidden: int
    scale: float = 1.0
    orders: list[Int64[Tensor, " d"]] = field(init=False)
    layers: list[dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        device, count = self.noise.keys.device, len(self.noise.keys)
        given, moved, hidden = self.dim // 2, self.dim - self.dim // 2, self.hidden
        self.orders, self.layers = [], []
        for step in range(self.steps):
            order = torch.randperm(self.dim, generator=generator(self.noise.seed, "flow", step))
            self.orders.append(order.to(device))
            draw = self.noise.of("flow", step)
            first = draw.of("first").normal(given, hidden) / math.sqrt(max(given, 1))
            layer = {
                "scale": torch.zeros(count, 1, self.dim, device=device),
                "shift": torch.zeros(count, 1, self.dim, device=device),
                "w1": first,
                "b1": torch.zeros(count, 1, hidden, device=device),
                "w2": draw.of("second").normal(hidden, hidden) / math.sqrt(hidden),
                "b2": torch.zeros(count, 1, hidden, device=device),
                "w3": torch.zeros(count, hidden, moved, device=device),
                "b3": torch.zeros(count, 1, moved, device=device),
            }
            self.layers.append({name: value.requires_grad_() for name, value in layer.items()})

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [value for layer in self.layers for value in layer.values()]

    def forward(self, x: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
        """f, on m points for each identity."""
        half = self.dim // 2
        with torch.autocast(x.device.type, enabled=False):
            for order, layer in zip(self.orders, self.layers, strict=True):
                x = (x * layer["scale"].exp() + layer["shift"])[..., order]
                u, v = x[..., :half], x[..., half:]
                x = torch.cat([u, v + _net(layer, u)], dim=2)
        return x

    def inverse(self, x: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
        """f^-1."""
        half = self.dim // 2
        with torch.autocast(x.device.type, enabled=False):
            for order, layer in zip(reversed(self.orders), reversed(self.layers), strict=True):
                u, v = x[..., :half], x[..., half:]
                x = torch.cat([u, v - _net(layer, u)], dim=2)[..., order.argsort()]
                x = (x - layer["shift"]) / layer["scale"].exp()
        return x

    def log_determinant(self) -> Float[Tensor, " n"]:
        """log |det df/dx|, the same everywhere: the sum of all scales, because couplings keep the volume."""
        return torch.stack([layer["scale"].sum(dim=(1, 2)) for layer in self.layers]).sum(dim=0)

    def draw(self, noise: Noise) -> Float[Tensor, "m d"]:
        """An equal number of draws for each identity, in a row, one per stream of the noise."""
        count = len(self.noise.keys)
        return self.forward(self.scale * noise.normal(self.dim).reshape(count, -1, self.dim)).reshape(-1, self.dim)

    def kl(self, z: Float[Tensor, "m d"], noise: Noise) -> Float[Tensor, " m"]:
        """log q(z) - log N(z; 0, I) = (|z|^2 - |eps|^2) / 2 - log |det df/dx| - d log s at each draw.

        Its mean is the KL. `noise` is what `draw` got, so that eps is known and nothing is inverted.
        """
        eps = noise.normal(self.dim)
        each = len(z) // len(self.noise.keys)
        square = z.square().sum(dim=1) - eps.square().sum(dim=1)
        determinant = self.log_determinant() + self.dim * math.log(self.scale)
        return 0.5 * square - determinant.repeat_interleave(each)


def _net(layer: dict[str, Tensor], u: Float[Tensor, "n s a"]) -> Float[Tensor, "n s b"]:
    """The coupling's net, one set of weights per identity."""
    x = F.elu(torch.baddbmm(layer["b1"], u, layer["w1"]))
    x = F.elu(torch.baddbmm(layer["b2"], x, layer["w2"]))
    return torch.baddbmm(layer["b3"], x, layer["w3"])
