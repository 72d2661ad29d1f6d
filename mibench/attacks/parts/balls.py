"""Keeping a search near where it began, in L1 balls."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.runtime.rng import Noise

__all__ = ["Inside", "project_l1"]


@torch.no_grad()
def project_l1(x: Float[Tensor, "n d"], radius: float) -> Float[Tensor, "n d"]:
    """Each row's nearest point (Euclidean) with |x|_1 <= radius; a row inside stays as it is, bit for bit.

    Outside it is sign(x) max(|x| - t, 0), t = (sum_{i <= m} u_i - radius) / m, u = |x| sorted downwards and m the last
    place where u_m > (sum_{i <= m} u_i - radius) / m.

    Source: Efficient Projections onto the l1-Ball for Learning in High Dimensions (Duchi et al., ICML 2008).
    """
    size = x.abs()
    outside = size.sum(dim=1, keepdim=True) > radius
    if x.device.type == "cpu" and not bool(outside.any()):
        return x  # reading an answer costs nothing on a CPU, sorting does
    u = size.sort(dim=1, descending=True).values
    over = (u.cumsum(dim=1) - radius) / torch.arange(1, x.shape[1] + 1, device=x.device)
    last = (u > over).sum(dim=1, keepdim=True).clamp(min=1) - 1
    return torch.where(outside, x.sign() * (size - over.gather(1, last)).clamp(min=0.0), x)


@dataclass
class Inside:
    """A latent and, after the first stage, features of one place: both are moved, each within its ball."""

    z: Float[Tensor, "n d"]
    features: Float[Tensor, "n f"] | None
    radius: float
    centres: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.z = self.z.detach().clone().requires_grad_()
        if self.features is not None:
            self.features = self.features.detach().clone().requires_grad_()
        self.centres = [parameter.detach().clone() for parameter in self.parameters()]

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.z] if self.features is None else [self.z, self.features]

    def draw(self, noise: Noise) -> Float[Tensor, "n d"]:
        """The latent."""
        return self.z

    @torch.no_grad()
    def project(self) -> None:
        """Back into the balls |z - z0|_1 <= radius and |h - h0|_1 <= radius."""
        for parameter, centre in zip(self.parameters(), self.centres, strict=True):
            parameter.copy_(centre + project_l1(parameter - centre, self.radius))
