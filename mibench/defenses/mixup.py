"""Mixup: each training image and its target are averaged with another's (control).

References:
    | mixup: Beyond Empirical Risk Minimization (Zhang et al., ICLR 2018)
    | https://arxiv.org/abs/1710.09412
    | Random Variate Generation in One Line of Code (Devroye, WSC 1996), the symmetric beta distribution
    | https://doi.org/10.1145/256562.256623
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from mibench.core import Batch, Defense, Step
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Mixup", "symmetric_beta"]

CARD = {
    "summary": "average each training image and its target with another's",
    "title": "mixup: Beyond Empirical Risk Minimization",
    "authors": "Zhang, Cisse, Dauphin and Lopez-Paz",
    "venue": "ICLR",
    "year": 2018,
    "link": "https://arxiv.org/abs/1710.09412",
    "strength": "alpha",
    "grid": [0.1, 0.2, 0.5, 1.0],
    "adaptive": {},
    "role": "control",
    "zero": {"alpha": 0.0},
}

PRESETS = {"paper": {"alpha": 0.2}}
"""ImageNet."""


def symmetric_beta(alpha: float, noise: Noise) -> Float64[Tensor, " n"]:
    """Beta(alpha, alpha), one draw for each stream of the noise, from two uniforms and without rejection.

    1/2 + sign(C) / (2 sqrt(1 + 1 / R)) with C = cos(2 pi v) and R = (u^(-1/alpha) - 1) C^2: C sqrt(u^(-1/alpha) - 1)
    is a Student t variable (2 alpha degrees of freedom, up to scale), which T / sqrt(1 + T^2) makes a beta one.
    """
    u, v = noise.of("beta").uniform(2).double().unbind(1)
    c = torch.cos(2.0 * math.pi * v)
    r = ((1.0 - u) ** (-1.0 / alpha) - 1.0) * c.square()  # 1 - u > 0; an infinite r gives exactly 0 or 1
    return 0.5 + 0.5 * c.sign() / torch.sqrt(1.0 + 1.0 / r)


@dataclass(frozen=True)
class Mixup(Defense):
    """x' = l x + (1 - l) x_partner and t' = l t + (1 - l) t_partner, l ~ Beta(alpha, alpha) for each image.

    Nothing is erased (mean erased share 0); on average half of a target is the partner's. Partners are a permutation of
    the batch's own images. Rows that other defenses have added stay as they are.

    Args:
        alpha: Of the beta distribution; 0 mixes nothing, 1 is uniform, the paper's is .2 on ImageNet (.1 to .4).

    Source: section 2 of the paper. Differs: l is drawn for each image, not for a batch.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise UserError(f"mixup: alpha must be >= 0 and finite, got {self.alpha}")

    def batch(self, batch: Batch, step: Step) -> Batch:
        """Mix the clean rows."""
        if self.alpha == 0:
            return batch
        own, t = batch.x[: batch.clean], batch.t[: batch.clean]
        kept = symmetric_beta(self.alpha, step.noise).to(own.dtype)[:, None]
        partner = step.noise.of("partner").uniform().argsort()
        x = torch.lerp(own[partner], own, kept[:, :, None, None])
        t = kept * t + (1.0 - kept) * t[partner]
        return replace(batch, x=torch.cat([x, batch.x[batch.clean :]]), t=torch.cat([t, batch.t[batch.clean :]]))
