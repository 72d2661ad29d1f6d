"""The own-ball gate: does a reconstruction lie as near to one of the person's own images as its neighbours do?

    b(x, y) = [ there is a training image r of y with |f(x) - f(r)| < radius_k(r) ]

where radius_k(r) is the distance of r to its k-th nearest other private training image, whosever that is. It is the
ball of precision and recall, asked of the claimed person alone. Where the data have too few people for a verifier, it
stands in for one: few strangers lie in the balls of a person's own images.

References:
    | Improved Precision and Recall Metric for Assessing Generative Models (Kynkaanniemi et al., 2019), the balls
    | https://arxiv.org/abs/1904.06991
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Unit
from mibench.metrics.prdc import Manifold
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "own_ball"]

CARD = {
    "summary": "whether a reconstruction lies within the neighbourhood of one of the person's own training images",
    "title": "Improved Precision and Recall Metric for Assessing Generative Models",
    "authors": "Kynkaanniemi, Karras, Laine, Lehtinen and Aila",
    "venue": "NeurIPS",
    "year": 2019,
    "link": "https://arxiv.org/abs/1904.06991",
}

METRICS = (
    Metric(
        "own_ball",
        ("own", "ball"),
        Unit.SHARE,
        Direction.HIGHER,
        "named as the person (open-set) and as near to one of the person's training images as its 5 nearest private "
        "neighbours, in the evaluation model's features",
        "[0, 1]",
        needs=(Need.EVALUATOR, Need.TRAIN),
    ),
)


def own_ball(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], real: Manifold, owners: Int64[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """b(x, y) of each image and the person it claims to show.

    Args:
        features: Of the images.
        labels: Whom they claim to show.
        real: The private training images and the radii of their balls.
        owners: Who is in these.

    Raises:
        ValueError: NaN or infinite features.
    """
    require_finite("own ball", "features", features)
    x = features.to(real.features)
    inside = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for person in labels.unique().tolist():
        rows, own = (labels == person).nonzero()[:, 0], (owners == person).nonzero()[:, 0]
        distances = torch.cdist(x[rows], real.features[own], compute_mode="donot_use_mm_for_euclid_dist")
        inside[rows] = (distances < real.radii[own]).any(dim=1)
    return inside
