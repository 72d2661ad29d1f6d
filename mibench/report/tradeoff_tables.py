"""Privacy against utility as tables: points, curves, side effects, and what the checks found."""

from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from mibench.core import Access
from mibench.metrics import Unit, metric
from mibench.report.curves import BELOW
from mibench.report.format import coefficient, shown
from mibench.report.pairing import IDENTICAL
from mibench.report.result import TRACKS
from mibench.report.tables import CLEAR, LEVEL, Column, Row, Section, measured, scope

__all__ = ["FRONT", "SURE", "sections"]

FRONT = "◆"
"""Marks a point that no other beats in both natural accuracy and the strongest attack of an access."""

SURE = "*"
"""Marks a difference to the undefended target that is hardly chance."""


def _difference(access: Access) -> Callable[[Row, int], str]:
    def cell(row: Row, digits: int) -> str:
        if row[f"{access.key}_identical"]:
            return IDENTICAL
        mark = SURE if row[f"{access.key}_p_adjusted"] < CLEAR else ""
        return shown(row, f"{access.key}_difference", Unit.POINTS, digits, mark)

    return cell


def _rate(name: str) -> Callable[[Row, int], str]:
    return lambda row, digits: shown(row, name, Unit.SHARE, digits)


def _attack(access: Access) -> Callable[[Row, int], str]:
    return lambda row, digits: row[f"{access.key}_attack"] + (f" {FRONT}" if row[f"{access.key}_pareto"] else "")


def _delta(access: Access) -> Callable[[Row, int], str]:
    return lambda row, digits: coefficient(row[f"{access.key}_delta"])


def _attacked(rows: pd.DataFrame) -> list[Access]:
    """The accesses under which anything was attacked, strongest first."""
    return [access for access in Access.strongest_first() if rows[f"{access.key}_attack"].any()]


def _tradeoff(rows: pd.DataFrame) -> list[Column]:
    columns = [
        Column("", "defense", lambda row, digits: row["defense"], left=True),
        Column("", "seeds", lambda row, digits: f"{row['seeds']}", drop=6),
        Column("natural", "accuracy", _rate("natural_accuracy")),
    ]
    for place, access in enumerate(_attacked(rows)):
        columns += [
            Column(access.words, "likeness", _rate(access.key)),
            Column("difference", "to none", _difference(access), drop=3 if place else 0),
            Column("strongest", "attack", _attack(access), drop=5 if place else 2, left=True),
            Column("", "Δ", _delta(access), drop=4 if place else 1),
        ]
    return columns


def _effects(rows: pd.DataFrame) -> list[Column]:
    names = [str(name) for name in rows if rows[name].notna().any()]
    columns = [
        Column("", "defense", lambda row, digits: row["defense"], left=True),
        Column("natural", "accuracy", _rate("natural_accuracy")),
        Column("least", "seed", _plain("natural_least", Unit.SHARE), drop=2),
        Column("most", "seed", _plain("natural_most", Unit.SHARE), drop=2),
    ]
    robust = metric("adversarial_accuracy")
    columns += [
        Column(*robust.heading(name.removeprefix("pgd_")), _plain(name, robust.unit))
        for name in names
        if name.startswith("pgd_")
    ]
    if "ece" in names:
        columns.append(measured("ece"))
    if "training_ratio" in names:
        columns.append(Column("training", "time", lambda row, digits: _times(row["training_ratio"])))
    for name in names:
        if _reported(rows, name):
            top, _, bottom = name.replace("_", " ").rpartition(" ")
            columns.append(Column(top, bottom, _plain(name, Unit.NUMBER), drop=1))
    return columns


def _plain(name: str, unit: Unit) -> Callable[[Row, int], str]:
    return lambda row, digits: unit.show(row[name])


def _times(ratio: float) -> str:
    return f"{text}x" if (text := coefficient(ratio)) else ""


def _reported(rows: pd.DataFrame, name: str) -> bool:
    """Whether a column is a number that a defense reported of its training."""
    own = ("natural_", "judged", "pgd_", "training_", "ece", "strength", *(access.key for access in Access))
    return pd.api.types.is_float_dtype(rows[name]) and not name.startswith(own)


def _matched(key: str) -> Callable[[Row, int], str]:
    """The difference at a natural accuracy, or why there is none."""

    def cell(row: Row, digits: int) -> str:
        if row[f"{key}_state"]:
            return str(row[f"{key}_state"])
        mark = SURE if row[f"{key}_p_adjusted"] < CLEAR else ""
        return shown(row, f"{key}_difference", Unit.POINTS, digits, mark)

    return cell


def _headline(rows: pd.DataFrame) -> list[Column]:
    columns = [
        Column("", "defense", lambda row, digits: row["defense"], left=True),
        Column("", "access", lambda row, digits: Access.of(row["access"]).words, left=True),
        Column("strengths", "measured", lambda row, digits: f"{row['points'] - 1}", drop=5),
    ]
    for below in BELOW:
        key, points = f"at_minus_{100 * below:g}", f"-{100 * below:g}"
        columns += [
            Column(f"natural {points}", "likeness", _rate(key), drop=4),
            Column(f"natural {points}", "difference", _matched(key)),
            Column(f"natural {points}", "open-set", _open(f"{key}_open_difference"), drop=3),
        ]
    return columns


def _open(name: str) -> Callable[[Row, int], str]:
    return lambda row, digits: shown(row, name, Unit.POINTS, digits)


def _curves(rows: pd.DataFrame) -> list[Column]:
    return [
        Column("", "defense", lambda row, digits: row["defense"], left=True),
        Column("", "access", lambda row, digits: Access.of(row["access"]).words, left=True),
        Column("points", "on it", lambda row, digits: f"{row['points']}", drop=2),
        Column("hyper-", "volume", lambda row, digits: coefficient(row["hypervolume"], 3)),
        Column("none", "alone", lambda row, digits: coefficient(row["hypervolume_none"], 3), drop=1),
    ]


MATCHED = (
    "Where the defense costs so many points of natural accuracy: likeness in %, its difference to no defense, and the "
    "open-set difference of the headline's evaluation model, in points; read from the measured strengths on a straight "
    "line between the two neighbours (no defense is one). Intervals resample people, with several seeds also these, "
    "and every point's natural accuracy with them."
)
LIMITS = (
    "not reached: no measured strength costs so much; nothing is extrapolated. not converged: a neighbour's training "
    "was still going on, so that the number would compare training states. "
    f"{SURE} p < {LEVEL}, Holm's correction over the defenses of an access."
)


def _combinations() -> list[Column]:
    def difference(row: Row, digits: int) -> str:
        return str(row["state"]) or shown(row, "difference", Unit.POINTS, digits)

    return [
        Column("", "stack", lambda row, digits: row["defense"], left=True),
        Column("", "beside", lambda row, digits: row["part"], left=True),
        Column("", "access", lambda row, digits: Access.of(row["access"]).words, left=True),
        Column("natural", "points", lambda row, digits: f"-{row['below']:g}"),
        Column("stack's", "likeness", _rate("with")),
        Column("alone", "likeness", _rate("without")),
        Column("", "difference", difference),
    ]


ADDED = (
    "A stack beside one of its parts alone, at a strength that costs as much natural accuracy as the whole stack does; "
    "paired over people and seeds, no correction for how many are compared."
)


def sections(
    tradeoff: pd.DataFrame, curves: pd.DataFrame, combinations: pd.DataFrame, titles: Mapping[str, str]
) -> Iterator[Section]:
    """The tables of each protocol that has a defended target beside an undefended one.

    Args:
        tradeoff: `tradeoff.frame`.
        curves: `curves.frame`.
        combinations: `combinations.frame`.
        titles: What each protocol is about.
    """
    if tradeoff.empty:
        return
    attacked = tradeoff[(tradeoff[[f"{access.key}_attack" for access in Access]] != "").any(axis=1)]
    for (protocol, track), own in attacked.groupby(["protocol", "track"], sort=False):
        defended = own["family"] != "none"
        if defended.all() or not defended.any():
            continue
        about, rows = titles[str(protocol)], own.reset_index(drop=True)
        about += f", {track}: {TRACKS[track]}" if track in TRACKS else ""
        swept = curves[(curves["protocol"] == protocol) & (curves["track"] == track)].reset_index(drop=True)
        if (swept["points"] > 2).any():
            yield Section(
                f"Attack accuracy at matched natural accuracy, {about}",
                swept,
                _headline(swept),
                [MATCHED, LIMITS, scope(int(rows["seeds"].min()))],
            )
        stacks = combinations
        if len(stacks):
            stacks = stacks[(stacks["protocol"] == protocol) & (stacks["track"] == track)].reset_index(drop=True)
        if len(stacks):
            yield Section(f"What a stack adds, {about}", stacks, _combinations(), [ADDED])
        yield Section(
            f"Privacy against utility, {about}",
            rows,
            _tradeoff(rows),
            [
                "Per access the strongest attack that was run on every seed, by likeness in % [95% interval], chosen "
                "on one half of the people and counted on the other ('a | b' where the halves chose two). difference: "
                f"paired over identities and seeds, in points; {SURE} p < {LEVEL}, Holm's correction over the access's "
                f"tested differences. {FRONT} no other target is both more accurate and safer under that access.",
                scope(int(rows["seeds"].min())),
                "Δ = likeness prevented per point of natural accuracy lost, the papers' trade-off: blank where "
                "accuracies differ by less than half a point, negative where the defense raises accuracy.",
            ],
        )
        if len(swept := swept[swept["points"] > 2].reset_index(drop=True)):
            yield Section(
                f"Every strength of a defense together, {about}",
                swept,
                _curves(swept),
                [
                    "hypervolume: area of (natural accuracy, 1 - likeness) that some strength or no defense "
                    "reaches; higher is better, 1 is all. 'none alone' is what the undefended target reaches."
                ],
            )
        if len(_effects(rows)) > 4:
            yield Section(
                f"Side effects, {about}",
                rows,
                _effects(rows),
                [
                    "PGD: natural accuracy under an adversary who may change every pixel by ε (pixels in [0, 1]; APGD "
                    "on the DLR loss, 10 steps, 200 held-out images). ECE: expected calibration error in points, 15 "
                    "bins. training time: processor seconds, beside the undefended target's. Means over seeds; least "
                    "and most are seeds."
                ],
            )
