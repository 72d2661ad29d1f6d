"""Precision, recall, density and coverage: how far reconstructions lie among real images, and these among them.

    r_k(x_i) = distance of x_i to its k-th nearest *other* image of its own set
    precision = mean_j 1[ exists i: |x_i - y_j| < r_k(x_i) ]
    recall    = mean_i 1[ exists j: |x_i - y_j| < r_k(y_j) ]
    density   = 1 / (k m) sum_ij 1[ |x_i - y_j| < r_k(x_i) ]
    coverage  = mean_i 1[ exists j: |x_i - y_j| < r_k(x_i) ]

x are n real images, y are m generated ones, both as features. Precision and density say whether reconstructions look
real, recall and coverage whether they show all of what is real. With a few more images than k every ball spans most of
the set and all four say little: report n beside them.

References:
    | Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019), the first two
    | https://arxiv.org/abs/1904.06991
    | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020), the last two, and k = 5
    | https://arxiv.org/abs/2002.09797

Differs:
    Plug & Play Attacks (https://github.com/LukasStruppek/Plug-and-Play-Attacks) and the Model-Inversion-Attack-ToolBox
    (https://github.com/ffhibnese/Model-Inversion-Attack-ToolBox) divide density by k n: their number is ours times
    m / n. They take k = 3, one identity at a time, where this takes all attacked identities together.
    A point on a ball's edge lies outside, as in the package `prdc`; torch-fidelity counts it as inside.
    Distances are taken exactly, in float64: |a|^2 - 2ab + |b|^2 depends on the batch, and moves points over an edge.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.runtime.errors import UserError
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "PRDC", "K", "Manifold", "manifold", "prdc"]

CARD = {
    "summary": "precision, recall, density and coverage of reconstructions among private images, in features",
    "title": "Reliable Fidelity and Diversity Metrics for Generative Models",
    "authors": "Naeem, Oh, Uh, Choi and Yoo",
    "venue": "ICML",
    "year": 2020,
    "link": "https://arxiv.org/abs/2002.09797",
}

METRICS = (
    Metric(
        "precision",
        ("preci-", "sion"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of reconstructions that lie among private images, in features",
        "[0, 1]",
        per=Per.SET,
        needs=(Need.FEATURES, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "recall",
        ("", "recall"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of private images that lie among reconstructions, in features",
        "[0, 1]",
        per=Per.SET,
        needs=(Need.FEATURES, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "density",
        ("", "density"),
        Unit.NUMBER,
        Direction.HIGHER,
        "how many private images' balls a reconstruction lies in, over k: precision without its jumps",
        "[0, inf)",
        per=Per.SET,
        needs=(Need.FEATURES, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "coverage",
        ("cover-", "age"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of private images that have a reconstruction nearer than their k-th nearest other private image",
        "[0, 1]",
        per=Per.SET,
        needs=(Need.FEATURES, Need.TRAIN),
        interval=False,
    ),
)

K = 5
"""Neighbours, where nothing else is said."""

_CHUNK = 1 << 22
"""Distances held at once: 32 MiB."""


MANY = 4096
"""Real images above which neighbours and balls are sought in float32 first."""

SPARE = 16


class Manifold(NamedTuple):
    """One side: its features and the radius of each image's ball, so that real images are measured once."""

    features: Float64[Tensor, "n d"]
    radii: Float64[Tensor, " n"]
    k: int


class PRDC(NamedTuple):
    """The four numbers; density may exceed 1, where balls overlap."""

    precision: float
    recall: float
    density: float
    coverage: float


def _rows(x: Float64[Tensor, "n *d"], y: Float64[Tensor, "m e"]) -> tuple[Tensor, ...]:
    """The rows of x in parts whose distances to y fit."""
    return x.split(max(1, _CHUNK // len(y)))


def _distances(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """L2, from the differences themselves: |x - y| and |y - x| have the same bits, whoever else is in the batch.

    A root keeps the order of squares, so comparing it with a radius, a root too, compares squares with squares.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Float64[Tensor, "n d"], k: int, of: Float64[Tensor, "m d"] | None = None) -> Float64[Tensor, " m"]:
    """Distance of each image to its k-th nearest other one; of some of the images, if they are given."""
    # Each image is its own nearest, at exactly 0, so the k-th other one is the (k + 1)-th smallest.
    parts = _rows(x if of is None else of, x)
    return torch.cat([_distances(part, x).kthvalue(k + 1, dim=1).values for part in parts])


def _bound(norms: Float32[Tensor, " n"], others: Float32[Tensor, " m"], d: int) -> Float32[Tensor, " n"]:
    """How far a squared distance by float32 products may be from the true one, of d dimensions and such squared norms.

    Each of the d products and sums of a scalar product is rounded once, and so are the norms and what is added; below
    `tiny` nothing is sure.
    """
    kind = torch.finfo(torch.float32)
    return kind.eps * (d + 8) * (norms.sqrt() + others.max().sqrt()).square() + d * kind.tiny


def _radii_of_many(x: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """The same bits as `_radii`, with most pairs looked at in float32 only, by a matrix product.

    An image's candidates are its k + 17 nearest by the product, whose error is at most b. No other image can be among
    the k nearest if the last candidate is more than 2 b further than the (k + 1)-th: where that does not hold (many
    copies, say), the image is compared with all others. Distances that count are taken from the differences.
    """
    near, n = k + 1 + SPARE, len(x)
    centred = (x - x.mean(dim=0)).float()
    norms = centred.square().sum(dim=1)
    bound = _bound(norms, norms, x.shape[1])
    radii, unsure, step = torch.empty(n, dtype=torch.float64, device=x.device), [], max(1, _CHUNK // n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        apart = torch.addmm(norms[None], centred[rows], centred.T, alpha=-2).add_(norms[rows, None])
        first, chosen = apart.topk(near, dim=1, largest=False)
        exact = torch.cdist(x[rows, None], x[chosen], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
        radii[rows] = exact.kthvalue(k + 1, dim=1).values
        unsure.append(~(first[:, -1] - first[:, k] > 2 * bound[rows]))
    again = torch.cat(unsure).nonzero()[:, 0]
    if len(again):
        radii[again] = _radii(x, k, x[again])
    return radii


Within = Iterator[tuple[Bool[Tensor, "p m"], Bool[Tensor, "p m"]]]
"""Of some real images at a time and every generated one: whether it lies in the real one's ball, and the real one in
its."""


def _within(r: Manifold, g: Manifold) -> Within:
    for part, radii in zip(_rows(r.features, g.features), _rows(r.radii, g.features), strict=True):
        distances = _distances(part, g.features)
        yield distances < radii[:, None], distances < g.radii


def _within_many(r: Manifold, g: Manifold) -> Within:
    """The same, with most pairs looked at in float32 only, as in `_radii_of_many`: a pair whose product lies so near to
    the square of a radius that rounding could decide is compared by its differences."""
    middle = r.features.mean(dim=0)
    x, y = (r.features - middle).float(), (g.features - middle).float()
    norms, others = x.square().sum(dim=1), y.square().sum(dim=1)
    # Twice, for the radii's squares are rounded too; what overflows is decided by differences.
    bound = 2 * _bound(norms, others, x.shape[1])
    own, their = r.radii.square().float(), g.radii.square().float()
    step = max(1, _CHUNK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        apart = torch.addmm(others[None], x[rows], y.T, alpha=-2).add_(norms[rows, None])
        within, unsure = [], torch.zeros_like(apart, dtype=torch.bool)
        for squares in (own[rows, None], their[None]):
            over = apart - squares
            within.append(over < 0)
            unsure |= ~(over.abs_() > bound[rows, None])
        at, other = unsure.nonzero(as_tuple=True)
        for some, others_ in zip(at.split(_CHUNK // 256), other.split(_CHUNK // 256), strict=True):
            pairs = r.features[rows][some, None], g.features[others_, None]
            exact = torch.cdist(*pairs, compute_mode="donot_use_mm_for_euclid_dist")[:, 0, 0]
            within[0][some, others_] = exact < r.radii[rows][some]
            within[1][some, others_] = exact < g.radii[others_]
        yield within[0], within[1]


def manifold(features: Float[Tensor, "n d"], k: int = K) -> Manifold:
    """Features with the distance of each image to its k-th nearest other one; a second copy counts, at distance 0.

    Raises:
        UserError: k below 1, or not below the number of images.
        ValueError: NaN or infinite features, or an overflow of their squares.
    """
    require_finite("prdc", "features", features)
    n = len(features)
    if not 1 <= k < n:
        raise UserError(
            f"prdc: {k} nearest neighbours asked for among {n} image(s); each image has {max(n - 1, 0)} other(s): give "
            f"more than {max(k, 1)} images, or k from 1 to {max(n - 1, 1)}"
        )
    x = features.double()
    radii = _radii(x, k) if n <= MANY else _radii_of_many(x, k)
    if not bool(torch.isfinite(radii).all()):
        raise ValueError("prdc: the features are too large: their squares overflow")
    return Manifold(x, radii, k)


def prdc(real: Float[Tensor, "n d"] | Manifold, generated: Float[Tensor, "m e"] | Manifold, k: int = K) -> PRDC:
    """Precision, recall, density and coverage of two sets of features, or of what `manifold` made. Real comes first.

    Raises:
        UserError: k below 1, or not below the number of images of a side.
        ValueError: NaN, infinite or too large features, features of two sizes, manifolds with two k.
    """
    r = real if isinstance(real, Manifold) else manifold(real, k)
    g = generated if isinstance(generated, Manifold) else manifold(generated, k)
    if r.features.shape[1] != g.features.shape[1]:
        raise ValueError(
            f"prdc: real features have {r.features.shape[1]} dimensions, generated {g.features.shape[1]}; take both "
            "from one model"
        )
    if r.k != g.k:
        raise ValueError(f"prdc: the real images' balls were made with k = {r.k}, the others' with {g.k}; take one k")
    n, m = len(r.features), len(g.features)
    inside = torch.zeros(m, dtype=torch.int64, device=r.features.device)
    covered = recalled = 0
    for balls, theirs in _within(r, g) if n <= MANY else _within_many(r, g):
        inside += balls.sum(dim=0)
        covered += int(balls.any(dim=1).sum())
        recalled += int(theirs.any(dim=1).sum())
    # The balls are the real images': the number of points in them grows with m, so m it is divided by.
    return PRDC(int((inside > 0).sum()) / m, recalled / n, int(inside.sum()) / (r.k * m), covered / n)
