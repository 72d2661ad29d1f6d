"""Is a hit a likeness? An evaluation model must name the person, and more surely than it ever names strangers.

Open-set identification at a stated false-positive identification rate (FPIR): an image identifies y if y is the class
with the highest log-odds among the private people, and these exceed a threshold that at most 5% of *strangers' images*
exceed for any private person,

    s_y(x) = l_y - log sum_{j != y} exp(l_j),       success = [ argmax_k s_k(x) = y  and  s_y(x) > t ],
    t = the (floor(.05 m) + 1)-th largest of max_k s_k(x) over m images of strangers

s is the log-odds of the claimed person y among all classes, 'someone else' included. The rate is per image, not per
claim: an image makes as many claims as there are people, and 1% of claims let most strangers in as somebody.

References:
    | ISO/IEC 19795-1:2021, true-positive and false-positive identification rates
    | https://www.iso.org/standard/73515.html
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "RATE", "best_claim", "identified", "log_odds", "threshold"]

CARD = {
    "summary": "is a hit a likeness: identified more surely than 5% of strangers are as anybody, and the target's lead",
    "title": "Information technology: Biometric performance testing and reporting, Part 1: Principles and framework",
    "authors": "ISO",
    "venue": "ISO/IEC 19795-1",
    "year": 2021,
    "link": "https://www.iso.org/standard/73515.html",
}

METRICS = (
    Metric(
        "tpir",
        ("TPIR", "FPIR 5%"),
        Unit.SHARE,
        Direction.HIGHER,
        "identified as the person at a threshold that lets 5% of strangers' images be identified as anybody",
        "[0, 1]",
        needs=(Need.EVALUATOR, Need.STRANGERS),
    ),
    Metric(
        "strangers_named",
        ("strangers", "named"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of strangers' images that the evaluation model names as one of the private people (open-set): how weak "
        "its 'someone else' is",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.EVALUATOR, Need.STRANGERS),
        interval=False,
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

RATE = 0.05
"""The share of strangers' images that may be identified as anybody."""


def _all_log_odds(logits: Float[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
    """s_y(x) for every class y, in float64."""
    require_finite("identification", "logits", logits)
    if logits.shape[1] < 2:
        raise ValueError(f"identification: {logits.shape[1]} class(es); odds need at least 2")
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
            f"identification: labels go from {int(labels.min())} to {int(labels.max())}; allowed: 0 "
            f"to {logits.shape[1] - 1}"
        )
    return _all_log_odds(logits).gather(1, labels[:, None])[:, 0]


def best_claim(logits: Float[Tensor, "n k"], private_classes: int) -> tuple[Float64[Tensor, " n"], Int64[Tensor, " n"]]:
    """max_k s_k(x) over the private people, and who that is.

    Args:
        logits: Over private people and others.
        private_classes: The first so many classes are private people.

    Raises:
        ValueError: NaN or infinite logits, a single class.
    """
    best = _all_log_odds(logits)[:, :private_classes].max(dim=1)
    return best.values, best.indices


def identified(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], private_classes: int, limit: float
) -> Bool[Tensor, " n"]:
    """Whether each image identifies the person it claims to show, more surely than `limit`.

    Raises:
        ValueError: NaN or infinite logits, a single class.
    """
    surest, who = best_claim(logits, private_classes)
    return (who == labels) & (surest > limit)


def threshold(impostors: Float64[Tensor, " m"], rate: float = RATE) -> float:
    """The t that at most `rate` of the impostor scores exceed; the smallest such value among them.

    Raises:
        ValueError: No impostors, NaN among them, a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"identification: rate {rate}; allowed: 0 to below 1, as in 0.01")
    if len(impostors) == 0:
        raise ValueError("identification: no impostors; a threshold needs images of other people")
    require_finite("identification", "impostor scores", impostors)
    passing = math.floor(rate * len(impostors) + 1e-9)
    return float(impostors.sort(descending=True).values[passing])
