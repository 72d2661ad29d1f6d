"""Who leaks, as tables: the worst people, how unequally people leak, groups of people."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mibench.metrics import Unit
from mibench.report import tables
from mibench.report.format import coefficient, probability, shown
from mibench.report.leakage import Leakage
from mibench.report.tables import Column, Row, Section, evaluators, protocols

__all__ = ["NAMED", "ROWS", "columns", "sections"]

NAMED = 5
"""At most so many people of a target are named in a table; leakage.csv has all."""

ROWS = 40
"""So many people in all are named in a table, but at least one of each target."""


def _short(text: str, digits: int) -> str:
    """A name as a terminal (digits 0) can show it."""
    return text if digits or len(text) <= 24 else f"{text[:23]}…"


def _target() -> list[Column]:
    """The target and the attack that its people are ranked by."""
    return [
        Column("", "defense", lambda row, digits: row["defense"], left=True, once="defense"),
        Column("", "attack", lambda row, digits: row["attack"], drop=1, left=True, once="defense"),
    ]


def columns(rows: pd.DataFrame) -> list[Column]:
    """The columns of a table of people."""
    columns = [
        *_target(),
        Column("", "person", lambda row, digits: _short(str(row["identity"]), digits), left=True),
        Column("", "hits", lambda row, digits: f"{row['hits']} of {row['n']}"),
        Column("nearest", "private", lambda row, digits: Unit.SQUARED_L2.show(row["nearest"]), drop=3),
        Column("target", "confidence", lambda row, digits: Unit.SHARE.show(row["target_confidence"]), drop=2),
    ]
    if rows["group"].any():
        columns.insert(3, Column("", "group", lambda row, digits: _short(row["group"], digits), drop=4, left=True))
    return columns


def _targets(rows: pd.DataFrame) -> list[Column]:
    def bounded(name: str) -> Any:
        return lambda row, digits: shown(row, name, Unit.SHARE, digits)

    def gini(row: Row, digits: int) -> str:
        value, low, high = (coefficient(row[f"gini{end}"]) for end in ("", "_low", "_high"))
        return f"{value} [{low},{high}]" if low else value

    return [
        Column("", "defense", lambda row, digits: row["defense"], left=True),
        Column("", "attack", lambda row, digits: row["attack"], drop=1, left=True),
        Column("like-", "ness", bounded("rate"), drop=3),
        Column("Gini of", "hit rates", gini),
        Column("Gini", "by luck", lambda row, digits: coefficient(row["gini_by_luck"]), drop=2),
        Column("people", "never hit", bounded("never")),
        Column("people", "always hit", bounded("always")),
    ]


def _groups(rows: pd.DataFrame) -> list[Column]:
    return [
        *_target(),
        Column("", "group", lambda row, digits: _short(row["group"], digits), left=True),
        Column("", "people", lambda row, digits: f"{row['identities']}", drop=2),
        Column("like-", "ness", lambda row, digits: shown(row, "rate", Unit.SHARE, digits)),
        Column("largest", "gap", lambda row, digits: f"{100 * row['gap']:.1f}", once="defense"),
        Column("Holm", "p", lambda row, digits: probability(row["gap_p_adjusted"]), drop=3, once="defense"),
    ]


def sections(leaks: Leakage, table: pd.DataFrame) -> Iterator[Section]:
    """The tables of each protocol: the worst people, how unequally people leak, groups where the data have any."""
    for group in protocols(table):
        protocol, about = group["protocol"].iloc[0], tables.title(group)
        people, targets, groups = (_of(part, protocol) for part in leaks)
        if people.empty:
            continue
        most = max(1, min(NAMED, ROWS // len(targets)))
        worst = people[people["rank"] <= most].reset_index(drop=True)
        whom = f"The {most} people" if most > 1 else "The person"
        yield Section(
            f"Who leaks most, {about}",
            worst,
            columns(worst),
            [
                f"{whom} of each target that its strongest attack hit most often (likeness), equal ones by distance; "
                "leakage.csv has everybody. The attack is chosen on one half of the people and counted on the other. "
                "nearest private = squared L2 of the nearest reconstruction to a private image of the person, in "
                f"{evaluators(group)[0]}'s features; lower leaks more. target confidence: mean over the person's "
                "reconstructions, in %."
            ],
        )
        yield Section(
            f"How unequally people leak, {about}",
            targets,
            _targets(targets),
            [
                "These trained networks. Gini of hit rates over people [95% interval over identities]: 0 everybody is "
                "hit alike, 1 one person has all hits; by luck = what so few reconstructions each would give if "
                "everybody were hit with the same probability. Never and always hit: % of the attacked people [95% "
                "interval]."
            ],
        )
        if len(groups):
            outside = int((people.groupby("defense", sort=False)["group"].apply(lambda one: (one == "").sum())).max())
            left = f" {outside} attacked people are in no group." if outside else ""
            yield Section(
                f"Groups of people, {about}",
                groups,
                _groups(groups),
                [
                    "Likeness of each group, the strongest attack, in % [95% interval, clustered by identity]. "
                    "largest gap: highest minus lowest, in points; p that memberships shuffled among the people give "
                    f"one as large, Holm's correction over the targets.{left}"
                ],
            )


def _of(part: pd.DataFrame, protocol: str) -> pd.DataFrame:
    return part[part["protocol"] == protocol].reset_index(drop=True) if len(part) else part
