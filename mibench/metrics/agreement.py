"""Agreement of evaluation models: an image that fools one family of networks rarely fools another; a likeness convinces
both.

Cohen's kappa of two evaluation models' hits is (p_o - p_e) / (1 - p_e), p_o the share of images on which both say the
same, p_e what that would be if they answered independently.

References:
    | A Coefficient of Agreement for Nominal Scales (Cohen, 1960)
    | https://doi.org/10.1177/001316446002000104
"""

import math

from jaxtyping import Bool
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit

__all__ = ["CARD", "METRICS", "kappa"]

CARD = {
    "summary": "how far two evaluation models of different families agree on the hits",
    "title": "A Coefficient of Agreement for Nominal Scales",
    "authors": "Cohen",
    "venue": "Educational and Psychological Measurement",
    "year": 1960,
    "link": "https://doi.org/10.1177/001316446002000104",
}

METRICS = (
    Metric(
        "both",
        ("both", "models"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of images that two evaluation models of different families both take for the person (open-set)",
        "[0, 1]",
        per=Per.SET,
        needs=(Need.TWO_EVALUATORS,),
    ),
    Metric(
        "kappa",
        ("judges'", "kappa"),
        Unit.NUMBER,
        Direction.NEITHER,
        "how far two evaluation models of different families agree on the hits; 0 is chance (Cohen's kappa)",
        "at most 1",
        per=Per.SET,
        needs=(Need.TWO_EVALUATORS,),
        interval=False,
    ),
)


def kappa(one: Bool[Tensor, " n"], other: Bool[Tensor, " n"]) -> float:
    """Cohen's kappa of two judges' verdicts, at most 1; 0 is chance. NaN where both say one thing of all images.

    Raises:
        ValueError: Unequal numbers of verdicts, or none.
    """
    if len(one) != len(other) or len(one) == 0:
        raise ValueError(f"kappa: {len(one)} and {len(other)} verdicts; give both judges the same images")
    a, b = float(one.double().mean()), float(other.double().mean())
    observed = float((one == other).double().mean())
    expected = a * b + (1 - a) * (1 - b)
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)
