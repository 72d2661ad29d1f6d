"""Expected calibration error: how far a network's confidence is from how often it is right.

    ECE = sum_m |B_m| / n * | acc(B_m) - conf(B_m) |,   B_m = { i : (m - 1) / M < max_k p_ik <= m / M }

A side effect to report beside a defense: several set the confidence (label smoothing, confidence-adapted losses,
shaped scores), and an attacker who sees scores reads it.

References:
    | On Calibration of Modern Neural Networks (Guo et al., 2017), M = 15
    | https://arxiv.org/abs/1706.04599
"""

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "Calibration", "calibration"]

CARD = {
    "summary": "mean distance of the target's confidence from its accuracy, over 15 bins of confidence",
    "title": "On Calibration of Modern Neural Networks",
    "authors": "Guo, Pleiss, Sun and Weinberger",
    "venue": "ICML",
    "year": 2017,
    "link": "https://arxiv.org/abs/1706.04599",
}

METRICS = (
    Metric(
        "ece",
        ("", "ECE"),
        Unit.SHARE,
        Direction.NEITHER,
        "expected calibration error: mean distance of the target's confidence from its accuracy, over 15 bins",
        "[0, 1], 0 is calibrated",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.HELDOUT),
        interval=False,
    ),
    Metric(
        "confidence",
        ("mean", "confidence"),
        Unit.SHARE,
        Direction.NEITHER,
        "mean largest score of the target on unseen private images",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.HELDOUT),
        interval=False,
    ),
)


class Calibration(NamedTuple):
    """The error, and the mean confidence it is about; both in [0, 1]."""

    ece: float
    confidence: float


def calibration(probs: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], bins: int = 15) -> Calibration:
    """ECE of scores against true classes; confidence is the largest score, the answer its class.

    Raises:
        ValueError: NaN or infinite scores, no images.
    """
    require_finite("calibration", "scores", probs)
    if len(probs) == 0:
        raise ValueError("calibration: no images")
    confidence, answer = probs.double().max(dim=1)
    right = (answer == labels).double()
    # The bins are closed above: a confidence of exactly 1 / 15 lies in the first.
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = confidence.new_zeros(bins).index_add(0, place, right - confidence)
    return Calibration(float(gaps.abs().sum() / len(probs)), float(confidence.mean()))
