"""How well the target's confidence tells its own people from strangers: a side effect that several defenses harm.

    score(x) = max_k softmax(f(x))_k
    AUROC = P(score of a private held-out image > score of a stranger's) + 1/2 P(equal)
    FPR95 = share of strangers whose score is at least the one that 95% of the private images reach

A classifier that is sure about strangers lets impostors in; BiDO was found to lose this (BiDO+ mends it).

References:
    | A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks (Hendrycks and Gimpel,
      ICLR 2017), the score and AUROC
    | https://arxiv.org/abs/1610.02136
    | Enhancing the Reliability of Out-of-distribution Image Detection in Neural Networks (Liang et al., ICLR 2018), FPR
      at 95% TPR
    | https://arxiv.org/abs/1706.02690
"""

import math
from typing import NamedTuple

from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "Detection", "detection"]

CARD = {
    "summary": "how well the target's largest score tells private held-out images from images of strangers",
    "title": "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
    "authors": "Hendrycks and Gimpel",
    "venue": "ICLR",
    "year": 2017,
    "link": "https://arxiv.org/abs/1610.02136",
}


METRICS = (
    Metric(
        "ood_auroc",
        ("OOD", "AUROC"),
        Unit.SHARE,
        Direction.NEITHER,
        "how well the target's largest score tells private held-out images from strangers' (AUROC)",
        "[0, 1], .5 is chance; higher serves better",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.HELDOUT, Need.STRANGERS),
        interval=False,
    ),
)


class Detection(NamedTuple):
    """Both in [0, 1]."""

    auroc: float
    fpr95: float


def detection(inside: Float[Tensor, "n k"], outside: Float[Tensor, "m k"], tpr: float = 0.95) -> Detection:
    """AUROC and false positive rate of the largest score.

    Args:
        inside: Scores (softmax) of images of the target's own people, held out.
        outside: Scores of images of strangers.
        tpr: The share of `inside` to be accepted; the smallest threshold that a whole number of images reaches.

    Raises:
        ValueError: NaN or infinite scores, no images on one side.
    """
    for name, scores in (("private images", inside), ("strangers", outside)):
        require_finite("ood", f"scores of {name}", scores)
        if len(scores) == 0:
            raise ValueError(f"ood: no {name}")
    own, others = (scores.double().max(dim=1).values.cpu() for scores in (inside, outside))
    n, m = len(own), len(others)
    # The Mann-Whitney statistic: ties share their ranks.
    ranks = rankdata([*own.tolist(), *others.tolist()])
    auroc = (float(ranks[:n].sum()) - n * (n + 1) / 2) / (n * m)
    threshold = own.sort(descending=True).values[math.ceil(tpr * n) - 1]
    return Detection(auroc, float((others >= threshold).double().mean()))
