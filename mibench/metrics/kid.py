"""Kernel Inception distance: the squared maximum mean discrepancy of real and reconstructed images.

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
    k(x, y) = (x.y / d + 1)^3

Unbiased at every n, unlike FID: 0 on average when both sets come from one distribution, so it can be
negative.

References:
    | Demystifying MMD GANs (Bińkowski et al., 2018)
    | https://arxiv.org/abs/1801.01401
    | Jackknifing U-statistics (Arvesen, 1969), the standard error
    | https://doi.org/10.1214/aoms/1177697287

Differs:
    All images are used, once. The usual average over 100 random subsets of 1,000 adds noise of its own, and
    its spread over subsets is not a standard error. Not multiplied by 1,000.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "KernelDistance", "kernel_distance"]

CARD = {
    "summary": "squared kernel discrepancy between private and reconstructed images in Inception features",
    "title": "Demystifying MMD GANs",
    "authors": "Binkowski, Sutherland, Arbel and Gretton",
    "venue": "ICLR",
    "year": 2018,
    "link": "https://arxiv.org/abs/1801.01401",
}

METRICS = (
    Metric(
        "kid",
        ("kid", "{model}"),
        Unit.DISTANCE,
        Direction.LOWER,
        "squared kernel discrepancy to the private images, in Inception's features, or those of the model after the @",
        "(-inf, inf), 0 for equal distributions",
        per=Per.SET,
        needs=(Need.FEATURES, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "kid_error",
        ("kid", "error"),
        Unit.DISTANCE,
        Direction.NEITHER,
        "standard error of kid, by the jackknife",
        "[0, inf)",
        per=Per.SET,
        needs=(Need.FEATURES, Need.TRAIN),
        interval=False,
    ),
)

_CHUNK = 1 << 22
"""Kernel values held at once."""


class KernelDistance(NamedTuple):
    """The distance and its standard error (delete-one jackknife; too large, never too small, where the
    distance is 0)."""

    value: float
    error: float


def _row_sums(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " m"]]:
    """Sums of k(x_i, y_j) over j and over i."""
    over_x = x.new_zeros(len(y))
    rows = []
    for part in x.split(max(1, _CHUNK // len(y))):
        kernel = (part @ y.T / x.shape[1] + 1).pow(3)
        rows.append(kernel.sum(dim=1))
        over_x += kernel.sum(dim=0)
    return torch.cat(rows), over_x


def _others(x: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Sum of k(x_i, x_j) over j != i."""
    return _row_sums(x, x)[0] - (x.square().sum(dim=1) / x.shape[1] + 1).pow(3)


def _jackknife(own: Float64[Tensor, " n"], cross: Float64[Tensor, " n"], m: int) -> Float64[Tensor, ""]:
    """Variance of the estimate from leaving out one image of one side at a time."""
    n = len(own)
    without = (own.sum() - 2 * own) / ((n - 1) * (n - 2)) - 2 * (cross.sum() - cross) / ((n - 1) * m)
    return (n - 1) * without.var(correction=0)


def kernel_distance(real: Float[Tensor, "n d"], generated: Float[Tensor, "m e"]) -> KernelDistance:
    """KID of two sets of features, with its standard error. Real comes first.

    Raises:
        ValueError: fewer than 3 images on a side (the jackknife leaves one out), NaN or infinite features,
            features of
            two sizes, overflow.
    """
    require_finite("kid", "real features", real)
    require_finite("kid", "generated features", generated)
    if min(len(real), len(generated)) < 3:
        raise ValueError(f"kid: {len(real)} real, {len(generated)} generated images; give at least 3 of each")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"kid: real features have {real.shape[1]} dimensions, generated {generated.shape[1]}; take both "
            "from one model"
        )
    x, y = real.double(), generated.double()
    n, m = len(x), len(y)
    xx, yy = _others(x), _others(y)
    xy, yx = _row_sums(x, y)
    value = float(xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * xy.sum() / (n * m))
    error = float((_jackknife(xx, xy, m) + _jackknife(yy, yx, n)).sqrt())
    if not abs(value) < float("inf") or not error < float("inf"):
        raise ValueError(f"kid: the distance is {value} +- {error}; the features are too large to cube")
    return KernelDistance(value, error)
