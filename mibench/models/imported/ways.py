"""Ways of asking a model, what is known of it beforehand, and what was found."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int64, UInt8
from torch import Tensor

from mibench.core.access import Access
from mibench.models.imported.network import Output, Wanted

__all__ = ["NOTHING", "Found", "Given", "Pictures", "Way", "best_of"]

SURE = 0.1
"""Mean log-probability by which a way must be surer of the right people than a more usual one."""

AS_SURE = 0.02
"""The same for sizes, which change no contrast: below, the most usual size is taken."""


class Pictures(NamedTuple):
    """Pictures of the private people, spread over them.

    Args:
        at: (side, channels) -> the pictures.
        labels: Places in `names`.
        names: Of the people: folders, in alphabetical order.
        learnt: Whether a picture is among those a target would be trained on; the others are held out.
        side: In pixels, the shorter one of the middle picture's file; None where that is not known.
    """

    at: Callable[[int, int], UInt8[Tensor, "n c s s"]]
    labels: Int64[Tensor, " n"]
    names: tuple[str, ...]
    learnt: Tensor
    side: int | None = None


@dataclass(frozen=True)
class Given:
    """What the user says the model wants; None is to be found out.

    Args:
        size: Side in pixels.
        normalise: A key of NORMALISATIONS, or mean and std as `0.5,0.5`.
        channels: `rgb`, `bgr` or `grey`.
        output: One of OUTPUTS.
        classes: The names of the outputs, in order; `matched` takes the one-to-one naming that fits best.
    """

    size: int | None = None
    normalise: str | None = None
    channels: str | None = None
    output: Output | None = None
    classes: tuple[str, ...] | None = None
    matched: bool = False


NOTHING = Given()
"""The user says nothing."""


@dataclass(frozen=True)
class Way:
    """One way of asking and reading, and how well it does.

    Args:
        wanted: The way.
        normalisation: In words.
        order: Of the classes, in words.
        accuracy: Share of the pictures whose person it names.
        confidence: Mean log-probability of the right person.
        n: Pictures.
        rank: How usual it is; 0 is the most.
        mismatch: Between what the first batch norm sees and what it remembers; NaN in a network without.
    """

    wanted: Wanted
    normalisation: str
    order: str
    accuracy: float
    confidence: float
    n: int
    rank: int = 0
    mismatch: float = math.nan


@dataclass(frozen=True)
class Found:
    """What a model wants.

    Args:
        way: The way that fits.
        ways: All that were tried, best first.
        grants: The strongest access that it gives.
        gallery: Whether it is an embedder, identified by a gallery of the private pictures.
        notes: What the user should know, a sentence each.
        shown: Pictures that a server was shown to find out; 0 of a model that runs here.
        pictures: Those that it could have been shown.
        usual: Side that the architecture is published for; None where that is not known.
    """

    way: Way
    ways: tuple[Way, ...]
    grants: Access
    gallery: bool
    notes: tuple[str, ...]
    shown: int = 0
    pictures: int = 0
    usual: int | None = None

    @property
    def told(self) -> list[str]:
        """What was found and why, a line each."""
        wanted, way = self.wanted, self.way
        colours = "grey" if wanted.channels == 1 else "blue, green, red" if wanted.reverse else "red, green, blue"
        side = f"{wanted.size} px" if wanted.size else "as they are sent"
        lines = [f"input: {side}, {colours}{', channels last' if wanted.last else ''}, {way.normalisation}"]
        lines.append(f"output: {len(wanted.order)} {wanted.output}" if not self.gallery else "output: embeddings")
        lines.append(f"classes: {way.order}")
        lines.append(f"names {way.accuracy:.0%} of {way.n} private pictures rightly{self._better()}")
        lines += self._sizes()
        alike = [one.normalisation for one in self.ways if self._as_good(one)]
        if alike:
            told = ", ".join(dict.fromkeys(alike))
            lines.append(f"no worse, and so not told apart: {told}; say --normalise if you know")
        return lines

    def _sizes(self) -> list[str]:
        """Which other sizes were tried, and why this one was taken."""
        own = self.wanted.size
        best: dict[int, Way] = {}
        for one in self.ways:  # best first; what was tried on more pictures counts more
            known = best.get(one.wanted.size)
            if known is None or (one.n, one.accuracy) > (known.n, known.accuracy):
                best[one.wanted.size] = one
        if len(best) < 2:
            return []
        rest = [best[size] for size in best if size != own]
        good = [one for one in rest if one.accuracy >= self.way.accuracy - margin(self.way.accuracy, one.n)]
        shown = sorted(rest, key=lambda one: -one.accuracy)[:2]
        if self.usual in best and self.usual != own:
            shown.append(best[self.usual])
        others = ", ".join(f"{one.wanted.size} px {one.accuracy:.0%}" for one in dict.fromkeys(shown))
        published = f" ({self.usual} px is the published size)" if self.usual and self.usual != own else ""
        if not good:
            apart = 100 * max(margin(self.way.accuracy, one.n) for one in rest)
            return [f"size: {own} px of {len(best)} tried; {others}: worse by more than {apart:.0f} points{published}"]
        alike = ", ".join(f"{one.wanted.size}" for one in sorted(good, key=lambda one: one.wanted.size))
        why = "the published size" if own == self.usual else "the surest of the right people"
        apart = 100 * max(margin(self.way.accuracy, one.n) for one in good)
        return [
            f"size: {own} px of {len(best)} tried ({why}); within {apart:.0f} points, and so not told apart by "
            f"accuracy: {alike} px; say --size if you know{published}"
        ]

    def _as_good(self, one: Way) -> bool:
        best = self.way
        same = one.wanted.size == best.wanted.size and one.wanted.reverse == best.wanted.reverse
        equal = one.accuracy >= best.accuracy and one.order == best.order and one.n == best.n
        equal = equal and math.isnan(best.mismatch)
        return same and equal and one.normalisation != best.normalisation

    @property
    def wanted(self) -> Wanted:
        """What the model wants."""
        return self.way.wanted

    def _better(self) -> str:
        """How the next best ways do that differ in one respect."""
        best, told = self.way, []
        keys: tuple[Callable[[Way], str], ...] = (
            lambda one: one.normalisation,
            lambda one: "blue first" if one.wanted.reverse else "red first",
            lambda one: one.order,
        )
        for key in keys:
            others = [one for one in self.ways if key(one) != key(best) and one.wanted.size == best.wanted.size]
            if others:
                next_best = max(others, key=lambda one: (one.accuracy, one.confidence))
                if next_best.accuracy >= best.accuracy and key is keys[0] and math.isnan(best.mismatch):
                    continue
                told.append(f"{key(next_best)} {next_best.accuracy:.0%}")
        return f"; next best: {', '.join(told)}" if told else ""


def _of_one_size(near: Sequence[Way]) -> list[Way]:
    """Those of the size at which the right people are named most surely; of sizes that hardly differ in that, the most
    usual one."""
    sure: dict[int, float] = {}
    for way in near:
        sure[way.wanted.size] = max(way.confidence, sure.get(way.wanted.size, -math.inf))
    as_sure = {size for size, value in sure.items() if value >= max(sure.values()) - AS_SURE}
    size = min((way for way in near if way.wanted.size in as_sure), key=lambda way: way.rank).wanted.size
    return [way for way in near if way.wanted.size == size]


def margin(accuracy: float, n: int) -> float:
    """How much less accurate a way may be and still not be told apart from the best: one standard error.

    sqrt(max(p (1 - p), 1 / n) / n) of an accuracy p on n pictures, so that it is at least one picture.
    """
    return math.sqrt(max(accuracy * (1 - accuracy), 1 / n) / n)


def best_of(ways: Sequence[Way]) -> Way:
    """See the module; of those that were tried on most pictures."""
    n = max(way.n for way in ways)
    ways = [way for way in ways if way.n == n]
    most = max(way.accuracy for way in ways)
    near = _of_one_size([way for way in ways if way.accuracy >= most - margin(most, n)])
    if not any(math.isnan(way.mismatch) for way in near):
        return min(near, key=lambda way: (way.mismatch, way.rank))
    surest = max(way.confidence for way in near)
    return min((way for way in near if way.confidence >= surest - SURE), key=lambda way: (way.rank, -way.confidence))
