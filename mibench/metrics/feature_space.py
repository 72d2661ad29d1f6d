"""Where reconstructions lie in a classifier's features: among the private images, or among their erased versions.

The paper on random erasing shows pictures: reconstructions from an undefended target fall inside the convex hull of
the person's private images, those from a defended one inside the hull of the erased images. Here are numbers for it:

- Fréchet distance: `mibench.metrics.fid.frechet_distance` in these features;
- squared maximum mean discrepancy, unbiased, with k(x, y) = exp(-||x - y||^2 / (2 s^2)), s the median distance between
  private images (the median heuristic). The polynomial kernel of `kid` depends on the features' scale, which differs
  between targets; this one does not;
- how many reconstructions have an erased image, not a private one, as their nearest neighbour of the same identity;
- in two dimensions: how many lie inside a hull, and how much of their own hull lies inside another;
- how far apart the classes are: the margin of the private images.

Give as many erased images as private ones. The nearest of many images is nearer than the nearest of few, and the hull
of many is larger, so unequal numbers would decide the answer. Use several erased versions of an image one at a time.

References:
    | Random Erasing vs. Model Inversion: A Promising Defense or a False Hope? (Tran et al., 2025), the pictures
    | https://arxiv.org/abs/2409.01062
    | A Kernel Two-Sample Test (Gretton et al., 2012), the discrepancy and the median heuristic
    | https://jmlr.org/papers/v13/gretton12a.html
    | Reentrant Polygon Clipping (Sutherland and Hodgman, 1974)
    | https://doi.org/10.1145/360767.360802
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.metrics.knn import knn_distance
from mibench.runtime.errors import UserError
from mibench.stats.inputs import require_finite
from mibench.stats.intervals import Interval, proportion

__all__ = [
    "CARD",
    "METRICS",
    "Projection",
    "area",
    "clip",
    "discrepancy",
    "hull",
    "inside",
    "margin",
    "median_distance",
    "nearer_erased",
    "overlap",
    "projection",
    "share",
]

CARD = {
    "summary": "where reconstructions lie in a classifier's features: among private images or their erased versions",
    "title": "A Kernel Two-Sample Test",
    "authors": "Gretton, Borgwardt, Rasch, Schölkopf and Smola",
    "venue": "JMLR",
    "year": 2012,
    "link": "https://jmlr.org/papers/v13/gretton12a.html",
}

METRICS = (
    Metric(
        "frechet_private",
        ("Fréchet", "private"),
        Unit.DISTANCE,
        Direction.LOWER,
        "Fréchet distance to the private images, in the target's features",
        "[0, inf)",
        per=Per.SET,
        needs=(Need.TARGET, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "frechet_erased",
        ("Fréchet", "erased"),
        Unit.DISTANCE,
        Direction.NEITHER,
        "Fréchet distance to the erased private images, in the target's features",
        "[0, inf)",
        per=Per.SET,
        needs=(Need.TARGET, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "mmd_private",
        ("MMD²", "private"),
        Unit.DISTANCE,
        Direction.LOWER,
        "squared maximum mean discrepancy to the private images, in the target's features",
        "[-2, 2]",
        per=Per.SET,
        needs=(Need.TARGET, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "mmd_erased",
        ("MMD²", "erased"),
        Unit.DISTANCE,
        Direction.NEITHER,
        "squared maximum mean discrepancy to the erased private images, in the target's features",
        "[-2, 2]",
        per=Per.SET,
        needs=(Need.TARGET, Need.TRAIN),
        interval=False,
    ),
    Metric(
        "nearest_is_erased",
        ("nearest", "is erased"),
        Unit.SHARE,
        Direction.LOWER,
        "share of images whose nearest neighbour of the same person is an erased image, not a private one",
        "[0, 1]",
        per=Per.IMAGE,
        needs=(Need.TARGET, Need.TRAIN),
        interval=True,
    ),
    Metric(
        "inside_private",
        ("inside", "private"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of images inside the hull of the person's private images, in the plane that separates the people",
        "[0, 1]",
        per=Per.IMAGE,
        needs=(Need.TARGET, Need.TRAIN),
        interval=True,
    ),
    Metric(
        "inside_erased",
        ("inside", "erased"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of images inside the hull of the person's erased images, in the plane that separates the people",
        "[0, 1]",
        per=Per.IMAGE,
        needs=(Need.TARGET, Need.TRAIN),
        interval=True,
    ),
    Metric(
        "overlap_private",
        ("own hull", "in private"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of the images' own hull that lies in the hull of the person's private images",
        "[0, 1]",
        per=Per.IMAGE,
        needs=(Need.TARGET, Need.TRAIN),
        interval=True,
    ),
    Metric(
        "overlap_erased",
        ("own hull", "in erased"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of the images' own hull that lies in the hull of the person's erased images",
        "[0, 1]",
        per=Per.IMAGE,
        needs=(Need.TARGET, Need.TRAIN),
        interval=True,
    ),
    Metric(
        "class_margin",
        ("class", "margin"),
        Unit.DISTANCE,
        Direction.NEITHER,
        "how much nearer a private image is to its own class mean than to the next, in the target's features",
        "(-inf, inf)",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.TRAIN),
        interval=True,
    ),
)

_CHUNK = 1 << 22
"""Kernel values held at once."""

_MOST = 2000
"""Images between which the median distance is taken; of more, every so many."""


# --- all dimensions -------------------------------------------------------------------------------------------------


def median_distance(features: Float[Tensor, "n d"]) -> float:
    """Median of ||x_i - x_j|| over i < j: the kernel's width. Of an even number, the lower of the middle two.

    Raises:
        UserError: fewer than 2 images, or a median of 0 (most images are the same).
        ValueError: NaN or infinite features.
    """
    require_finite("feature space", "features", features)
    if len(features) < 2:
        raise UserError(f"feature space: {len(features)} image(s) have no distance; give at least 2")
    some = features[:: math.ceil(len(features) / _MOST)].double()
    width = float(torch.pdist(some).median())
    if width == 0:
        raise UserError("feature space: most images have the same features, so the kernel has no width; train longer")
    return width


def _kernel_sum(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"], width: float) -> float:
    total = 0.0
    for part in x.split(max(1, _CHUNK // len(y))):
        squared = part.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * part @ y.T
        total += float(torch.exp(squared.clamp(min=0) / (-2 * width**2)).sum())
    return total


def discrepancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], width: float) -> float:
    """Squared MMD, mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j), in [-2, 2].

    Unbiased: 0 on average for two samples of one distribution, so it can be negative. Compare two discrepancies only
    if they were taken with the same width.

    Raises:
        ValueError: fewer than 2 images on a side, NaN or infinite features, a width that is not positive.
    """
    require_finite("feature space", "features", x)
    require_finite("feature space", "features", y)
    if min(len(x), len(y)) < 2 or not width > 0:
        raise ValueError(f"feature space: {len(x)} and {len(y)} images, width {width}; give 2 of each and a width > 0")
    n, m, middle = len(x), len(y), x.double().mean(dim=0)  # near the origin squares cancel least
    a, b = x.double() - middle, y.double() - middle
    own = (_kernel_sum(a, a, width) - n) / (n * (n - 1)) + (_kernel_sum(b, b, width) - m) / (m * (m - 1))
    return own - 2 * _kernel_sum(a, b, width) / (n * m)


def nearer_erased(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    private: Float[Tensor, "m d"],
    erased: Float[Tensor, "m d"],
    private_labels: Int64[Tensor, " m"],
) -> Float64[Tensor, " n"]:
    """1 where the nearest neighbour (L2) of the same identity is an erased image, 0 where it is a private one, .5 for
    a tie. One erased version of each private image: equal chances for both.

    Raises:
        UserError: a label without private image.
        ValueError: NaN or infinite features.
    """
    to_private = knn_distance(features, labels, private, private_labels)
    to_erased = knn_distance(features, labels, erased, private_labels)
    return 0.5 * (to_erased < to_private).double() + 0.5 * (to_erased <= to_private).double()


def margin(features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """min_{k != y} ||f - c_k|| - ||f - c_y||, c_k the mean of class k, c_y without the image itself.

    Positive where an image is nearer to its own class. Left in, an image would pull its own mean towards itself.

    Raises:
        ValueError: NaN or infinite features, a single class, or a class with a single image.
    """
    require_finite("feature space", "features", features)
    names, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(names) < 2 or int(counts.min()) < 2:
        raise ValueError(f"feature space: {len(names)} classes of {counts.tolist()[:9]} images; give 2 of 2")
    x = features.double()
    means = x.new_zeros(len(names), x.shape[1]).index_add_(0, index, x) / counts[:, None]
    apart = torch.cdist(x, means, compute_mode="donot_use_mm_for_euclid_dist")
    rows, size = torch.arange(len(x)), counts[index].double()
    # Taking an image out moves the mean away from it: f - c_without = (f - c) n / (n - 1).
    own = apart[rows, index] * size / (size - 1)
    apart[rows, index] = torch.inf
    return apart.amin(dim=1) - own


def share(values: Float64[Tensor, "draws n"], labels: Int64[Tensor, " n"]) -> Interval:
    """Mean of verdicts 0, .5 and 1 over draws and images, with the interval of a rate clustered by identity.

    A tie is half a hit: each verdict counts as two, of which a tie gives one. n is the number of images.
    """
    hits = torch.stack([values > 0, values == 1]).flatten()
    return proportion(hits, labels.repeat(2 * len(values)))._replace(n=len(labels))


# --- two dimensions -------------------------------------------------------------------------------------------------


class Projection(NamedTuple):
    """(f - centre) @ axes; `kept` is the share of the fitted images' variance that the two axes hold."""

    centre: Float64[Tensor, " d"]
    axes: Float64[Tensor, "d 2"]
    kept: float

    def __call__(self, features: Float[Tensor, "n d"]) -> Float64[Tensor, "n 2"]:
        """Where features lie in the plane."""
        return (features.double() - self.centre) @ self.axes


def projection(features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Projection:
    """The two directions in which the class means vary most (principal components of the means, classes weighted
    equally); fewer than three classes leave directions free, which are those in which the images vary most.

    Orthonormal axes: the plane stretches nothing. The largest entry of an axis is positive. Discriminant analysis
    would separate better, but the images it was fitted on only: with about as many images as dimensions it shrinks each
    class to a point, so that no other image of the person falls inside (measured: 0% of unseen ones, here 56%).

    Raises:
        UserError: fewer than 3 images or 2 dimensions.
        ValueError: NaN or infinite features.
    """
    require_finite("feature space", "features", features)
    if len(features) < 3 or features.shape[1] < 2:
        raise UserError(
            f"feature space: {len(features)} image(s) of {features.shape[1]} dimension(s) span no plane; give at least "
            "3 private images of 2 dimensions"
        )
    x = features.double()
    names, index, counts = labels.unique(return_inverse=True, return_counts=True)
    means = x.new_zeros(len(names), x.shape[1]).index_add_(0, index, x) / counts[:, None]
    centre = means.mean(dim=0)
    between = torch.linalg.svd(means - centre, full_matrices=False)
    solid = 1e-9 * (x - centre).norm() < between.S
    axes = between.Vh[solid][:2]
    if len(axes) < 2:
        rest = (x - centre) - (x - centre) @ axes.T @ axes
        axes = torch.cat([axes, torch.linalg.svd(rest, full_matrices=False).Vh])[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = (axes * largest.sign()).T
    spread = x - x.mean(dim=0)
    total = float(spread.square().sum())
    return Projection(centre, axes, float((spread @ axes).square().sum()) / total if total > 0 else 1.0)


def hull(points: Float64[Tensor, "n 2"]) -> Float64[Tensor, "v 2"] | None:
    """Corners of the convex hull, counter-clockwise; None where there is none: fewer than 3 points, or on one line."""
    if len(points) < 3:
        return None
    try:
        return points[torch.from_numpy(ConvexHull(points.numpy()).vertices).long()]
    except QhullError:
        return None


def area(polygon: Float64[Tensor, "v 2"]) -> float:
    """Area of a polygon with counter-clockwise corners (the shoelace formula); 0 for fewer than 3."""
    if len(polygon) < 3:
        return 0.0
    following = polygon.roll(-1, dims=0)
    return 0.5 * float((polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]).sum())


def _left(points: Float64[Tensor, "n 2"], start: Tensor, end: Tensor) -> Float64[Tensor, " n"]:
    """Positive to the left of the line from start to end, 0 on it."""
    edge, to = end - start, points - start
    return edge[0] * to[:, 1] - edge[1] * to[:, 0]


def clip(polygon: Float64[Tensor, "v 2"], window: Float64[Tensor, "w 2"]) -> Float64[Tensor, "u 2"]:
    """The part of a convex polygon inside another, both counter-clockwise; no corners if they do not meet.

    Cut along each edge of the window: corners on its left stay, and where a side crosses the line a corner is new.
    """
    for start, end in zip(window, window.roll(-1, dims=0), strict=True):
        if not len(polygon):
            break
        here, following = _left(polygon, start, end), polygon.roll(-1, dims=0)
        there = here.roll(-1)
        corners = []
        for k in range(len(polygon)):
            if here[k] >= 0:
                corners.append(polygon[k])
            if here[k] * there[k] < 0:
                corners.append(polygon[k] + here[k] / (here[k] - there[k]) * (following[k] - polygon[k]))
        polygon = torch.stack(corners) if corners else polygon[:0]
    return polygon


def overlap(own: Float64[Tensor, "v 2"], other: Float64[Tensor, "w 2"]) -> float:
    """Area of the intersection of two hulls / area of the first, in [0, 1]: 1 where `own` lies inside `other`."""
    return min(1.0, area(clip(own, other)) / area(own))


def inside(points: Float64[Tensor, "n 2"], polygon: Float64[Tensor, "w 2"]) -> Bool[Tensor, " n"]:
    """Which points lie in a hull; its edges belong to it."""
    sides = [_left(points, start, end) for start, end in zip(polygon, polygon.roll(-1, dims=0), strict=True)]
    # A corner's own side is 0 up to rounding.
    return torch.stack(sides).amin(dim=0) >= -1e-12 * float((polygon - polygon.mean(dim=0)).square().sum())
