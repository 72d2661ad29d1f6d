"""What leaks from one target, for its owner: beyond what would be drawn anyway, for whom, how sure, at what price less.

The attacker takes the strongest of the attacks that were run, the floor the strongest of those that know nothing of the
target or search nothing, both cross-fitted (`stats.strongest`); their difference is paired over people. There is a
verdict where its interval lies above zero and enough people were attacked; otherwise it says that there is none, and
never that nothing leaks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mibench.core import Access
from mibench.evaluation.checks import CHECKS, PEOPLE, Finding, check_facts, passed
from mibench.metrics import Unit
from mibench.report import facts
from mibench.report.leakage import numbered
from mibench.report.naming import defense_label
from mibench.report.pairing import Attacked, Comparison, compare
from mibench.report.result import Result
from mibench.stats.intervals import Interval

__all__ = ["FEWEST", "MOST", "Exposed", "Offer", "Outcome", "Verdict", "verdict"]

FEWEST = 6
"""People below which there is no verdict: of 5, no sign-flip test can give p < .05 (2 / 2^5)."""

MOST = 5
"""Exposed people that are named."""


class Outcome(Enum):
    """What can be said."""

    LEAKS = "leaks"
    NOT_SHOWN = "not shown"
    TOO_FEW = "too few people"


@dataclass(frozen=True)
class Exposed:
    """One person: reconstructions that are recognised, of how many."""

    name: str
    hits: int
    n: int


@dataclass(frozen=True)
class Offer:
    """What a defense would buy, on targets that were trained here on the same data.

    Args:
        defense: With its strength.
        model: The architecture it was trained with.
        natural: Accuracy on held-out images, with the defense.
        undefended: The same without.
        gap: Likeness with the defense less that without, paired; None where they share no people.
    """

    defense: str
    model: str
    natural: Interval
    undefended: Interval
    gap: Interval | None


@dataclass(frozen=True)
class Verdict:
    """What leaks from one target. Rates lie in [0, 1].

    Args:
        outcome: What can be said.
        target: Its label.
        model: Its architecture.
        access: What the attacker was granted.
        people: How many were attacked.
        classes: How many the target knows of.
        attack: The strongest attack; of two that were chosen on halves of the people `ppa | gmi`.
        rate: Its likeness.
        floor: The strongest floor; empty where none was run.
        floor_rate: Its likeness.
        comparison: Attack minus floor, paired; None without a floor.
        ceiling: Likeness of real held-out photographs.
        natural: The target's accuracy on held-out images.
        exposed: People whose reconstructions are recognised, worst first.
        findings: What the checks found of the attacks.
        checks_passed: How many checks found nothing.
        untried: What was not tried, a sentence each.
        offers: What defenses would buy.
        imported: The target was trained elsewhere, perhaps on the held-out images too.
    """

    outcome: Outcome
    target: str
    model: str
    access: Access
    people: int
    classes: int
    attack: str
    rate: Interval
    floor: str
    floor_rate: Interval | None
    comparison: Comparison | None
    ceiling: Interval | None
    natural: Interval | None
    exposed: tuple[Exposed, ...]
    findings: tuple[Finding, ...]
    checks_passed: int
    untried: tuple[str, ...]
    offers: tuple[Offer, ...]
    imported: bool

    @property
    def gap(self) -> Interval | None:
        """Attack minus floor, with its 95% interval."""
        return self.comparison.interval if self.comparison else None

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON values; NaN is null."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "comparison"}
        known |= {"gap": self.gap, "p": self.comparison.p if self.comparison else None, "headline": self.headline}
        value: dict[str, Any] = _plain(known)
        return value

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        who = f"an attacker with {self.access.words} access"
        if self.outcome is Outcome.TOO_FEW:
            return (
                f"No verdict: {self.people} people were attacked, and fewer than {FEWEST} tell nothing; attack "
                "more, or add people"
            )
        gap = self.gap
        if gap is None:
            return f"No verdict: no floor was run beside {self.attack}, so that its {_share(self.rate)}% may be luck"
        beyond = f"{_points(gap)} points beyond the best floor ({self.floor})"
        if self.outcome is Outcome.LEAKS:
            share = f"{_share(self.rate)}% of the reconstructions show the person"
            return f"Leaks: of what {who} draws with {self.attack}, {share}: {beyond}"
        return (
            f"No verdict: {self.attack}, the strongest attack tried with {self.access.words} access, is {beyond}, "
            "which is no evidence that it got anything from the model; that is not evidence that nothing leaks"
        )

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Everything else, as (word, sentence); one screen."""
        told: list[tuple[str, str]] = []
        if self.exposed:
            named = ", ".join(f"{one.name} {one.hits}/{one.n}" for one in self.exposed[:MOST])
            more = len(self.exposed) - MOST
            told.append(("whom", f"{named}{f' and {more} more' if more > 0 else ''}; of {self.people} attacked"))
        elif self.outcome is not Outcome.TOO_FEW:
            told.append(("whom", f"nobody of {self.people} attacked is recognised in a reconstruction"))
        real = f"; real photographs reach {_share(self.ceiling)}%" if self.ceiling else ""
        floor = f", floor {self.floor} {_share(self.floor_rate)}%" if self.floor_rate else ""
        told.append(("likeness", f"{self.attack} {_share(self.rate)}%{floor}{real}"))
        if self.natural is not None:
            seen = "pictures that it may have learnt" if self.imported else "held-out pictures"
            told.append(("accuracy", f"the model names {_share(self.natural)}% of {seen}"))
        told.append(("sure", self._sure()))
        for finding in self.findings[:3]:
            told.append(("careful", f"{finding.check}: {finding.text}"))
        told += [("defense", _offered(one)) for one in self.offers]
        told += [("not tried", line) for line in self.untried]
        return told

    def _sure(self) -> str:
        p = f"p = {self.comparison.p:.2g} (sign flips over people); " if self.comparison else ""
        few = f"fewer than {PEOPLE} people say little of others; " if self.people < PEOPLE else ""
        return f"{p}intervals are 95% over people; {few}{self.checks_passed} of {len(CHECKS)} checks found nothing"

    def __rich__(self) -> RenderableType:
        """One screen."""
        colour = {Outcome.LEAKS: "bold red", Outcome.NOT_SHOWN: "bold yellow", Outcome.TOO_FEW: "bold yellow"}
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="bold", no_wrap=True, width=9)
        grid.add_column(overflow="fold")
        before = ""
        for word, line in self.lines:
            grid.add_row(word if word != before else "", Text(line))
            before = word
        return Group(Text(self.headline, style=colour[self.outcome]), Text(), grid)


def _plain(value: Any) -> Any:
    """What JSON has: enumerations by their words, records as mappings, NaN as null."""
    if isinstance(value, Access):
        return value.key
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Exposed | Offer):
        return _plain({one.name: getattr(value, one.name) for one in fields(value)})
    if isinstance(value, Interval | Finding):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _points(value: Interval | None) -> str:
    return Unit.POINTS.interval(*value[:3]) if value is not None else ""


def _share(value: Interval | None) -> str:
    return Unit.SHARE.interval(*value[:3], digits=0) if value is not None else ""


def _offered(offer: Offer) -> str:
    lost = 100 * (offer.natural.value - offer.undefended.value)
    gap = f"likeness {_points(offer.gap)} points" if offer.gap is not None else "not compared"
    return f"{offer.defense} ({offer.model}, trained here on the same data): {gap} for {lost:+.1f} points of accuracy"


def verdict(
    results: Sequence[Result],
    target: str,
    access: Access | None = None,
    untried: Sequence[str] = (),
    names: bool = True,
) -> Verdict:
    """What leaks from one target.

    Args:
        results: All scores of a results folder, those of defended targets among them.
        target: The run's id.
        access: What the attacker was granted: attacks that asked for more are left out; the most that any asked for if
            absent.
        untried: What was not tried.
        names: Whether people are called by their names.

    Raises:
        ValueError: No attack on the target with this access has been scored.
    """
    own = [one for one in results if one.target.id == target]
    attacks = [one for one in own if one.role == "attack" and (access is None or one.access <= access)]
    if not attacks:
        raise ValueError(f"verdict: no scored attack on {target}" + (f" with {access.words} access" if access else ""))
    protocol = max(
        {one.protocol for one in attacks}, key=lambda key: max(r.score.identities for r in attacks if r.protocol == key)
    )
    attacks = [one for one in attacks if one.protocol == protocol]
    floors = [one for one in own if one.role == "floor" and one.protocol == protocol]
    granted = access or max(one.access for one in attacks)
    floors = [one for one in floors if one.access <= granted]
    best = Attacked.strongest([Attacked.of(one.attack, [one]) for one in attacks])
    floor = Attacked.strongest([Attacked.of(one.attack, [one]) for one in floors]) if floors else None
    comparison = compare(best, floor) if floor is not None else None
    first = best.results[0]
    findings = tuple(check_facts(facts.facts(result, own) for result in best.results))
    people = first.score.identities
    outcome = Outcome.NOT_SHOWN
    if people < FEWEST:
        outcome = Outcome.TOO_FEW
    elif comparison is not None and comparison.interval.low > 0:
        outcome = Outcome.LEAKS
    return Verdict(
        outcome=outcome,
        target=first.target.label,
        model=str(first.target.spec["model"]),
        access=granted,
        people=people,
        classes=first.score.classes,
        attack=best.attack,
        rate=best.rate,
        floor=floor.attack if floor is not None else "",
        floor_rate=floor.rate if floor is not None else None,
        comparison=comparison,
        ceiling=first.score.likeness_ceiling,
        natural=first.score.natural_accuracy,
        exposed=_exposed(best, names),
        findings=findings,
        checks_passed=len(passed(list(findings))),
        untried=tuple(untried),
        offers=_offers(results, first),
        imported=first.target.spec.get("origin") == "imported",
    )


def _exposed(best: Attacked, names: bool) -> tuple[Exposed, ...]:
    """People with a recognised reconstruction, worst first; of equal ones in the order of the data."""
    by_name = best.results[0].per_image.groupby("label")["identity"].first()
    counts: dict[int, tuple[int, int]] = {}
    for person, hit in zip(best.hits.people.tolist(), best.hits.hits.tolist(), strict=True):
        hits, n = counts.get(person, (0, 0))
        counts[person] = (hits + int(hit), n + 1)
    ranked = sorted(
        (item for item in counts.items() if item[1][0]), key=lambda item: (-item[1][0] / item[1][1], item[0])
    )
    return tuple(
        Exposed(str(by_name.get(person, person)) if names else numbered(person), hits, n)
        for person, (hits, n) in ranked
    )


def _offers(results: Sequence[Result], audited: Result) -> tuple[Offer, ...]:
    """Defended targets of the same data with their undefended twins, each under its strongest attack."""
    rest = [
        one
        for one in results
        if one.role == "attack" and one.fingerprint == audited.fingerprint and one.target.id != audited.target.id
    ]
    by_target: dict[str, list[Result]] = {}
    for one in rest:
        if one.score.identities == audited.score.identities:
            by_target.setdefault(one.target.id, []).append(one)
    plain = {_twin(own[0]): own for own in by_target.values() if not own[0].target.spec["defenses"]}
    offers = []
    for own in by_target.values():
        target = own[0].target
        twin = plain.get(_twin(own[0]))
        if not target.spec["defenses"] or twin is None:
            continue
        ours, theirs = (Attacked.strongest([Attacked.of(one.attack, [one]) for one in side]) for side in (own, twin))
        known = compare(ours, theirs)
        offers.append(
            Offer(
                defense=defense_label(target.spec),
                model=str(target.spec["model"]),
                natural=own[0].score.natural_accuracy,
                undefended=twin[0].score.natural_accuracy,
                gap=known.interval if known else None,
            )
        )
    return tuple(offers)


def _twin(result: Result) -> tuple[str, int]:
    return str(result.target.spec["model"]), int(result.target.spec["seed"])
