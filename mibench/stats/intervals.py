"""Intervals: how far a number could have been off, had other identities been attacked.

Images of one identity rise and fall together, so identities are resampled, not images (the cluster bootstrap). The
percentile bootstrap is too narrow when identities are few, and far too narrow when a rate is near 0 or 1: simulated
with 20 identities x 5 images (correlation .8), its '95%' interval covers a rate of .1 85% of the time, a rate of .02
44%. Three remedies:

1. The percentiles are taken further out, at Phi(-sqrt(c / (c - 1)) t_{c-1}) for c identities (the expanded
   percentile interval): the width of a t interval, with the bootstrap's asymmetry.
2. A rate (Bool values) must also span an interval made for rates: Wilson's, with the effective number of
   images p (1 - p) / v, where v is the variance of p between identities, and the same t quantile. The
   difference of two rates must span Bonett and Price's: two more images, one hit by a alone, one by b alone.
3. Where no identity differs from another (all hits, no hit), v says nothing. Then each identity counts as
   *one* trial: one that behaves otherwise has a probability of at most u = 1 - (alpha / 2)^(1 / c) (Clopper
   and Pearson).

Simulated coverage at 95%, rates .02 to .9, 10 to 100 identities, correlation 0 to .8: 94% to 100%, and clearly
above 98% only for about ten identities or about ten hits. No interval has zero width, unless a measured quantity
(not a rate) is constant.

References:
    | What Teachers Should Know About the Bootstrap (Hesterberg, 2015), the expanded percentile interval
    | https://arxiv.org/abs/1411.5279
    | Evaluating Confidence Interval Methods for Binomial Proportions in Clustered Surveys (Dean and Pagano,
      2015), effective n
    | https://doi.org/10.1093/jssam/smv024
    | Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data (Bonett
      and Price, 2012)
    | https://doi.org/10.3102/1076998611411915
    | The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial (Clopper and Pearson,
      1934)
    | https://doi.org/10.1093/biomet/26.4.404
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.special import ndtr, stdtrit
from torch import Tensor

from mibench.runtime.rng import generator
from mibench.stats.inputs import require_finite

__all__ = [
    "Interval",
    "by_cluster",
    "cluster_sums",
    "clustered_interval",
    "difference_of_rates",
    "drawn",
    "expanded",
    "paired_interval",
    "proportion",
    "quantiles",
    "rate",
]


class Interval(NamedTuple):
    """A number with its interval; n images in so many clusters (identities). NaN bounds: no interval exists."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def as_json(self) -> dict[str, float | None]:
        """The fields by name; JSON has no NaN, so a bound that does not exist is null."""
        return {key: None if value != value else value for key, value in self._asdict().items()}


def by_cluster(
    clusters: Int64[Tensor, " n"], values: Float64[Tensor, " n"], weights: Float64[Tensor, " n"]
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """Sums of values and of weights over each cluster, in the order of the clusters' numbers."""
    if bool((clusters[1:] > clusters[:-1]).all()):  # each has one value, in this order
        return values + 0.0, weights + 0.0
    names, index = clusters.unique(return_inverse=True)
    zero = values.new_zeros(len(names))
    return zero.index_add(0, index, values), zero.index_add(0, index, weights)


def cluster_sums(
    values: Float64[Tensor, " n"], clusters: Int64[Tensor, " n"]
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """Sum of values and number of images of each cluster."""
    return by_cluster(clusters, values, torch.ones_like(values))


def _check(values: Tensor, clusters: Tensor, confidence: float, resamples: int) -> None:
    if len(values) == 0 or len(values) != len(clusters):
        raise ValueError(f"interval: {len(values)} values and {len(clusters)} clusters; give one to each")
    if not 0 < confidence < 1:
        raise ValueError(f"interval: confidence {confidence}; allowed: between 0 and 1, as in 0.95")
    if resamples < 100:
        raise ValueError(f"interval: {resamples} resamples; at least 100 (2,000 for 95%)")


def _bootstrap(
    sums: Float64[Tensor, " c"], counts: Float64[Tensor, " c"], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Expanded percentile interval of sum(sums) / sum(counts) over resampled clusters."""
    weighed = drawn(len(sums), resamples, seed) @ sums
    return expanded(weighed / _counted(tuple(counts.tolist()), resamples, seed), len(sums), confidence)


@lru_cache(maxsize=4)
def _counted(counts: tuple[float, ...], resamples: int, seed: int) -> Float64[Tensor, "{resamples}"]:
    """How many images each resample has; kept as `drawn` is, since most targets are attacked alike."""
    return drawn(len(counts), resamples, seed) @ torch.tensor(counts, dtype=torch.float64)


@lru_cache(maxsize=4)
def drawn(clusters: int, resamples: int, seed: int = 0) -> Float64[Tensor, "{resamples} {clusters}"]:
    """How often each cluster is drawn in each resample: one matrix product gives all resampled sums. Do not change it:
    it is kept, since a report asks for the same one again and again."""
    draw = torch.randint(clusters, (resamples, clusters), generator=generator("bootstrap", seed))
    once = torch.ones(resamples, clusters, dtype=torch.float64)
    return torch.zeros_like(once).scatter_add_(1, draw, once)


def expanded(values: Float64[Tensor, " r"], clusters: int, confidence: float = 0.95) -> tuple[float, float]:
    """The expanded percentile interval of resampled values."""
    tail = _tail(clusters, confidence)
    return quantiles(values, tail, 1 - tail)


@lru_cache(maxsize=4)
def _tail(clusters: int, confidence: float) -> float:
    return float(ndtr(math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 - confidence) / 2)))


def quantiles(values: Float64[Tensor, " r"], low: float, high: float) -> tuple[float, float]:
    """`Tensor.quantile` at two places in [0, 1], the same bits; only the neighbours of both are put in order."""
    last = len(values) - 1
    places = [low * last, high * last]
    near = [*map(math.floor, places), *map(math.ceil, places)]
    below, above = torch.from_numpy(np.partition(values.numpy(), near)[near]).split(2)
    part = torch.tensor([place - floor for place, floor in zip(places, near, strict=False)], dtype=torch.float64)
    first, second = below.lerp(above, part).tolist()
    return first, second


def _unseen(clusters: int, confidence: float) -> float:
    """Upper Clopper-Pearson limit of the share of clusters that behave otherwise, when none of them does."""
    return 1 - ((1 - confidence) / 2) ** (1 / clusters)


def clustered_interval(
    values: Bool[Tensor, " n"] | Float[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over images with its interval over clusters. Pass hits as Bool: see `proportion`.

    With a single cluster a measured quantity has no interval (NaN) and a rate has nearly all of [0, 1].

    Raises:
        ValueError: NaN or infinite values, no values, an impossible confidence or number of resamples.
    """
    if values.dtype == torch.bool:
        return proportion(values, clusters, confidence, resamples, seed)
    _check(values, clusters, confidence, resamples)
    require_finite("interval", "values", values)
    # On the CPU, so that one seed gives one interval whatever device the scores came from.
    sums, counts = cluster_sums(values.detach().cpu().double(), clusters.cpu())
    value = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(value, math.nan, math.nan, len(values), 1)
    low, high = _bootstrap(sums, counts, confidence, resamples, seed)
    return Interval(value, min(low, value), max(high, value), len(values), len(sums))


def proportion(
    hits: Bool[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A rate, such as attack accuracy or natural accuracy (clustered by class), with an interval within [0, 1].

    Raises:
        ValueError: no values, an impossible confidence or number of resamples.
    """
    _check(hits, clusters, confidence, resamples)
    return rate(*cluster_sums(hits.cpu().double(), clusters.cpu()), confidence, resamples, seed)


def rate(
    sums: Float64[Tensor, " c"],
    counts: Float64[Tensor, " c"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The same of each cluster's sum of values in [0, 1], most often hits, and its number of images, at least one."""
    n, c = int(counts.sum()), len(sums)
    p = float(sums.sum() / n)
    if c == 1:
        # One identity says nothing about the others but where it sits.
        u = _unseen(1, confidence)
        return Interval(p, 0.0 if p < 1 else 1 - u, 1.0 if p > 0 else u, n, 1)
    low, high = _bootstrap(sums, counts, confidence, resamples, seed)
    variance = float((sums - p * counts).square().sum()) / n**2 * c / (c - 1)
    if variance <= 1e-15:
        u = _unseen(c, confidence)
        return Interval(p, p - u * p, p + u * (1 - p), n, c)
    # No more than n images' worth, even if identities happen to agree better than chance.
    effective = min(p * (1 - p) / variance, float(n))
    t2 = float(stdtrit(c - 1, (1 + confidence) / 2)) ** 2
    centre = (p + t2 / (2 * effective)) / (1 + t2 / effective)
    half = math.sqrt(t2 * p * (1 - p) / effective + t2**2 / (4 * effective**2)) / (1 + t2 / effective)
    return Interval(p, max(0.0, min(low, centre - half)), min(1.0, max(high, centre + half)), n, c)


def paired_interval(
    a_values: Bool[Tensor, " n"] | Float[Tensor, " n"],
    b_values: Bool[Tensor, " n"] | Float[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of a - b over images paired by order, with its interval: what two attacks or defenses differ by.

    Pairing removes what both share (which identities are easy), so it sees smaller differences than two intervals side
    by side. Bool values are two rates, the difference is in [-1, 1]: see `difference_of_rates`.

    Raises:
        ValueError: NaN or infinite values, unequal lengths, one of Bool and one of float, an impossible confidence or
            number of resamples.
    """
    _check(a_values, clusters, confidence, resamples)
    _check(b_values, clusters, confidence, resamples)
    if (a_values.dtype == torch.bool) != (b_values.dtype == torch.bool):
        raise ValueError("interval: hits against numbers that are no hits; give Bool values on both sides, or on none")
    difference = a_values.detach().cpu().double() - b_values.detach().cpu().double()
    if a_values.dtype != torch.bool:
        return clustered_interval(difference, clusters, confidence, resamples, seed)
    return difference_of_rates(*cluster_sums(difference, clusters.cpu()), confidence, resamples, seed)


def difference_of_rates(
    sums: Float64[Tensor, " c"],
    counts: Float64[Tensor, " c"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Difference of two rates of the same images or people, in [-1, 1]; its interval never has zero width.

    Args:
        sums: Of each cluster, the sum of differences of hits, or of shares of hits; each difference in [-1, 1].
        counts: Of each cluster, how many differences that is, at least one.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    n, c, total = int(counts.sum()), len(sums), sums.sum()
    value = float(total / n)
    if c == 1:
        return Interval(value, -1.0, 1.0, n, c)
    if float((sums - value * counts).abs().max()) < 1e-12:
        u = _unseen(c, confidence)
        return Interval(value, value - u * (1 + value), value + u * (1 - value), n, c)
    low, high = _bootstrap(sums, counts, confidence, resamples, seed)
    # Bonett and Price: one image hit by a alone and one by b alone are added, each an identity of its own.
    shrunk = float(total) / (n + 2)
    squares = float((sums - shrunk * counts).square().sum()) + (1 - shrunk) ** 2 + (1 + shrunk) ** 2
    half = float(stdtrit(c - 1, (1 + confidence) / 2)) * math.sqrt(squares * c / (c - 1)) / (n + 2)
    low, high = min(low, value, shrunk - half), max(high, value, shrunk + half)
    return Interval(value, max(-1.0, low), min(1.0, high), n, c)
