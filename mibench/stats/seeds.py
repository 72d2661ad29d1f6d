"""Training seeds as a level of the interval: how far a number could have been off, had the networks been trained again.

Two trainings of one recipe differ by 4 to 5 points of attack accuracy, which an interval over people of one network
cannot see: with one seed a table of true nulls calls a difference in .25 to .29 of the cases instead of .05. People and
seeds are crossed (every person is attacked on every network), so both are resampled, independently: a cell weighs the
product of how often its person and its seed were drawn. The interval spans

1. the interval over people, of these networks;
2. the percentiles of that two-level bootstrap;
3. value -+ t se, se^2 = v_people + v_seeds, the cluster variances over people and over seeds; t has Satterthwaite's
   degrees of freedom, se^4 / (v_people^2 / (c - 1) + v_seeds^2 / (s - 1)): percentiles of two or three seeds end
   at the extreme seed, which the true mean often exceeds.

Adding both variances counts what is specific to a cell twice; the interval is the wider for it.

References:
    | Bootstrapping data arrays of arbitrary order (Owen and Eckles, 2012), products of weights of crossed factors
    | https://arxiv.org/abs/1106.2125
    | An Approximate Distribution of Estimates of Variance Components (Satterthwaite, 1946)
    | https://doi.org/10.2307/3002019
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from scipy.special import stdtr, stdtrit
from torch import Tensor

from mibench.stats.intervals import Interval, drawn, quantiles

__all__ = ["Cells", "p_value", "spanned"]


class Cells(NamedTuple):
    """Sums of values over the images of one person under one seed, and how many values that is."""

    people: Int64[Tensor, " c"]
    seeds: Int64[Tensor, " c"]
    values: Float64[Tensor, " c"]
    weights: Float64[Tensor, " c"]

    @property
    def several(self) -> bool:
        """Whether there are two seeds or more."""
        return bool((self.seeds != self.seeds[0]).any())


class _Spread(NamedTuple):
    value: float
    error: float
    freedom: float


def _variance(names: Int64[Tensor, " c"], values: Tensor, weights: Tensor) -> tuple[float, int]:
    """Variance of sum(values) / sum(weights) if the groups of these names are independent; 0 for one group."""
    groups, index = names.unique(return_inverse=True)
    total = weights.sum()
    rest = values - values.sum() / total * weights
    sums = torch.zeros(len(groups), dtype=torch.float64).index_add(0, index, rest)
    count = len(groups)
    return (float(sums.square().sum() / total**2) * count / (count - 1) if count > 1 else 0.0), count


def _spread(cells: Cells) -> _Spread:
    by_people, people = _variance(cells.people, cells.values, cells.weights)
    by_seeds, seeds = _variance(cells.seeds, cells.values, cells.weights)
    whole = by_people + by_seeds
    parts = by_people**2 / max(people - 1, 1) + by_seeds**2 / max(seeds - 1, 1)
    value = float(cells.values.sum() / cells.weights.sum())
    return _Spread(value, math.sqrt(whole), whole**2 / parts if parts > 0 else math.inf)


def _resampled(cells: Cells, resamples: int) -> Float64[Tensor, " r"]:
    """The mean over independently resampled people and seeds."""
    people, person = cells.people.unique(return_inverse=True)
    seeds, seed = cells.seeds.unique(return_inverse=True)
    grid = torch.zeros(2, len(people), len(seeds), dtype=torch.float64)
    grid.view(2, -1).index_add_(1, person * len(seeds) + seed, torch.stack([cells.values, cells.weights]))
    # Another stream than the people's: both would else be drawn alike where they are equally many.
    sums, counts = (drawn(len(people), resamples) @ part for part in grid)
    often = drawn(len(seeds), resamples, 1)
    weight = (often * counts).sum(dim=1)
    known = weight > 0  # nobody that was drawn was attacked under a seed that was drawn
    return (often * sums).sum(dim=1)[known] / weight[known]


def spanned(
    known: Interval, cells: Cells, lowest: float, highest: float, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """An interval over people, widened by what other training seeds would have given; as it is for a single seed.

    Args:
        known: Of these networks, over people.
        cells: What it was taken of.
        lowest: No bound lies below.
        highest: No bound lies above.
        confidence: Of the interval.
        resamples: Of the bootstrap.
    """
    if not cells.several:
        return known
    tail = (1 - confidence) / 2
    value, error, freedom = _spread(cells)
    half = -float(stdtrit(freedom, tail)) * error if error else 0.0
    ends = quantiles(_resampled(cells, resamples), tail, 1 - tail)
    low, high = min(known.low, ends[0], value - half), max(known.high, ends[1], value + half)
    return known._replace(low=max(lowest, low), high=min(highest, high))


def p_value(cells: Cells) -> float:
    """Two-sided p-value in (0, 1] that the mean over other people and other seeds is 0, by the t of the module; 0 where
    neither people nor seeds differ, so that there is no t."""
    value, error, freedom = _spread(cells)
    if error == 0:
        return float(value == 0)
    return 2 * float(stdtr(freedom, -abs(value) / error))
