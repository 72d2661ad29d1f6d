"""What a report says first, in words: how many reconstructions pass as the person, against what needs no inversion.

Nothing is estimated here. Rates are those of `points`, differences to a floor are `pairing.compare`'s, and what a
defense changes is told by the verdict of its row in differences.csv, which follows a test. Where a test shows nothing,
the sentence says that, and no other.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import pandas as pd

from mibench.metrics import Unit
from mibench.report import facts, tables
from mibench.report.format import probability
from mibench.report.pairing import IDENTICAL, Attacked, Comparison, compare
from mibench.report.points import Point
from mibench.report.result import TRACKS, Result
from mibench.runs import canonical
from mibench.stats.intervals import Interval

__all__ = ["Headline", "Standing", "headlines"]

NONE = "no defense"

PROTOTYPES = "More than photographs: an attack draws prototypes, so such a rate is not more than all of the person."

UNFINISHED = " Its target is not converged: it may leak less because it knows less."

NAMED = 4
"""So many defenses have a sentence of their own; more are counted."""


@dataclass(frozen=True)
class Standing:
    """A defense at one strength, or no defense, between its floor and real photographs.

    Args:
        label: What it is called.
        point: Its targets and the strongest attack on them.
        floor: The best of the floors that were run on all its targets; None without any.
        gap: The strongest attack minus that floor, paired over people.
        ceiling: Likeness of real held-out images.
    """

    label: str
    point: Point
    floor: Attacked | None
    gap: Comparison | None
    ceiling: Interval

    @property
    def above(self) -> bool:
        """Whether the strongest attack is above the best floor: the interval of the difference lies above zero."""
        return self.gap is not None and self.gap.interval.low > 0

    @property
    def where(self) -> str:
        """`Without a defense`, `Under re a_e=0.4`."""
        if self.point.defended:
            return f"Under {self.label}"
        base, _, track = self.label.partition(NONE)
        return self.label if base else f"Without a defense{track}"

    @property
    def sentences(self) -> list[str]:
        """What the numbers show, and no more."""
        strongest, natural = self.point.strongest, f"Natural accuracy is {share(self.point.natural)}."
        if strongest is None:
            return [f"{self.where}, no attack was run on every training seed, so none is the strongest.", natural]
        rate = strongest.rate
        first = (
            f"{self.where}, {share(rate)} of the images by {strongest.attack} pass as the person ({rate.n:,} images of "
            f"{rate.clusters} people)."
        )
        if self.floor is None or self.gap is None:
            return [first, "No floor was run beside it, so it may have inverted nothing.", natural]
        floor, gap = f"{self.floor.attack} at {share(self.floor.rate)}", points(self.gap.interval)
        if not self.above:
            below = f"It is not shown to be above the best floor, {floor} ({gap}): nothing follows about inversion."
            return [first, below, natural]
        above = f"That is {gap} above the best floor, {floor}; of real photographs {share(self.ceiling)} pass."
        return [first, above, *([PROTOTYPES] if rate.value > self.ceiling.value else []), natural]


@dataclass(frozen=True)
class Headline:
    """What is said first of one protocol.

    Args:
        protocol: Its name.
        about: The data and how many people were attacked.
        standings: The undefended target first.
        changes: A sentence for each defense, or few for many: by how much it lowers the headline, as tested.
        careful: What the intervals do not cover.
    """

    protocol: str
    about: str
    standings: tuple[Standing, ...]
    changes: tuple[str, ...]
    careful: str

    @property
    def title(self) -> str:
        """The first sentence: of the undefended target, else of the first."""
        if not self.standings:
            return "No attack was scored."
        first = self.standings[0]
        strongest = first.point.strongest
        if strongest is None:
            return "No attack was run on every training seed."
        track = first.label.partition(NONE)[2]
        where = f"without a defense{track}" if not first.point.defended else f"under {first.label}"
        value = Unit.SHARE.show(strongest.rate.value)
        if first.floor is None:
            return f"{value}% of reconstructions pass as the person {where}, but no floor was run."
        if not first.above:
            return f"No attack is shown to be above its floor {where}: a floor reaches as much without inverting."
        return f"{value}% of reconstructions by {strongest.attack} pass as the person {where}."


def share(known: Interval) -> str:
    """`82.5% [65,95]`."""
    value, bracket, bounds = Unit.SHARE.interval(known.value, known.low, known.high, 0).partition(" [")
    return f"{value}%{bracket}{bounds}"


def points(known: Interval) -> str:
    """`+57.5 points [38,74]`."""
    value, bracket, bounds = Unit.POINTS.interval(known.value, known.low, known.high, 0).partition(" [")
    return f"{value} points{bracket}{bounds}"


def headlines(
    results: Sequence[Result], table: pd.DataFrame, configurations: Sequence[Point], differences: pd.DataFrame
) -> list[Headline]:
    """One for each protocol that something was attacked under, in the order of the tables.

    Args:
        results: The scores.
        table: `frame.scores` of them.
        configurations: `points.points` of them.
        differences: `differences.differences` of them.
    """
    made = []
    for group in tables.protocols(table):
        protocol = str(group["protocol"].iloc[0])
        own = [point for point in configurations if point.protocol == protocol]
        if not own:
            continue
        scored = [result for result in results if result.protocol == protocol]
        several = len({point.base for point in own}) > 1
        order = [track for track in TRACKS if any(point.track == track for point in own)]
        own.sort(key=lambda point: (point.defended, order.index(point.track) if point.track in order else -1))
        ceiling = scored[0].score.likeness_ceiling
        beneath = [result for result in scored if result.role == "floor"]
        standings = tuple(_standing(point, beneath, ceiling, several, len(order) > 1) for point in own)
        late = {run.id for point in own if not point.converged for run in point.targets}
        unfinished = {result.run.id for result in scored if result.target.id in late}
        tracks = {result.run.id: result.track for result in scored} if len(order) > 1 else {}
        made.append(
            Headline(
                protocol,
                tables.title(group),
                standings,
                tuple(_changes(differences, protocol, unfinished, tracks)),
                tables.scope(min(len(point.targets) for point in own)),
            )
        )
    return made


def _standing(point: Point, results: Sequence[Result], ceiling: Interval, several: bool, tracks: bool) -> Standing:
    label = point.label if point.defended else NONE
    label = f"{point.base}, {label}" if several else label
    label = f"{label}, {point.track}" if tracks and point.track else label
    if point.strongest is None:
        return Standing(label, point, None, None, ceiling)
    targets = {run.id for run in point.targets}
    floors: dict[tuple[str, str], dict[str, Result]] = {}
    for one in point.strongest.results:
        for floor in facts.floors(one, results):
            settings = canonical(floor.inversion.spec["attack"]["settings"])  # a larger pool is another floor
            floors.setdefault((_called(floor), settings), {}).setdefault(floor.target.id, floor)
    whole = [Attacked.of(name, list(own.values())) for (name, _), own in floors.items() if set(own) == targets]
    compared = [(floor, gap) for floor in whole if (gap := compare(point.strongest, floor)) is not None]
    if not compared:
        return Standing(label, point, None, None, ceiling)
    best, gap = max(compared, key=lambda pair: pair[0].rate.value)
    return Standing(label, point, best, gap, ceiling)


def _called(floor: Result) -> str:
    """A floor's name with the prior that it draws from, where it draws from one."""
    drawn = floor.prior is not None and facts.draws(floor)
    return f"{floor.attack} from {floor.prior.spec['prior']['name']}" if drawn and floor.prior else floor.attack


def _changes(differences: pd.DataFrame, protocol: str, unfinished: Set[str], tracks: Mapping[str, str]) -> list[str]:
    """What each defense changes, by the verdict of the row that it is judged by, and on which track where there are
    several."""
    if differences.empty:
        return []
    own = tables.rows(differences[(differences["protocol"] == protocol) & differences["judged_by"]])
    if len(own) > NAMED:  # what a test shows has the first word
        own.sort(key=lambda row: row["verdict"] not in ("lower", "higher"))
    told = [_change(row, unfinished, tracks) for row in own[:NAMED]]
    rest = own[NAMED:]
    if rest:
        count = {verdict: sum(row["verdict"] == verdict for row in rest) for verdict in ("lower", "higher")}
        told.append(
            f"Of {len(rest)} more defended targets {count['lower']} leak clearly less and {count['higher']} clearly "
            "more than without a defense (differences.csv)."
        )
    return told


def _change(row: tables.Row, unfinished: Set[str], tracks: Mapping[str, str]) -> str:
    scores = row["score_with"].split(" | ")
    name = ", ".join([row["defense"], *filter(None, [tracks.get(scores[0])])])
    natural = Unit.POINTS.show(row["natural_accuracy_difference"])
    cost = f"natural accuracy {natural} points"
    if row["verdict"] == IDENTICAL:
        return f"{name} changes nothing that this attacker can see; {cost}."
    gap = Interval(row["difference"], row["difference_low"], row["difference_high"], row["n"], row["identities"])
    tested = f"{points(gap)}, Holm p {probability(row['p_adjusted'])}"
    if row["verdict"] in ("lower", "higher"):
        weak = " Its target is not converged: it may leak less because it knows less."
        unsure = row["verdict"] == "lower" and not unfinished.isdisjoint(scores)
        return (
            f"{name} leaks {'less' if row['verdict'] == 'lower' else 'more'}: {tested}; {cost}.{weak if unsure else ''}"
        )
    return f"Whether {name} leaks less is not clear: {tested}; {cost}."
