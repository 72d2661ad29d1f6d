"""Power: how many identities and seeds it takes to see a difference, and what a run could have seen at all.

Two targets are compared over the same identities, so what counts is how much the *difference* varies between
identities. With n identities, sd the standard deviation of their differences, a true difference delta has p < alpha
with probability `power` where

    n = (z_{1 - alpha/2} + z_{power})^2 sd^2 / delta^2

(normal approximation; each identity with as many reconstructions as now). Another seed trains another target:
differences then also vary between seeds, and more identities do not help against that.

These are hints for planning. A difference that was found because it happened to be large needs more identities than
its size says, and correction for many comparisons needs more again.

References:
    | Statistical Power Analysis for the Behavioral Sciences (Cohen, 1988)
    | https://doi.org/10.4324/9780203771587
    | Variance Components (Searle, Casella and McCulloch, 1992), the two-way random model without interaction
    | https://doi.org/10.1002/9780470316856
"""

import math
from typing import NamedTuple

from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor

from mibench.stats.inputs import require_finite

__all__ = ["Components", "components", "detectable", "identities_needed", "seeds_needed", "spread"]


class Components(NamedTuple):
    """Where a difference comes from: variances between seeds, between identities, and of what is left.

    The mean over S seeds and c identities has the variance seed / S + identity / c + rest / (S c).
    """

    seed: float
    identity: float
    rest: float
    seeds: int
    identities: int


def _factor(alpha: float, power: float) -> float:
    """z_{1 - alpha/2} + z_{power}."""
    if not (0 < alpha < 1 and 0.5 <= power < 1):
        raise ValueError(f"power: alpha {alpha}, power {power}; allowed: between 0 and 1, and from .5 to below 1")
    return float(ndtri(1 - alpha / 2) + ndtri(power))


def _least(alpha: float) -> int:
    """The fewest identities of which a sign-flip test can give p < alpha: 2^(1 - n) < alpha."""
    return math.floor(1 - math.log2(alpha)) + 1


def spread(differences: Float[Tensor, " c"]) -> float:
    """Standard deviation of identities' mean differences, over c - 1; NaN for one identity.

    Raises:
        ValueError: NaN or infinite values, no values.
    """
    if len(differences) == 0:
        raise ValueError("power: differences of 0 identities; give at least one")
    values = differences.detach().cpu().double()
    require_finite("power", "differences", values)
    return float(values.std()) if len(values) > 1 else math.nan


def identities_needed(sd: float, difference: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """How many identities show a true difference of this size with p < alpha, with probability `power`.

    At least as many as any p-value below alpha takes (6 for .05). Infinite for no difference; NaN where sd is zero or
    unknown: identities that all agree say nothing of how others would vary.

    Raises:
        ValueError: An impossible alpha or power.
    """
    factor = _factor(alpha, power)
    if not sd > 0 or math.isnan(difference):
        return math.nan
    if difference == 0:
        return math.inf
    return float(max(_least(alpha), math.ceil((factor * sd / difference) ** 2 - 1e-9)))


def detectable(sd: float, identities: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that so many identities show with p < alpha, with probability `power`; in the unit
    of sd.

    NaN where sd is zero or unknown, or where so few identities give no p-value below alpha.

    Raises:
        ValueError: An impossible alpha or power.
    """
    factor = _factor(alpha, power)
    return factor * sd / math.sqrt(identities) if sd > 0 and identities >= _least(alpha) else math.nan


def components(differences: Float[Tensor, "s c"]) -> Components | None:
    """Variances of the differences of c identities under s seeds, by the two-way analysis of variance.

        seed = (MS_seed - MS_rest) / c,   identity = (MS_identity - MS_rest) / s,   rest = MS_rest

    A negative estimate is zero. None for a single seed or identity: then nothing is known of the others.

    Raises:
        ValueError: NaN or infinite values.
    """
    x = differences.detach().cpu().double()
    require_finite("power", "differences", x)
    s, c = x.shape
    if s < 2 or c < 2:
        return None
    by_seed, by_identity, mean = x.mean(1, keepdim=True), x.mean(0, keepdim=True), x.mean()
    ms_seed = c * float((by_seed - mean).square().sum()) / (s - 1)
    ms_identity = s * float((by_identity - mean).square().sum()) / (c - 1)
    rest = float((x - by_seed - by_identity + mean).square().sum()) / ((s - 1) * (c - 1))
    return Components(max(0.0, (ms_seed - rest) / c), max(0.0, (ms_identity - rest) / s), rest, s, c)


def seeds_needed(known: Components, difference: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """How many seeds, with as many identities as now, show a true difference of this size, other seeds and other
    identities included.

        S = (seed + rest / c) / (difference^2 / (z_{1 - alpha/2} + z_{power})^2 - identity / c)

    Infinite where the identities alone vary too much: no number of seeds replaces them.

    Raises:
        ValueError: An impossible alpha or power.
    """
    allowed = (difference / _factor(alpha, power)) ** 2 - known.identity / known.identities
    if allowed <= 0:
        return math.inf
    return float(max(1, math.ceil((known.seed + known.rest / known.identities) / allowed - 1e-9)))
