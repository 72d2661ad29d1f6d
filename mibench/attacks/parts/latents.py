"""What is searched: a point per reconstruction, or a distribution per identity."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.runtime.rng import Noise

__all__ = ["DiagonalGaussian", "Point"]


@dataclass
class Point:
    """One latent vector per reconstruction."""

    z: Float[Tensor, "n d"]

    def __post_init__(self) -> None:
        self.z = self.z.detach().clone().requires_grad_()

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.z]

    def draw(self, noise: Noise) -> Float[Tensor, "n d"]:
        """The point itself."""
        return self.z


@dataclass
class DiagonalGaussian:
    """N(mu, diag(exp(log_var))) per identity. Source: KEDMI, mu = 0 and log_var = 1 at the start."""

    mu: Float[Tensor, "n d"]
    log_var: Float[Tensor, "n d"]

    def __post_init__(self) -> None:
        self.mu = self.mu.detach().clone().requires_grad_()
        self.log_var = self.log_var.detach().clone().requires_grad_()

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.mu, self.log_var]

    def draw(self, noise: Noise) -> Float[Tensor, "n d"]:
        """mu + exp(log_var / 2) eps, eps ~ N(0, I): differentiable in mu and log_var."""
        return self.mu + torch.exp(0.5 * self.log_var) * noise.normal(self.mu.shape[1])
