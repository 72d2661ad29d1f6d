"""Fréchet distance between real and reconstructed images, as Gaussians in feature space.

    FID = || m_r - m_g ||^2 + tr(C_r) + tr(C_g) - 2 tr( (C_r C_g)^(1/2) )

C is the unbiased covariance (n - 1). It is *the* FID only in the features of `metrics.inception`; in another
model's features it is a Fréchet distance and must be named `fid@<model>`.

With C = F^T F, the trace of the root is the sum of the singular values of F_r F_g^T. F is the centred feature
matrix itself, or its triangular factor where there are more images than dimensions: no square root of a
singular matrix is ever taken, and few images make it fast.

References:
    | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017)
    | https://arxiv.org/abs/1706.08500

Differs:
    No small multiple of the identity is added when covariances are singular (pytorch-fid adds 1e-6).
    FID is biased upward when images are few (below about 2,048): report n, and KID beside it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "Statistics", "frechet_distance", "statistics"]

CARD = {
    "summary": "Fréchet distance between private and reconstructed images, as Gaussians of features",
    "title": "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    "authors": "Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter",
    "venue": "NeurIPS",
    "year": 2017,
    "link": "https://arxiv.org/abs/1706.08500",
}

METRICS = (
    Metric(
        "fid",
        ("fid", "{model}"),
        Unit.DISTANCE,
        Direction.LOWER,
        "Fréchet distance to the private images, in Inception's features, or those of the model after the @",
        "[0, inf)",
        per=Per.SET,
        needs=(Need.FEATURES, Need.TRAIN),
        interval=False,
    ),
)


class Statistics(NamedTuple):
    """Mean and factor F of the covariance F^T F; all that the distance needs of one side, so real images are
    seen once."""

    mean: Float64[Tensor, " d"]
    factor: Float64[Tensor, "r d"]

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance."""
        return self.factor.T @ self.factor


def statistics(features: Float[Tensor, "n d"]) -> Statistics:
    """Mean and covariance factor in float64; r = min(n, d).

    Raises:
        ValueError: fewer than 2 images, NaN or infinite features.
    """
    require_finite("fid", "features", features)
    n, d = features.shape
    if n < 2:
        raise ValueError(f"fid: {n} image(s) have no covariance; give at least 2 (2,048 for a stable number)")
    x = features.double()
    mean = x.mean(dim=0)
    factor = (x - mean) / (n - 1) ** 0.5
    return Statistics(mean, torch.linalg.qr(factor, mode="r").R if n > d else factor)


def frechet_distance(real: Float[Tensor, "n d"] | Statistics, generated: Float[Tensor, "m e"] | Statistics) -> float:
    """Fréchet distance of two sets of features, or of their cached statistics. Real comes first.

    Raises:
        ValueError: fewer than 2 images on a side, NaN or infinite features, features of two sizes, overflow.
    """
    r = real if isinstance(real, Statistics) else statistics(real)
    g = generated if isinstance(generated, Statistics) else statistics(generated)
    if r.mean.shape != g.mean.shape:
        raise ValueError(
            f"fid: real features have {len(r.mean)} dimensions, generated {len(g.mean)}; take both from one model"
        )
    small, large = sorted((r.factor, g.factor), key=len)
    cross = small @ large.T
    # Eigenvalues of the smaller Gram matrix are the squared singular values, at a third of an SVD's cost.
    gram = cross @ cross.T
    apart = (r.mean - g.mean).square().sum() + r.factor.square().sum() + g.factor.square().sum()
    if not bool(torch.isfinite(gram).all() & torch.isfinite(apart)):
        raise ValueError("fid: the features are too large: their squares overflow")
    value = float(apart - 2 * torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum())
    # The true value is never negative; rounding can be, by about 1e-8 of the trace.
    return max(value, 0.0)
