"""Pairing: two sets of hits, the same people under the same training seeds, one difference.

Everything that compares two attack accuracies goes through `pair`, so that one difference has one interval and one
p-value wherever it is shown. What is paired are *cells*, each a person under one training seed:

- Both sides made equally many images in every shared cell: the difference is the mean over images, each cell weighs as
  many images as it has. The order of the images within a cell changes nothing.
- Otherwise: the mean over cells of the difference of the two shares of hits, each cell weighs one.

Both are differences of rates, whose interval never has zero width (`intervals.difference_of_rates`). People are the
observations: a person's cells under several seeds are summed first. Where there are two training seeds or more, the
interval and the p-value also allow for other seeds (`stats.seeds`); with one they are those of these trained networks.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from mibench.stats.intervals import Interval, by_cluster, difference_of_rates, proportion, rate
from mibench.stats.seeds import Cells, p_value, spanned
from mibench.stats.significance import sign_flips

__all__ = ["Hits", "Pairs", "between", "combined", "pair"]


@dataclass(frozen=True)
class Hits:
    """Which images were recognised as the person they are of.

    Args:
        people: The person (class) each image is of, at least 0.
        hits: Whether the image was recognised.
        seeds: The training seed of the target that each image was made from; all 0 if absent.
    """

    people: Int64[Tensor, " n"]
    hits: Bool[Tensor, " n"]
    seeds: Int64[Tensor, " n"] | None = None

    @cached_property
    def rate(self) -> Interval:
        """Share of hits in [0, 1], its interval clustered by person, and by training seed where there are several."""
        (names, hits, images) = self.cells
        return spanned(proportion(self.hits, self.people), Cells(names[:, 1], names[:, 0], hits, images), 0.0, 1.0)

    @cached_property
    def share(self) -> float:
        """The value of `rate`, for which nothing is resampled."""
        return float(self.cells[1].sum() / len(self.hits))

    @cached_property
    def cells(self) -> tuple[Int64[Tensor, "c 2"], Float64[Tensor, " c"], Float64[Tensor, " c"]]:
        """(seed, person) of each cell in rising order, its hits and its images."""
        if self.seeds is None or bool((self.seeds == self.seeds[0]).all()):
            people, index = self.people.unique(return_inverse=True)
            names = torch.stack(
                [torch.full_like(people, 0 if self.seeds is None else int(self.seeds[0])), people], dim=1
            )
        else:
            names, index = torch.stack([self.seeds, self.people], dim=1).unique(dim=0, return_inverse=True)
        zero = torch.zeros(len(names), dtype=torch.float64)
        ones = torch.ones(len(index), dtype=torch.float64)
        return names, zero.index_add(0, index, self.hits.double()), zero.index_add(0, index, ones)


def combined(parts: list[Hits]) -> Hits:
    """Hits of several targets, most often one for each training seed, as one."""
    if len(parts) == 1:
        return parts[0]
    seeds = [torch.zeros_like(part.people) if part.seeds is None else part.seeds for part in parts]
    people, hits = ([getattr(part, name) for part in parts] for name in ("people", "hits"))
    return Hits(torch.cat(people), torch.cat(hits), torch.cat(seeds))


@dataclass(frozen=True)
class Pairs:
    """Shared cells of two sets of hits.

    Args:
        people: The person of each cell.
        seeds: The training seed of each cell.
        differences: Hits of one minus hits of the other (or the difference of their shares), summed over the cell.
        weights: How many differences that is.
    """

    people: Int64[Tensor, " c"]
    seeds: Int64[Tensor, " c"]
    differences: Float64[Tensor, " c"]
    weights: Float64[Tensor, " c"]

    @cached_property
    def _by_person(self) -> tuple[Float64[Tensor, " p"], Float64[Tensor, " p"]]:
        return by_cluster(self.people, self.differences, self.weights)

    @cached_property
    def _cells(self) -> Cells | None:
        """What other seeds would change is taken of; None for a single seed."""
        cells = Cells(self.people, self.seeds, self.differences, self.weights)
        return cells if cells.several else None

    @cached_property
    def interval(self) -> Interval:
        """The mean difference in [-1, 1], its 95% interval clustered by person, and by seed where there are several."""
        known = difference_of_rates(*self._by_person)
        return known if self._cells is None else spanned(known, self._cells, -1.0, 1.0)

    @cached_property
    def p(self) -> float:
        """Two-sided p-value in (0, 1] of a sign-flip test over people; of several seeds the larger one of that and of a
        t test over people and seeds."""
        own = sign_flips(*self._by_person).p
        return own if self._cells is None else max(own, p_value(self._cells))

    @property
    def by_person(self) -> Float64[Tensor, " p"]:
        """Each person's mean difference, in the order of their numbers."""
        sums, weights = self._by_person
        return sums / weights


def pair(one: Hits, other: Hits) -> Pairs | None:
    """The (seed, person) cells that both have, compared; None if they share none."""
    shared = _shared(one, other)
    return None if shared is None else Pairs(shared.people, shared.seeds, shared.a - shared.b, shared.weights)


def between(one: Hits, other: Hits, share: float) -> Interval | None:
    """The rate a share of the way from one to the other, over the cells that both have; None if they share none.

    Args:
        one: Where share 0 is.
        other: Where share 1 is.
        share: In [0, 1].
    """
    shared = _shared(one, other)
    if shared is None:
        return None
    values = (1 - share) * shared.a + share * shared.b
    cells = Cells(shared.people, shared.seeds, values, shared.weights)
    return spanned(rate(*by_cluster(shared.people, values, shared.weights)), cells, 0.0, 1.0)


class _Shared(NamedTuple):
    """Cells that two sets of hits both have; `a` and `b` are comparable, each at most its weight."""

    people: Int64[Tensor, " c"]
    seeds: Int64[Tensor, " c"]
    a: Float64[Tensor, " c"]
    b: Float64[Tensor, " c"]
    weights: Float64[Tensor, " c"]


def _shared(one: Hits, other: Hits) -> _Shared | None:
    (names, a, a_images), (others, b, b_images) = one.cells, other.cells
    if torch.equal(names, others):
        return _comparable(names, a, a_images, b, b_images)
    # Cells are sorted on both sides, so numbering them all together keeps both in rising order.
    _, numbers = torch.cat([names, others]).unique(dim=0, return_inverse=True)
    mine, theirs = numbers.split([len(names), len(others)])
    known = torch.isin(mine, theirs)
    if not bool(known.any()):
        return None
    there = torch.searchsorted(theirs, mine[known])
    return _comparable(names[known], a[known], a_images[known], b[there], b_images[there])


def _comparable(names: Tensor, a: Tensor, a_images: Tensor, b: Tensor, b_images: Tensor) -> _Shared:
    """Hits where both made equally many images everywhere, else shares of hits."""
    seeds, people = names.T.contiguous()
    if torch.equal(a_images, b_images):
        return _Shared(people, seeds, a, b, a_images)
    return _Shared(people, seeds, a / a_images, b / b_images, torch.ones_like(a))
