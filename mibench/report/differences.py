"""What each defense changes: paired differences, their tests, and how many identities and seeds they take."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch

from mibench.metrics import Unit
from mibench.report.format import missing, probability, shown
from mibench.report.judges import Effect, disagreement
from mibench.report.pairing import IDENTICAL, Attacked, Comparison, compare, holm, seedless
from mibench.report.result import Result
from mibench.report.rows import bounds
from mibench.report.summary import crowded
from mibench.report.tables import BEST, CLEAR, LEVEL, Column, Row, Section, protocols, rows, scope, title
from mibench.runs import canonical
from mibench.runtime.errors import UserError
from mibench.stats import power
from mibench.stats.significance import least_p

__all__ = ["COLUMNS", "Compared", "differences", "notes", "sections"]


NEEDED = ["protocol", "target", "target_label", "defense", "attack", "attack_label", "score", "natural_accuracy"]
"""Columns of a score's row that a comparison takes."""


class Compared(NamedTuple):
    """Rows of differences.csv, and of judges.csv: what each defense is judged by, as every judge sees it."""

    differences: pd.DataFrame
    judges: pd.DataFrame


def differences(results: list[Result], table: pd.DataFrame) -> Compared:
    """Each defended target against the undefended one that is otherwise equal, attack by attack, on the same people.

    A last row for each defense compares the strongest attack of each side, chosen on half of the people and counted on
    the others, unless both sides chose one and the same; of the undefended target only attacks of the tracks that the
    defended one was attacked on. `difference`, its interval and `p` are `pairing.compare`'s;
    `p_adjusted` is Holm's over all tested rows of the protocol, and the verdict follows it. Rows that are identical by
    construction are not tested.

    `detectable` is the smallest difference that such a row shows 4 times out of 5, in the unit of `difference`;
    `identities_needed` and, where the same was measured on several `seeds`, `seeds_needed` are what a true difference
    of this size takes (`stats.power`).
    """
    runs = {result.run.id: result for result in results}
    parts, judged = [], []
    for group in protocols(table):
        attacks = group[group["role"] == "attack"][NEEDED]
        by_target: dict[str, list[Row]] = defaultdict(list)
        for row in rows(attacks):
            by_target[row["target"]].append(row)
        twins: dict[tuple[str, str], Row] = {}
        for row in rows(attacks[attacks["defense"] == "none"]):
            twins.setdefault((row["attack"], runs[row["score"]].recipe), row)
        lines: list[_Line] = []
        for own in by_target.values():
            if own[0]["defense"] == "none":
                continue
            keyed = [(row, twins.get((row["attack"], runs[row["score"]].recipe))) for row in own]
            known = [(row, twin) for row, twin in keyed if twin is not None]
            if not known:
                continue
            # A prior that was only tried on the undefended target would make every defense look strong.
            tracks = {runs[row["score"]].track for row in own}
            others = [row for row in by_target[known[0][1]["target"]] if runs[row["score"]].track in tracks]
            best, rival = (_strongest(runs, side) for side in (own, others))
            alike = len(best.results) == len(rival.results) == 1 and rival.attack == best.attack
            for row, twin in known:
                one, other = (Attacked.of(side["attack_label"], [runs[side["score"]]]) for side in (row, twin))
                judged_by = alike and row["score"] == best.results[0].run.id
                lines.append(_Line(row, twin, one, other, row["attack_label"], judged_by))
            if not alike:
                lines.append(_Line(own[0], known[0][1], best, rival, "strongest", True))
        if lines:
            parts.append(_corrected(lines))
            judged += [row for line in lines if line.judged_by for row in line.judges()]
    return Compared(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), pd.DataFrame(judged))


def _strongest(runs: Mapping[str, Result], attacks: list[Row]) -> Attacked:
    return Attacked.strongest([Attacked.of(row["attack_label"], [runs[row["score"]]]) for row in attacks])


class _Line:
    """One comparison: a defended target, its undefended twin, what attacked them, and what they differ by.

    Args:
        row: A row of the defended target.
        twin: A row of the undefended one.
        one: The attack on the defended target.
        other: The attack on the undefended one.
        attack: What the line calls the attack.
        judged_by: Whether the defense is judged by this line.
    """

    def __init__(self, row: Row, twin: Row, one: Attacked, other: Attacked, attack: str, judged_by: bool) -> None:
        self.row, self.twin, self.one, self.other = row, twin, one, other
        self.attack, self.judged_by = attack, judged_by
        comparison = compare(one, other)
        if comparison is None:
            paths = (one.results[0].run.path, other.results[0].run.path)
            raise UserError(f"{paths[0]} and {paths[1]} share no attacked person; delete one of them")
        self.comparison = comparison
        sides = [sorted(map(seedless, side.results)) for side in (one, other)]
        self.repeats = canonical([*sides, attack == "strongest"])
        self.seed = one.results[0].target.spec["seed"]

    def flat(self) -> dict[str, Any]:
        """The row of differences.csv, but for what depends on the other rows."""
        row, twin, interval = self.row, self.twin, self.comparison.interval
        each = self.comparison.by_person
        sd = math.nan if self.comparison.identical else power.spread(each)
        return {
            "protocol": row["protocol"],
            "defense": row["target_label"],
            "attack": self.attack,
            "attack_with": self.one.attack,
            "attack_without": self.other.attack,
            "without": self.other.hits.share,
            "with": self.one.hits.share,
            "difference": interval.value,
            "difference_low": interval.low,
            "difference_high": interval.high,
            "n": interval.n,
            "identities": interval.clusters,
            "p": self.comparison.p,
            "p_adjusted": math.nan,
            "verdict": IDENTICAL if self.comparison.identical else "no clear difference",
            "detectable": power.detectable(sd, interval.clusters),
            "identities_needed": power.identities_needed(sd, interval.value),
            "seeds": 1,
            "seeds_needed": math.nan,
            "natural_accuracy_without": twin["natural_accuracy"],
            "natural_accuracy_with": row["natural_accuracy"],
            "natural_accuracy_difference": row["natural_accuracy"] - twin["natural_accuracy"],
            "score_with": " | ".join(result.run.id for result in self.one.results),
            "score_without": " | ".join(result.run.id for result in self.other.results),
            "judged_by": self.judged_by,
        }

    def judges(self) -> list[dict[str, Any]]:
        """Rows of judges.csv: the same images as each judge sees them; none where there is nothing to estimate."""
        if self.comparison.identical:
            return []
        found = []
        for column in self.one.results[0].judges:
            one, other = self.one.judged_by(column), self.other.judged_by(column)
            comparison = compare(one, other) if one is not None and other is not None else None
            if comparison is not None:
                found.append(Effect(column, comparison.interval))
        about = {"protocol": self.row["protocol"], "defense": self.row["target_label"]}
        attack = self.one.attack if self.attack == "strongest" else self.attack
        kind = disagreement(found).words
        return [
            about
            | {"attack": attack, "judge": one.judge}
            | bounds("difference", one.interval)
            | {"n": one.interval.n, "identities": one.interval.clusters, "judges": kind}
            for one in found
        ]


def _corrected(lines: list[_Line]) -> pd.DataFrame:
    """The rows of one protocol, with what depends on the others: Holm's correction, verdicts, repeats over seeds."""
    repeats: dict[str, dict[int, Comparison]] = defaultdict(dict)
    for line in lines:
        repeats[line.repeats].setdefault(line.seed, line.comparison)
    flat = pd.DataFrame([line.flat() for line in lines])
    flat["p_adjusted"] = holm(flat["p"])
    clear = (flat["p_adjusted"] < CLEAR) & (flat["difference"] != 0)
    flat.loc[clear, "verdict"] = ["lower" if value < 0 else "higher" for value in flat.loc[clear, "difference"]]
    needed = {key: _seeds_needed(list(own.values())) for key, own in repeats.items()}
    flat["seeds"] = [len(repeats[line.repeats]) for line in lines]
    flat["seeds_needed"] = [needed[line.repeats] for line in lines]
    return flat


def _seeds_needed(repeats: list[Comparison]) -> float:
    """How many training seeds show the mean difference of several; NaN where the seeds do not differ or are one."""
    if all(one.identical for one in repeats):
        return math.nan
    each = [dict(zip(one.people.tolist(), one.by_person.tolist(), strict=True)) for one in repeats]
    people = sorted(set.intersection(*(set(one) for one in each)))
    differences = torch.tensor([[one[who] for who in people] for one in each], dtype=torch.float64)
    known = power.components(differences)
    return power.seeds_needed(known, float(differences.mean())) if known else math.nan


def _span(row: Row, digits: int) -> str:
    return IDENTICAL if row["verdict"] == IDENTICAL else shown(row, "difference", Unit.POINTS, digits)


def _attacked(row: Row, digits: int) -> str:
    if row["attack"] == "strongest":
        return f"{row['attack_with']} vs {row['attack_without']} {BEST}"
    return f"{row['attack']} {BEST if row['judged_by'] else ''}".strip()


COLUMNS = [
    Column("", "defense", lambda row, digits: row["defense"], left=True),
    Column("", "attack", _attacked, left=True),
    Column("likeness", "none", lambda row, digits: Unit.SHARE.show(row["without"]), drop=2),
    Column("likeness", "defended", lambda row, digits: Unit.SHARE.show(row["with"]), drop=2),
    Column("difference", "in points", _span),
    Column("Holm", "p", lambda row, digits: probability(row["p_adjusted"]), drop=1),
    Column("likeness", "is", lambda row, digits: row["verdict"], left=True),
    Column("natural", "accuracy", lambda row, digits: Unit.POINTS.show(row["natural_accuracy_difference"])),
]


def notes(pairs: pd.DataFrame) -> list[str]:
    """What the rows of one protocol mean, and how many identities and seeds such differences take."""
    tested = int(pairs["p"].notna().sum())
    many = f"Holm's correction over the {tested} rows" if tested > 1 else "one comparison"
    lines = [
        "Defended minus undefended, percentage points of likeness, paired over the same identities "
        f"[95% interval of one comparison]. 'lower' or 'higher': p < {LEVEL} of a sign-flip test over "
        f"identities ({many}). {BEST} what a defense is judged by: its strongest attack against the strongest without "
        "it, chosen on one half of the people and counted on the other ('a | b' where the halves chose two, 'a vs b' "
        "where the sides differ). Natural accuracy, in points: the price.",
        scope(1),
    ]
    if tested < len(pairs):
        lines.append(
            f"'{IDENTICAL}': to this attacker the target answers as without the defense, and the images are the same, "
            "pixel by pixel: there is nothing to estimate or to test."
        )
    people = int(pairs["identities"].max())
    least = least_p(people, tested)
    if tested and least >= CLEAR:
        lines.append(
            f"With {people} identities and {tested} comparisons no p can be below {probability(least)}, so no "
            "difference is clear here: attack more identities."
        )
    return [*lines, _power(pairs[pairs["p"].notna()])] if tested else lines


def _power(pairs: pd.DataFrame) -> str:
    """How many identities and seeds the smallest and the largest claimed difference take."""
    claimed = pairs[pairs["verdict"].isin(["lower", "higher"])]
    kind = "clear difference" if len(claimed) else "difference, though not clear"
    by_size = sorted(rows(claimed if len(claimed) else pairs), key=lambda row: abs(row["difference"]))
    shown = {"only": by_size[0]} if len(by_size) == 1 else {"smallest": by_size[0], "largest": by_size[-1]}
    if not len(claimed):
        shown = {"largest": by_size[-1]}
    parts = [f"the {word} {kind} {_needs(row)}" for word, row in shown.items()]
    text = f"To show with p < {LEVEL} (uncorrected) 4 times out of 5, {' and '.join(parts)}"
    seen = pairs["detectable"].dropna()
    if len(seen):
        low, high = f"{100 * seen.min():.1f}", f"{100 * seen.max():.1f}"
        text += f". {int(pairs['identities'].max())} identities show differences from {low} points"
        text += f" ({high} where identities vary most)" if low != high else ""
    return f"{text}."


def _needs(row: Row) -> str:
    """`(re a_e=0.4, ppa: -12.0 points) takes 34 identities of the 20 attacked, 3 seeds`."""
    size = Unit.POINTS.show(row["difference"])
    whom = f"({row['defense']}, {_attacked(row, 1).removesuffix(BEST).strip()}: {size} points)"
    needed = row["identities_needed"]
    if missing(needed):
        text = f"{whom} takes an unknown number of identities (the {row['identities']} attacked do not vary)"
    elif math.isinf(needed):
        text = f"{whom} takes no number of identities"
    else:
        text = f"{whom} takes {int(needed):,} identities"
    if row["seeds"] < 2 or missing(row["seeds_needed"]):
        return text
    if math.isinf(row["seeds_needed"]):
        return f"{text}; no number of seeds replaces them"
    return f"{text}; {int(row['seeds_needed'])} seed(s) of the {row['seeds']}, other identities included"


def sections(group: pd.DataFrame, compared: pd.DataFrame) -> Iterator[Section]:
    """The table of a protocol, if there is anything to compare."""
    pairs = compared[compared["protocol"] == group["protocol"].iloc[0]] if len(compared) else compared
    if len(pairs):
        told, own = notes(pairs.reset_index(drop=True)), pairs
        if crowded(group):
            own = pairs[pairs["judged_by"]]
            told.append(f"Of {len(pairs):,} comparisons those that a defense is judged by; differences.csv has all.")
        yield Section(f"What each defense changes, {title(group)}", own.reset_index(drop=True), COLUMNS, told)
