"""Which scores are compared, and the one comparison that every part of the report shows.

A defended target is compared with its *twin*: the undefended target that is otherwise equal, attacked in the same way
from the same prior and seed. `compare` is the only place where the report turns two sets of scores into a difference,
its interval and its p-value (the arithmetic is `stats.pairing`).

Some defenses are out of an attacker's reach: whoever is told labels alone cannot see that scores were truncated, and
who holds the weights is not bound to what the service makes of their scores. Cards say so (`unseen_by`). Where nothing
that tells two targets apart can be seen, and the attack indeed made the same pixels, there is nothing to estimate: the
comparison is *identical* and has no interval and no p-value. Any other difference has an interval of some width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from mibench.report.naming import card
from mibench.report.result import Result
from mibench.runs import canonical
from mibench.stats.intervals import Interval
from mibench.stats.pairing import Hits, Pairs, combined, pair
from mibench.stats.significance import adjusted
from mibench.stats.strongest import of, strongest

__all__ = ["IDENTICAL", "Attacked", "Comparison", "compare", "holm", "identical", "seedless"]

IDENTICAL = "identical"
"""What a cell says where two targets answer an attacker alike by construction and the same pixels came out."""


@dataclass(frozen=True)
class Attacked:
    """One attack on one configuration: its scores, one for each training seed; or the strongest of several, chosen on
    half of the people and counted on the others (`stats.strongest`).

    Args:
        attack: What the attack is called; of two that were chosen `ppa | gmi`.
        hits: The headline's verdicts (likeness), all seeds together.
        results: Where they come from, one for each seed and attack; empty if unknown.
        people: Of each result, whose images count; empty where all do.
    """

    attack: str
    hits: Hits
    results: tuple[Result, ...] = ()
    people: tuple[Int64[Tensor, " _"], ...] = ()

    @classmethod
    def of(cls, attack: str, results: Sequence[Result]) -> "Attacked":
        """What some scores say together."""
        return cls(attack, combined([result.hits for result in results]), tuple(results))

    @classmethod
    def strongest(cls, among: Sequence["Attacked"]) -> "Attacked":
        """The strongest of some attacks in the headline, cross-fitted; of equal ones the first."""
        choice = strongest([one.hits for one in among])
        chosen = [among[place] for place in choice.places]
        if len(chosen) == 1:
            return chosen[0]
        results = [(result, own) for one, own in zip(chosen, choice.people, strict=True) for result in one.results]
        return cls(
            " | ".join(one.attack for one in chosen),
            choice.hits,
            tuple(result for result, _ in results),
            tuple(own for _, own in results),
        )

    @property
    def parts(self) -> list[tuple[Result, Int64[Tensor, " _"] | None]]:
        """Each result with the people whose images count; None where all do."""
        whose = self.people or (None,) * len(self.results)
        return list(zip(self.results, whose, strict=True))

    def judged_by(self, column: str) -> "Attacked | None":
        """The same images as another judge sees them; None where one of the scores has no such column."""
        if not self.results or any(column not in result.verdicts for result in self.results):
            return None
        parts = [(result.verdicts[column], own) for result, own in self.parts]
        hits = combined([known if own is None else of(known, own) for known, own in parts])
        return Attacked(self.attack, hits, self.results, self.people)

    @property
    def rate(self) -> Interval:
        """Likeness, its interval clustered by identity, and by training seed where there are several."""
        return self.hits.rate


@dataclass(frozen=True)
class Comparison:
    """Likeness of one minus that of another.

    Args:
        pairs: The people and seeds that both have.
        identical: Whether both are the same by construction.
    """

    pairs: Pairs
    identical: bool

    @cached_property
    def interval(self) -> Interval:
        """The difference; without bounds where there is nothing to estimate."""
        whole = self.pairs.interval
        return whole._replace(low=math.nan, high=math.nan) if self.identical else whole

    @property
    def p(self) -> float:
        """Two-sided p-value (`Pairs.p`); NaN where there is nothing to test."""
        return math.nan if self.identical else self.pairs.p

    @property
    def people(self) -> Int64[Tensor, " p"]:
        """Who was compared, in rising order."""
        return self.pairs.people.unique()

    @property
    def by_person(self) -> Float64[Tensor, " p"]:
        """The mean difference of each of `people`."""
        return self.pairs.by_person


def compare(one: Attacked, other: Attacked) -> Comparison | None:
    """Likeness of one minus the other's, paired over the identities and seeds that both have; None if none."""
    pairs = pair(one.hits, other.hits)
    return None if pairs is None else Comparison(pairs, _identical(one.results, other.results))


def _identical(ones: Sequence[Result], others: Sequence[Result]) -> bool:
    """Whether each score has an identical one on the other side."""
    there = {result.recipe: result for result in others}
    alike = len(ones) == len(others) == len(there) > 0
    return alike and all((twin := there.get(result.recipe)) is not None and identical(result, twin) for result in ones)


def identical(one: Result, other: Result) -> bool:
    """Whether two targets answer an attacker alike by construction, and the same pixels came out of it.

    The pixels are compared by the digest that scoring wrote down; scores without one are never called identical.
    """
    return (
        one.score.pixels != ""
        and one.score.pixels == other.score.pixels
        and one.access == other.access
        and _seen(one) == _seen(other)
        and torch.equal(one.hits.hits, other.hits.hits)
    )


def _seen(result: Result) -> str:
    """The part of a target's specification that an attacker of this access can notice."""
    spec = dict(result.target.spec)
    hidden = result.access.key
    spec["defenses"] = [
        item for item in spec.get("defenses", []) if hidden not in card("defenses", item["name"]).get("unseen_by", [])
    ]
    return canonical(spec)


def holm(p: pd.Series) -> list[float]:
    """Holm's correction over the comparisons of a table that were tested; NaN where one was not."""
    tested = p.notna()
    raised = pd.Series(math.nan, index=p.index)
    raised[tested] = adjusted(torch.tensor(p[tested].to_numpy(dtype="float64"))).numpy()
    return [float(value) for value in raised]


def seedless(result: Result) -> str:
    """What repeats of one experiment share."""
    specs = (result.target.spec, *result.made_by)
    return canonical([{key: value for key, value in spec.items() if key != "seed"} for spec in specs])
