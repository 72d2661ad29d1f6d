"""Where a latent is searched: a named space of the prior, and MIRROR's P-space box.

StyleGAN's w leaves a LeakyReLU of slope s. P-space undoes it, p = w for w >= 0 and w / s below, so that each coordinate
of p is about Gaussian and a box of mean +- std is a statement about how likely a face is.

References:
    | MIRROR: Model Inversion for Deep Learning Network with High Fidelity (An et al., NDSS 2022)
    | https://github.com/njuaplusplus/mirror
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Prior

__all__ = ["PSpace", "searched"]


def searched(prior: Prior, name: str) -> Prior:
    """The prior seen through the space called `name`; "auto" is w where the prior has it, else its first.

    Raises:
        UserError: If it has no such space.
    """
    if name == "auto":
        name = "w" if "w" in prior.spaces else prior.spaces[0]
    return prior.space(name)


@dataclass(frozen=True)
class PSpace:
    """p = leaky(w, 1 / slope) with the box mean +- std of the prior's own p, coordinate by coordinate.

    Args:
        slope: The activation's negative slope, in (0, 1]; 1 makes p = w.
        mean: The box's centre, in P-space.
        std: Its half-width, in P-space (population standard deviation, as in the authors' code).
    """

    slope: float
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]

    @classmethod
    def around(cls, w: Float[Tensor, "n d"], slope: float) -> "PSpace":
        """The box of samples of w."""
        p = F.leaky_relu(w, 1.0 / slope)
        return cls(slope, p.mean(dim=0), p.std(dim=0, correction=0))

    def features_at(self, w: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """w to p."""
        return F.leaky_relu(w, 1.0 / self.slope)

    def leave(self, p: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """p to w: the activation itself."""
        return F.leaky_relu(p, self.slope)

    def clip(self, p: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """p within the box."""
        return torch.clamp(p, self.mean - self.std, self.mean + self.std)

    def clip_w(self, w: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """w within the box mapped back: the activation is increasing, so the box's image is a box."""
        return torch.clamp(w, self.leave(self.mean - self.std), self.leave(self.mean + self.std))
