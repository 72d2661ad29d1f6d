"""Results as tables: one row a score, and one row a reconstruction."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mibench.report import rows
from mibench.report.result import Result

__all__ = ["metrics", "reconstructions", "scores"]

ROLES = {"floor": 0, "attack": 1, "ceiling": 2}


def scores(results: Iterable[Result]) -> pd.DataFrame:
    """One row per score run, one chance and one ceiling row per protocol, in the order in which a table shows them:
    chance, then target by target (undefended first) its floors and its attacks, then the ceiling.

    `target_label` and `attack_label` are names that no two targets of a protocol, no two rows of a target share.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.protocol].append(result)
    flat = [line for own in groups.values() for line in [*_references(own[0]), *(result.row for result in own)]]
    if not flat:
        return pd.DataFrame()
    table = pd.DataFrame(flat)
    parts = {"model": "", "start": "", "training": "", "target_seed": "seed "}
    table.insert(1, "target_label", _labels(table, "defense", parts, {"target": "#"}, "target"))
    parts = {"prior": "from ", "preset": "", "prior_preset": "", "budget": "budget "}
    table.insert(2, "attack_label", _labels(table, "attack", parts, {"seed": "seed ", "score": "#"}, "score"))
    edge = (table["role"] == "ceiling").astype(int) - (table["attack"] == "chance").astype(int)
    place = pd.DataFrame(
        {
            "dataset": table["dataset"],
            "identities": -table["identities"],
            "protocol": table["protocol"],
            "edge": edge,
            "defended": table["defense"] != "none",
            "target": table["target_label"],
            "role": table["role"].map(ROLES),
            "attack": table["attack_label"],
        }
    )
    return table.loc[place.sort_values(list(place.columns), kind="stable").index].reset_index(drop=True)


def _references(result: Result) -> list[dict[str, Any]]:
    """The chance row and the ceiling row: they depend on the protocol only, not on the target or the attack."""
    chance = {"attack": "chance", "role": "floor"} | rows.chance(result.score, result.names)
    real = {"attack": "real held-out", "role": "ceiling"} | rows.ceiling(result.score, result.names)
    return [result.shared | chance, result.shared | real]


def _labels(table: pd.DataFrame, name: str, parts: Mapping[str, str], last: Mapping[str, str], owner: str) -> pd.Series:
    """The column `name`, longer where needed: `parts` (column -> words before it) that vary between equal names of a
    protocol are added to all of them; if that still leaves one label to two owners of a target, so are the `last`."""
    labels = table[name].fillna("").astype(str).copy()

    def add(where: Any, column: str, before: str) -> None:
        labels[where] += [f" {before}{_cell(value)}" if _cell(value) else "" for value in table.loc[where, column]]

    for _, group in table.groupby(["protocol", name], sort=False):
        for column, before in parts.items():
            told_apart = table.loc[group.index].assign(label=labels[group.index]).groupby(["target", "label"])[owner]
            if owner == "score" and (told_apart.nunique() <= 1).all():
                break  # no word more than needed
            if group[column].map(_cell).nunique() > 1:
                add(group.index, column, before)
    keys = ["protocol", "label"] if owner == "target" else ["protocol", "target", "label"]
    for column, before in last.items():
        for _, group in table.assign(label=labels).groupby(keys, sort=False):
            if group[owner].nunique() > 1 and group[column].map(_cell).nunique() > 1:
                add(group.index, column, before)
    return labels


def _cell(value: Any) -> str:
    """A cell as text; empty where there is none. pandas turns whole numbers with gaps into floats."""
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def reconstructions(results: Iterable[Result], table: pd.DataFrame) -> pd.DataFrame:
    """One row per image of every score: where it belongs, then the columns of per_image.csv.

    Args:
        results: The scores.
        table: `scores` of them.
    """
    known = table[table["score"].notna()].set_index("score") if len(table) else table
    parts = []
    for result in results:
        row = known.loc[result.run.id]
        part = result.per_image.copy()
        for place, (name, value) in enumerate(
            {
                "protocol": row["protocol"],
                "score": result.run.id,
                "defense": row["target_label"],
                "attack": row["attack_label"],
                "role": row["role"],
            }.items()
        ):
            part.insert(place, name, value)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def metrics(table: pd.DataFrame) -> pd.DataFrame:
    """One row per score, metric and evaluation model: value, low and high; what was not measured has no row.

    `evaluator` is empty where a metric needs none, as natural accuracy and LPIPS.

    Args:
        table: `scores` of some results.
    """
    keys = ["protocol", "score", "target_label", "attack_label", "role"]
    parts = []
    for column in map(str, table):
        name, at, evaluator = column.partition("@")
        low, high = (f"{name}_{end}{at}{evaluator}" for end in ("low", "high"))
        if low not in table:
            continue
        part = table[[*keys, column, low, high]].set_axis([*keys, "value", "low", "high"], axis=1)
        part.insert(len(keys), "metric", name)
        part.insert(len(keys) + 1, "evaluator", evaluator)
        parts.append(part[part["value"].notna()])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
