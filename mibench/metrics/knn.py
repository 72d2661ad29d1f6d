"""KNN distance: how near a reconstruction comes to a real image of the attacked identity, in feature space.

    d(x) = min over references r with the label of x of  || f(x) - f(r) ||^2

k is 1 and the distance is *squared* L2, as in the field's code. f is the evaluation model's penultimate
layer, not normalised: a number means something only beside the model's name and `leave_one_out`, the same
distance between real images of one person. Give the private training images as references for memorisation,
held-out images of the same people for likeness.

References:
    | Re-thinking Model Inversion Attacks Against Deep Neural Networks (Nguyen et al., 2023), KNN Dist
    | https://arxiv.org/abs/2304.01669
    | the authors' code: https://github.com/sutd-visual-computing-group/Re-thinking_MI (commit ed4b6b8)

Differs:
    The difference is taken exactly, in float64. The usual |a|^2 - 2ab + |b|^2 cancels: between near copies it
    can be negative.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.runtime.errors import UserError
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "closeness", "knn_distance", "leave_one_out"]

CARD = {
    "summary": "squared L2 distance to the nearest private image of the same identity, in features",
    "title": "Re-thinking Model Inversion Attacks Against Deep Neural Networks",
    "authors": "Nguyen, Chandrasegaran, Abdollahzadeh and Cheung",
    "venue": "CVPR",
    "year": 2023,
    "link": "https://arxiv.org/abs/2304.01669",
}

METRICS = (
    Metric(
        "knn_train",
        ("KNN", "train"),
        Unit.SQUARED_L2,
        Direction.LOWER,
        "squared L2 distance to the nearest private training image of the person, in the evaluation model's features",
        "[0, inf)",
        needs=(Need.EVALUATOR, Need.TRAIN),
    ),
    Metric(
        "knn_heldout",
        ("KNN", "held-\nout"),
        Unit.SQUARED_L2,
        Direction.LOWER,
        "squared L2 distance to the nearest held-out image of the person, in the evaluation model's features",
        "[0, inf)",
        needs=(Need.EVALUATOR, Need.HELDOUT),
    ),
    Metric(
        "closeness",
        ("close-", "ness"),
        Unit.RATIO,
        Direction.HIGHER,
        "how near to a held-out image of the person, L2: 0 is a stranger's mean distance, 1 that of another photograph",
        "(-inf, inf), about [0, 1]",
        needs=(Need.EVALUATOR, Need.HELDOUT, Need.STRANGERS),
    ),
    Metric(
        "knn_real_to_real",
        ("KNN", "real"),
        Unit.SQUARED_L2,
        Direction.NEITHER,
        "mean squared L2 distance of a private training image to the nearest other one of its person: the yardstick",
        "[0, inf)",
        per=Per.NETWORK,
        needs=(Need.EVALUATOR, Need.TRAIN),
        interval=False,
    ),
)

_CHUNK = 1 << 22
"""Numbers in one chunk of differences: 32 MiB each in float64."""


def _nearest(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    reference_features: Float[Tensor, "m e"],
    reference_labels: Int64[Tensor, " m"],
    skip_self: bool,
) -> Float64[Tensor, " n"]:
    """Works on the list of all (image, reference of its label) pairs, in chunks; never on the full n x m
    matrix."""
    require_finite("knn", "features", features)
    require_finite("knn", "reference features", reference_features)
    if features.shape[1] != reference_features.shape[1]:
        raise ValueError(
            f"knn: features have {features.shape[1]} dimensions, references {reference_features.shape[1]}; "
            "take both from one layer of one model"
        )
    by_label = reference_labels.argsort(stable=True)
    sorted_labels = reference_labels[by_label]
    start = torch.searchsorted(sorted_labels, labels)
    count = torch.searchsorted(sorted_labels, labels, right=True) - start
    lacking = labels[count <= int(skip_self)].unique().tolist()
    if lacking:
        what = "no other image of its own label" if skip_self else "no reference image"
        raise UserError(
            f"knn: {len(lacking)} label(s) have {what}: {lacking[:10]}; every judged label needs "
            f"{'two images' if skip_self else 'one'}"
        )
    ends = count.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    nearest = torch.full((len(features),), torch.inf, dtype=torch.float64, device=features.device)
    step = max(1, _CHUNK // max(1, features.shape[1]))
    for low in range(0, total, step):
        pair = torch.arange(low, min(low + step, total), device=features.device)
        i = torch.searchsorted(ends, pair, right=True)
        j = by_label[start[i] + pair - (ends[i] - count[i])]
        distance = (features[i].double() - reference_features[j].double()).square().sum(dim=1)
        if skip_self:
            distance = distance.masked_fill(i == j, torch.inf)
        nearest.scatter_reduce_(0, i, distance, "amin")
    return nearest


def knn_distance(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    reference_features: Float[Tensor, "m e"],
    reference_labels: Int64[Tensor, " m"],
) -> Float64[Tensor, " n"]:
    """Squared L2 distance of each reconstruction to the nearest reference of its label.

    Raises:
        UserError: a label without reference.
        ValueError: NaN or infinite features, or features of two sizes.
    """
    return _nearest(features, labels, reference_features, reference_labels, skip_self=False)


def leave_one_out(features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """The yardstick: squared L2 distance of each real image to the nearest *other* real image of its label.

    Only the image itself is left out: a second copy of it counts, at distance 0.

    Raises:
        UserError: a label with a single image.
        ValueError: NaN or infinite features.
    """
    return _nearest(features, labels, features, labels, skip_self=True)


def closeness(squared: Float64[Tensor, " n"], photograph: float, stranger: float) -> Float64[Tensor, " n"]:
    """(s - d) / (s - p) of each image, d being its L2 distance, not squared: 0 at a stranger's, 1 at a photograph's.

    Args:
        squared: `knn_distance` of each image to the held-out images of its person.
        photograph: p, the mean distance of another real photograph of the person.
        stranger: s, the mean distance of a stranger.

    Raises:
        ValueError: Unless p < s: there is no scale.
    """
    if not photograph < stranger:
        raise ValueError(
            f"knn: another photograph is {photograph} away and a stranger {stranger}; no scale of closeness"
        )
    return (stranger - squared.sqrt()) / (stranger - photograph)
