"""Attack accuracy at matched natural accuracy: a defense over its strengths, beside no defense, paired.

A defense can be made private by being made useless, so two defenses are compared where both leave the same natural
accuracy. Let (x_i, y_i) be natural and attack accuracy of the undefended target (i = 0) and of the defense's measured
strengths. At x = x_0 - below the attack accuracy y(x) is read from the points in the order of rising x, on a straight
line between the two that enclose x; of points with equal x their mean counts. Nothing is extrapolated: beyond the
lowest measured x there is no estimate. The order in which strengths are given does not matter, nor do their values. Two
defenses are compared in the same way: both are read at x, and the second reading takes the place of y_0.

The estimate y(x) - y_0 moves with every point's natural accuracy as well as with its attack accuracy, so the interval
spans

1. the bootstrap over people, and (several training seeds) over people and seeds: all points are resampled together, and
   in each resample x_0 and every x_i and y_i are taken anew, the points are sorted and the line is read again. Where a
   resample does not reach x, its last segment is continued, because to stop there would make the interval too short;
2. several seeds: value -+ t se of the linearised estimate, t by Satterthwaite's rule (`stats.seeds`);
3. at the estimate's own bracket and share, the interval of a rate, or of the difference of two, which has a width where
   every resample agrees (`stats.intervals`).

It does not span what the defense does between two measured strengths if that is no straight line.

References:
    | Bootstrapping data arrays of arbitrary order (Owen and Eckles, 2012)
    | https://arxiv.org/abs/1106.2125
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from mibench.stats.intervals import Interval, by_cluster, difference_of_rates, drawn, expanded, rate
from mibench.stats.pairing import Hits
from mibench.stats.seeds import Cells, p_value, spanned

__all__ = ["Matched", "Measured", "matched"]

RESAMPLES = 2000


class Measured(NamedTuple):
    """One target configuration, all its training seeds together.

    Args:
        attack: Which reconstructions were recognised.
        natural: Which held-out images of which person were classified right.
    """

    attack: Hits
    natural: Hits


@dataclass(frozen=True)
class Matched:
    """Attack accuracy of a defense where it leaves a given natural accuracy.

    Args:
        rate: In [0, 1].
        difference: The same minus the undefended target's at its own natural accuracy, or minus a rival's at the same
            natural accuracy, in [-1, 1].
        p: Two-sided p-value that the difference is zero, by the t of the linearised estimate.
        left: Place of the point below, in what was given: 0 is the undefended target, then the strengths.
        right: Place of the point above.
        share: How far the estimate lies from the left point to the right one, in [0, 1].
    """

    rate: Interval
    difference: Interval
    p: float
    left: int
    right: int
    share: float

    @property
    def leaning(self) -> tuple[int, ...]:
        """Places of the points that the estimate depends on."""
        return tuple(
            dict.fromkeys(
                place for place, weight in ((self.left, 1 - self.share), (self.right, self.share)) if weight > 0
            )
        )


class _Grid(NamedTuple):
    """Sums and counts by person and training seed, 0 where there is nothing."""

    sums: Float64[Tensor, "p s"]
    counts: Float64[Tensor, "p s"]

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())

    @property
    def rest(self) -> Float64[Tensor, "p s"]:
        """How much each cell moves the mean; sums to 0."""
        return (self.sums - self.mean * self.counts) / self.counts.sum()

    def resampled(self, people: Float64[Tensor, "r p"], seeds: Float64[Tensor, "r s"]) -> Float64[Tensor, " r"]:
        """The mean over resampled people and seeds; NaN where none was drawn that has anything."""
        sums, counts = (((people @ part) * seeds).sum(dim=1) for part in self)
        return sums / counts


def _grid(hits: Hits, people: Int64[Tensor, " p"], seeds: Int64[Tensor, " s"]) -> _Grid:
    """A set of hits on the cells of these people and seeds; others are left out."""
    names, sums, counts = hits.cells
    known = torch.isin(names[:, 0], seeds) & torch.isin(names[:, 1], people)
    names = names[known]
    place = torch.searchsorted(people, names[:, 1].contiguous()) * len(seeds)
    place += torch.searchsorted(seeds, names[:, 0].contiguous())
    flat = torch.zeros(2, len(people) * len(seeds), dtype=torch.float64)
    flat.index_add_(1, place, torch.stack([sums[known], counts[known]]))
    return _Grid(*flat.view(2, len(people), len(seeds)))


def matched(
    none: Measured, strengths: Sequence[Measured], below: float, rival: Sequence[Measured] = ()
) -> Matched | None:
    """Attack accuracy where natural accuracy is `below` less than the undefended target's.

    Only training seeds that every point has are used, and of reconstructions only the cells (person and seed) that
    every point has; where these hold unequal numbers of images each cell counts once.

    Args:
        none: The undefended target.
        strengths: The defense at each measured strength, in any order.
        below: How much less, in [-1, 1].
        rival: Another defense's measured strengths: the difference is then to what it leaves at the same natural
            accuracy, not to no defense.

    Returns:
        None where no strength (or none of the rival's) costs that much (or, where `below` is negative, gains it), or
        where the points share no seed or no person.
    """
    points = [none, *strengths, *rival]
    seeds = _common([_seeds(hits) for point in points for hits in point])
    people = torch.cat([hits.people for point in points for hits in point]).unique()
    if not strengths or not len(seeds) or len(people) < 2:
        return None
    natural = [_grid(point.natural, people, seeds) for point in points]
    attack = _comparable([_grid(point.attack, people, seeds) for point in points])
    if float(attack[0].counts.sum()) == 0 or any(float(own.counts.sum()) == 0 for own in natural):
        return None
    own = list(range(len(strengths) + 1))
    others = [0, *range(len(own), len(points))] if rival else []
    reading = _reading(natural, attack, own, below)
    other = _reading(natural, attack, others, below) if rival else _undefended(attack[0])
    if reading is None or other is None:
        return None
    rates, gaps = _resampled(natural, attack, own, others, below)
    known = attack[0].counts > 0
    who, weights = torch.arange(len(people)).repeat_interleave(len(seeds))[known.flatten()], attack[0].counts[known]
    fixed = rate(*by_cluster(who, reading.sums[known], weights))
    apart = difference_of_rates(*by_cluster(who, (reading.sums - other.sums)[known], weights))
    level, _ = _interval(fixed, reading.moves, rates, 0.0)
    gap, p = _interval(apart, reading.moves - other.moves, gaps, -1.0)
    return Matched(level, gap, p, reading.left, reading.right, reading.share)


class _Reading(NamedTuple):
    """Attack accuracy at a natural accuracy: between which points, and what it is made of, cell by cell."""

    left: int
    right: int
    share: float
    sums: Float64[Tensor, "p s"]
    """Hits between the two points; over the counts of the cells they give the attack accuracy."""
    moves: Float64[Tensor, "p s"]
    """How much each cell moves it, by its hits and by the natural accuracies."""


def _undefended(attack: _Grid) -> _Reading:
    return _Reading(0, 0, 0.0, attack.sums, attack.rest)


def _reading(natural: Sequence[_Grid], attack: Sequence[_Grid], places: Sequence[int], below: float) -> _Reading | None:
    """What some of the points say, the undefended one first; None beyond them."""
    x, y = (torch.tensor([grids[place].mean for place in places], dtype=torch.float64) for grids in (natural, attack))
    at = float(x[0]) - below
    if not float(x.min()) - 1e-12 <= at <= float(x.max()) + 1e-12:
        return None
    left, right, share = _bracket(x, at)

    def blend(grids: Sequence[_Grid], part: Callable[[_Grid], Tensor]) -> Tensor:
        """Between both points; of points with equal x the mean counts."""
        ends = [
            torch.stack([part(grids[place]) for place, other in zip(places, x.tolist(), strict=True) if other == end])
            for end in (float(x[left]), float(x[right]))
        ]
        return (1 - share) * ends[0].mean(dim=0) + share * ends[1].mean(dim=0)

    shift = natural[0].rest - blend(natural, lambda grid: grid.rest)
    moves = blend(attack, lambda grid: grid.rest) + _slope(x, y, left, right) * shift
    return _Reading(places[left], places[right], share, blend(attack, lambda grid: grid.sums), moves)


def _seeds(hits: Hits) -> Int64[Tensor, " s"]:
    return hits.cells[0][:, 0].unique()


def _common(sets: Sequence[Int64[Tensor, " _"]]) -> Int64[Tensor, " s"]:
    """What all of these have, in rising order."""
    kept = sets[0]
    for one in sets[1:]:
        kept = kept[torch.isin(kept, one)]
    return kept


def _comparable(grids: Sequence[_Grid]) -> list[_Grid]:
    """Only the cells that all have; shares of hits where they hold unequal numbers of images."""
    known = torch.stack([own.counts > 0 for own in grids]).all(dim=0)
    kept = [_Grid(own.sums * known, own.counts * known) for own in grids]
    if all(torch.equal(own.counts, kept[0].counts) for own in kept):
        return kept
    return [_Grid(own.sums / own.counts.clamp(min=1), known.double()) for own in kept]


def _bracket(x: Float64[Tensor, " k"], at: float) -> tuple[int, int, float]:
    """The neighbours of `at` among the x, the nearer ones, and how far it lies from the left one to the right one."""
    lower = torch.where(x <= at + 1e-12, x, -torch.inf)
    upper = torch.where(x >= at - 1e-12, x, torch.inf)
    left, right = int(lower.argmax()), int(upper.argmin())
    width = float(x[right] - x[left])
    if width <= 1e-12:
        return left, left, 0.0
    return left, right, min(max((at - float(x[left])) / width, 0.0), 1.0)


def _slope(x: Float64[Tensor, " k"], y: Float64[Tensor, " k"], left: int, right: int) -> float:
    """How steep the line is at the estimate; at a measured point the mean of the lines to either side of it."""
    pairs = [(left, right)]
    if left == right:
        below, above = torch.where(x < x[left] - 1e-12)[0], torch.where(x > x[left] + 1e-12)[0]
        pairs = [(int(below[x[below].argmax()]), left)] if len(below) else []
        pairs += [(left, int(above[x[above].argmin()]))] if len(above) else []
    means = [[float(v[x == x[place]].mean()) for place in pair for v in (x, y)] for pair in pairs]
    slopes = [(y1 - y0) / (x1 - x0) for x0, y0, x1, y1 in means]
    return sum(slopes) / len(slopes) if slopes else 0.0


def _resampled(
    natural: Sequence[_Grid], attack: Sequence[_Grid], own: Sequence[int], others: Sequence[int], below: float
) -> tuple[list[Tensor], list[Tensor]]:
    """(attack accuracy, difference) over resampled people, and with several seeds also over people and seeds."""
    people, seeds = natural[0].sums.shape
    ways = [torch.ones(RESAMPLES, seeds, dtype=torch.float64)]
    if seeds > 1:
        ways.append(drawn(seeds, RESAMPLES, 1))  # another stream than the people's
    weight = drawn(people, RESAMPLES)
    rates, gaps = [], []
    for often in ways:
        x, y = (torch.stack([one.resampled(weight, often) for one in grids], dim=1) for grids in (natural, attack))
        whole = (x.isfinite() & y.isfinite()).all(dim=1)
        x, y = x[whole], y[whole]
        at = x[:, :1] - below

        def read(places: Sequence[int], x: Tensor = x, y: Tensor = y, at: Tensor = at) -> Tensor:
            # In an order of their own, so that where points tie in a resample it does not matter how they were given.
            order = sorted(places, key=lambda place: (natural[place].mean, attack[place].mean))
            return _read(x[:, order], y[:, order], at)

        values = read(own)
        rates.append(values)
        gaps.append(values - (read(others) if others else y[:, 0]))
    return rates, gaps


def _read(x: Float64[Tensor, "r k"], y: Float64[Tensor, "r k"], at: Float64[Tensor, "r 1"]) -> Float64[Tensor, " r"]:
    """The line through each row's points at a place of its own, in [0, 1]; beyond the ends the last segment goes on."""
    order = x.argsort(dim=1, stable=True)
    x, y = x.gather(1, order), y.gather(1, order)
    right = torch.searchsorted(x, at.contiguous()).clamp(1, x.shape[1] - 1)
    x0, x1 = x.gather(1, right - 1), x.gather(1, right)
    y0, y1 = y.gather(1, right - 1), y.gather(1, right)
    share = torch.where(x1 - x0 > 1e-12, (at - x0) / (x1 - x0).clamp(min=1e-12), 0.5)
    return (y0 + share * (y1 - y0)).clamp(0.0, 1.0)[:, 0]


def _interval(
    fixed: Interval, moves: Float64[Tensor, "p s"], ways: list[Tensor], lowest: float
) -> tuple[Interval, float]:
    """The union of the intervals of the module, and the p-value of the linearised estimate.

    Args:
        fixed: At the estimate's own bracket and share.
        moves: How much each cell moves the estimate.
        ways: Resampled estimates: over people, then over people and seeds.
        lowest: No bound lies below; none lies above 1.
    """
    people, seeds = moves.shape
    lows, highs = [fixed.low, fixed.value], [fixed.high, fixed.value]
    for place, values in enumerate(ways):
        ends = expanded(values, people) if place == 0 else tuple(values.quantile(QUANTILES).tolist())
        lows.append(ends[0])
        highs.append(ends[1])
    known = fixed._replace(low=max(lowest, min(lows)), high=min(1.0, max(highs)))
    values = fixed.value + moves.numel() * moves.flatten()
    cells = Cells(
        torch.arange(people).repeat_interleave(seeds),
        torch.arange(seeds).repeat(people),
        values,
        torch.ones_like(values),
    )
    return spanned(known, cells, lowest, 1.0), p_value(cells)


QUANTILES = torch.tensor([0.025, 0.975], dtype=torch.float64)
