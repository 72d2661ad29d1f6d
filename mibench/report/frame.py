"""Results as tables: one row a score, and one row a reconstruction."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from mibench.report import rows
from mibench.report.result import Result

__all__ = ["labelled", "metrics", "reconstructions", "scores"]

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
    table = labelled(pd.DataFrame(flat))
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


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of scores with `target_label` and `attack_label` after `protocol`; a summary names no seeds."""
    parts = {"model": "", "start": "", "training": ""} | ({} if "scores" in table else {"target_seed": "seed "})
    table.insert(1, "target_label", _labels(table, "defense", parts, {"target": "#"}, "target"))
    parts = {"prior": "from ", "preset": "", "prior_preset": "", "budget": "budget "}
    table.insert(2, "attack_label", _labels(table, "attack", parts, {"seed": "seed ", "score": "#"}, "score"))
    return table


def _references(result: Result) -> list[dict[str, Any]]:
    """The chance row and the ceiling row: they depend on the protocol only, not on the target or the attack."""
    chance = {"attack": "chance", "role": "floor"} | rows.chance(result.score, result.names)
    real = {"attack": "real held-out", "role": "ceiling"} | rows.ceiling(result.score, result.names)
    return [result.shared | chance, result.shared | real]


def _labels(table: pd.DataFrame, name: str, parts: Mapping[str, str], last: Mapping[str, str], owner: str) -> list[str]:
    """The column `name`, longer where needed: `parts` (column -> words before it) that vary between equal names of a
    protocol are added to all of them; if that still leaves one label to two owners of a target, so are the `last`."""
    # By hand: pandas takes a millisecond for a group, and there may be as many as rows.
    columns = {key: table[key].tolist() for key in ("protocol", "target", name, owner, *parts, *last)}
    cells = {key: [_cell(value) for value in columns[key]] for key in (*parts, *last)}
    labels = [str(value) if value == value and value is not None else "" for value in columns[name]]

    def grouped(places: Iterable[int], key: Callable[[int], Any]) -> list[list[int]]:
        groups: dict[Any, list[int]] = defaultdict(list)
        for place in places:
            groups[key(place)].append(place)
        return list(groups.values())

    def owned(group: list[int]) -> int:
        return len({value for place in group if (value := columns[owner][place]) == value and value is not None})

    def add(group: list[int], column: str, before: str) -> None:
        for place in group:
            labels[place] += f" {before}{cells[column][place]}" if cells[column][place] else ""

    every = range(len(labels))
    for group in grouped(every, lambda place: (columns["protocol"][place], columns[name][place])):
        for column, before in parts.items():
            apart = grouped(group, lambda place: (columns["target"][place], labels[place]))
            if owner == "score" and all(owned(one) <= 1 for one in apart):
                break  # no word more than needed
            if len({cells[column][place] for place in group}) > 1:
                add(group, column, before)
    within = (lambda place: ()) if owner == "target" else (lambda place: (columns["target"][place],))
    for column, before in last.items():
        for group in grouped(every, lambda place: (columns["protocol"][place], *within(place), labels[place])):
            if owned(group) > 1 and len({cells[column][place] for place in group}) > 1:
                add(group, column, before)
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
