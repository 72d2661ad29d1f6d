"""Tests: whether a difference could be chance, and what many tests at once cost.

Images of one identity rise and fall together, so an identity is one observation, however many images and seeds it has.
If two targets leak alike, the signs of the identities' differences are arbitrary: the p-value is the share of sign
patterns that give a mean at least as far from zero. Nothing is assumed of how the differences are distributed.

Of m true nulls tested at .05, one in twenty is called a difference. Holm's correction bounds the chance of even one
such call.

Simulated with 20 identities x 5 images at .05: a true null is rejected 5% of the time, 3% for hits (equal sums count
against the difference); a test that takes images for independent rejects it 17% of the time
(tests/stats/test_significance.py).

References:
    | The Design of Experiments (Fisher, 1935), the sign-flip test
    | https://en.wikipedia.org/wiki/The_Design_of_Experiments
    | Permutation P-values Should Never Be Zero (Phipson and Smyth, 2010), the +1
    | https://arxiv.org/abs/1603.05766
    | A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
    | https://www.jstor.org/stable/4615733

Differs:
    Identities with more images weigh more, as in the difference that `paired_interval` shows: the sum of an identity's
    differences is flipped, not their mean. With equal numbers of images both are one test.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int8, Int64
from torch import Tensor

from mibench.runtime.rng import generator
from mibench.stats.inputs import require_finite
from mibench.stats.intervals import cluster_sums

__all__ = ["Comparison", "adjusted", "gap_test", "least_p", "paired_test", "sign_flips"]

EXACT = 12
"""Up to so many identities that differ, all sign patterns are counted; above, patterns are drawn."""

_CHUNK = 1 << 21
"""Numbers in one chunk of patterns: 16 MiB in float64."""


class Comparison(NamedTuple):
    """A difference with its two-sided p-value in (0, 1]; `patterns` were counted, all of them if `exact`."""

    difference: float
    p: float
    clusters: int
    patterns: int
    exact: bool


def paired_test(
    a_values: Bool[Tensor, " n"] | Float[Tensor, " n"],
    b_values: Bool[Tensor, " n"] | Float[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Whether the mean of a - b over images paired by order differs from zero; identities are the observations.

        p = #{|sum_i s_i d_i| >= |sum_i d_i|} / patterns,   d_i = sum of a - b over the images of identity i

    over all signs s where at most 12 identities have d_i != 0 (the others change no sum), else
    (1 + #) / (1 + resamples) over drawn signs. Pass images of several seeds together: they are one identity's.

    Raises:
        ValueError: NaN or infinite values, unequal lengths, no values, fewer than 99 resamples.
    """
    if len(a_values) == 0 or not len(a_values) == len(b_values) == len(clusters):
        raise ValueError(
            f"test: {len(a_values)} and {len(b_values)} values and {len(clusters)} clusters; give one of each per image"
        )
    if resamples < 99:
        raise ValueError(f"test: {resamples} resamples; at least 99 (9,999 for a p-value of .0001)")
    require_finite("test", "values", a_values.double())
    require_finite("test", "values", b_values.double())
    # On the CPU, so that one seed gives one p-value whatever device the scores came from.
    values = a_values.detach().cpu().double() - b_values.detach().cpu().double()
    sums, counts = cluster_sums(values, clusters.cpu())
    return sign_flips(sums, counts, resamples, seed)


def sign_flips(
    sums: Float64[Tensor, " c"], counts: Float64[Tensor, " c"], resamples: int = 9999, seed: int = 0
) -> Comparison:
    """`paired_test` of each identity's sum of differences and the number of its differences."""
    scale = float(sums.abs().sum())
    # Sums in another order differ in the last digits: what is equal up to these is as far from zero.
    least = float(sums.sum().abs()) - 1e-10 * scale
    differing = sums[sums.abs() > 1e-12 * scale]
    exact = len(differing) <= EXACT
    signs = _every(len(differing)) if exact else _drawn(len(sums), resamples, seed)
    flipped = differing if exact else sums
    chunk = max(1, _CHUNK // max(1, len(flipped)))
    extreme = sum(int(((part.double() @ flipped).abs() >= least).sum()) for part in signs.split(chunk))
    p = extreme / len(signs) if exact else (1 + extreme) / (1 + resamples)
    return Comparison(float(sums.sum() / counts.sum()), p, len(sums), len(signs), exact)


@lru_cache(maxsize=EXACT + 1)
def _every(count: int) -> Int8[Tensor, "p c"]:
    """All patterns of so many signs."""
    bits = torch.arange(1 << count)[:, None] >> torch.arange(count)
    return (1 - 2 * (bits & 1)).to(torch.int8)


@lru_cache(maxsize=2)
def _drawn(count: int, resamples: int, seed: int) -> Int8[Tensor, "p c"]:
    """So many random patterns; kept, since a report asks for the same ones again and again."""
    drawn = torch.randint(2, (resamples, count), generator=generator("sign flips", seed), dtype=torch.int8)
    return 1 - 2 * drawn


def least_p(clusters: int, comparisons: int = 1) -> float:
    """The smallest p-value that so many identities can give, after Holm's correction: min(1, m 2^(1 - c)).

    Five identities never reach .05, whatever they show.
    """
    return min(1.0, comparisons * 2.0 ** (1 - clusters))


def adjusted(p: Float[Tensor, " m"]) -> Float64[Tensor, " m"]:
    """p-values of m tests that are read together, by Holm's correction; each in [p, 1], in the order given.

        max over j <= i of (m - j + 1) p_(j),   p_(1) <= ... <= p_(m) sorted

    At .05 it calls a wrong difference in at most 5% of tables, whatever the dependence of the tests.

    Raises:
        ValueError: A p-value outside [0, 1], or NaN.
    """
    values = p.detach().cpu().double()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("adjusted: p-values must lie in [0, 1]; leave out what was not tested")
    m = len(values)
    if m == 0:
        return values
    ordered, order = values.sort(stable=True)
    rank = torch.arange(1, m + 1, dtype=torch.float64)
    raised = ((m - rank + 1) * ordered).cummax(0).values.clamp(max=1.0)
    return torch.empty_like(values).scatter_(0, order, raised)


def gap_test(
    values: Bool[Tensor, " n"] | Float[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    groups: Int64[Tensor, " n"],
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """p-value in (0, 1] of the largest difference between the means of two groups of identities.

    The largest of several gaps is never zero, so it is compared with the largest gap under shuffled memberships:
    (1 + #{gap* >= gap}) / (1 + resamples), identities shuffled as wholes.

    Raises:
        ValueError: NaN or infinite values, unequal lengths, an identity in two groups, fewer than two groups.
    """
    if len(values) == 0 or not len(values) == len(clusters) == len(groups):
        raise ValueError(f"gap: {len(values)} values, {len(clusters)} clusters and {len(groups)} groups; one per image")
    require_finite("gap", "values", values.double())
    names, index = clusters.cpu().unique(return_inverse=True)
    kinds, kind = groups.cpu().unique(return_inverse=True)
    member = torch.zeros(len(names), dtype=torch.int64).scatter_(0, index, kind)
    if len(kinds) < 2 or not torch.equal(member[index], kind):
        raise ValueError("gap: give two groups or more, and each identity to one of them")
    zero = torch.zeros(len(names), dtype=torch.float64)
    sums = zero.index_add(0, index, values.detach().cpu().double())
    counts = zero.index_add(0, index, torch.ones(len(index), dtype=torch.float64))
    inside = torch.nn.functional.one_hot(member).double()

    def gap(order: Int64[Tensor, "r c"]) -> Float64[Tensor, " r"]:
        means = (sums[order] @ inside) / (counts[order] @ inside)
        return means.amax(1) - means.amin(1)

    own = float(gap(torch.arange(len(names))[None]))
    draw, extreme = generator("shuffled groups", seed), 0
    chunk = max(1, _CHUNK // len(names))
    for start in range(0, resamples, chunk):
        shape = (min(chunk, resamples - start), len(names))
        order = torch.rand(shape, generator=draw, dtype=torch.float64).argsort(1)
        extreme += int((gap(order) >= own - 1e-10).sum())
    return (1 + extreme) / (1 + resamples)
