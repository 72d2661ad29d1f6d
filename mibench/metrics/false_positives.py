"""Is a hit a likeness? What tells reconstructions of a person from look-alikes and from images that fool one network.

Calibrated success asks more than a highest score: an evaluation model must believe in the claimed person more surely
than in all but 1% of real images of *other* people that it has never seen,

    s_y(x) = l_y - log sum_{j != y} exp(l_j),       success = [ s_y(x) > t ],
    t = the (floor(.01 m) + 1)-th largest of m impostor scores

s is the log-odds of the claimed person y among all classes, 'someone else' included, so that t means the same for
every person. Success is strict: never more than 1% of the impostors pass, whatever ties there are; with fewer than
100 of them, none.

References:
    | ISO/IEC 19795-1:2021, false match rate: comparisons of different people that a threshold lets pass
    | https://www.iso.org/standard/73515.html
"""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "RATE", "impostor_scores", "log_odds", "threshold"]

CARD = {
    "summary": "is a hit a likeness: success above what 1% of real images of other people reach, and the target's lead",
    "title": "Information technology: Biometric performance testing and reporting, Part 1: Principles and framework",
    "authors": "ISO",
    "venue": "ISO/IEC 19795-1",
    "year": 2021,
    "link": "https://www.iso.org/standard/73515.html",
}

METRICS = (
    Metric(
        "calibrated",
        ("calib-", "rated"),
        Unit.SHARE,
        Direction.HIGHER,
        "whether the evaluation model believes in the person more surely than in 99% of real images of others",
        "[0, 1]",
        needs=(Need.EVALUATOR, Need.HELDOUT, Need.STRANGERS),
    ),
    Metric(
        "gap",
        ("target", "minus"),
        Unit.POINTS,
        Direction.NEITHER,
        "how far the target's own hits exceed the evaluation model's: what fools the target alone",
        "[-1, 1]",
        per=Per.SET,
        needs=(Need.TARGET, Need.EVALUATOR),
    ),
)

RATE = 0.01
"""The share of impostors that may pass."""


def _all_log_odds(logits: Float[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
    """s_y(x) for every class y, in float64."""
    require_finite("calibrated success", "logits", logits)
    if logits.shape[1] < 2:
        raise ValueError(f"calibrated success: {logits.shape[1]} class(es); odds need at least 2")
    exact = logits.double()
    total = exact.logsumexp(dim=1, keepdim=True)
    best = exact.argmax(dim=1, keepdim=True)
    # log(e^total - e^l) = total + log(1 - p), exact where p <= 1/2; only the largest logit can have more.
    odds = exact - total - torch.log1p(-(exact - total).exp().clamp(max=0.5))
    others = exact.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, best, exact.gather(1, best) - others)


def log_odds(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """s_y(x) of each image for its claimed class: log(p / (1 - p)), any real number, higher is surer.

    Raises:
        ValueError: NaN or infinite logits, a single class, a label outside the classes.
    """
    if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
        raise ValueError(
            f"calibrated success: labels go from {int(labels.min())} to {int(labels.max())}; allowed: 0 "
            f"to {logits.shape[1] - 1}"
        )
    return _all_log_odds(logits).gather(1, labels[:, None])[:, 0]


def impostor_scores(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], private_classes: int
) -> Float64[Tensor, " m"]:
    """s_y(x) of every real image for every private person y who is not in it.

    Args:
        logits: Of real images, over private people and others.
        labels: Who is in them; -1 is somebody else.
        private_classes: The first so many classes are claimed.

    Raises:
        ValueError: NaN or infinite logits, a single class.
    """
    odds = _all_log_odds(logits)[:, :private_classes]
    claimed = torch.arange(odds.shape[1], device=labels.device)
    return odds[labels[:, None] != claimed]


def threshold(impostors: Float64[Tensor, " m"], rate: float = RATE) -> float:
    """The t that at most `rate` of the impostor scores exceed; the smallest such value among them.

    Raises:
        ValueError: No impostors, NaN among them, a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"calibrated success: rate {rate}; allowed: 0 to below 1, as in 0.01")
    if len(impostors) == 0:
        raise ValueError("calibrated success: no impostors; a threshold needs images of other people")
    require_finite("calibrated success", "impostor scores", impostors)
    passing = math.floor(rate * len(impostors) + 1e-9)
    return float(impostors.sort(descending=True).values[passing])
