"""Crowds: of more scores than anybody reads, one row for each attack on each defense, all its seeds together.

A row holds scores that differ in seeds alone: those of the training, and of the attack. Its likeness is that of all of
them (`pairing.Attacked`), as in the trade-off; other numbers are means over the scores, without intervals. The CSV
files and tables.json have every score.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mibench.report.format import missing
from mibench.report.frame import labelled
from mibench.report.pairing import Attacked
from mibench.report.result import Result
from mibench.report.rows import bounds
from mibench.report.tables import HEADLINE, Row, protocols, rows

__all__ = ["CROWD", "crowded", "note", "of_score", "summary"]

CROWD = 2000
"""Rows of a protocol that people are shown; of more, a summary."""

SAME = (
    *("model", "start", "training", "defense", "attack", "role"),
    *("access", "budget", "prior", "prior_preset", "preset"),
)
"""What the scores of one row have in common, and their track."""

FIRST = ("identities", "classes", "seed", "target_seed", "strangers", "distractors", "verifier_people")
"""Numbers of which no mean is taken: all scores have the same, or each its own."""


def crowded(group: pd.DataFrame) -> bool:
    """Whether a protocol has more rows than people are shown."""
    return len(group) > CROWD


def summary(table: pd.DataFrame, results: Iterable[Result]) -> pd.DataFrame:
    """The table with the rows of each crowded protocol summed up; `scores` counts what stands in a row, and `score`,
    `target` and what else belongs to one run are the first's. Without a crowd it is the table.

    Args:
        table: `frame.scores`.
        results: The scores.
    """
    groups = list(protocols(table))
    if not any(map(crowded, groups)):
        return table
    runs = {result.run.id: result for result in results}
    return pd.concat([_summed(group, runs) if crowded(group) else group for group in groups], ignore_index=True)


def _summed(group: pd.DataFrame, runs: Mapping[str, Result]) -> pd.DataFrame:
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    lines, targets = rows(group), dict[tuple[str, ...], str]()
    for place, line in enumerate(lines):
        track = "" if missing(line["score"]) else runs[line["score"]].track
        key = (*(str(line[key]) for key in SAME), track)
        line["target"] = targets.setdefault(key[:4], line["target"])  # one name for those of all seeds
        alike[key].append(place)
    numbers = group.select_dtypes("number")
    values, names = numbers.to_numpy(dtype="float64", na_value=np.nan), [str(name) for name in numbers]
    bound = np.array([name.partition("@")[0].endswith(("_low", "_high")) for name in names])
    first = np.array([name.partition("@")[0] in FIRST for name in names])
    made = []
    for places in alike.values():
        row: dict[str, Any] = dict(lines[places[0]]) | {"scores": len(places)}
        if len(places) > 1:
            known = ~np.isnan(values[places])
            count = known.sum(axis=0)
            total = np.where(known, values[places], 0.0).sum(axis=0)
            mean = np.divide(total, count, out=np.full(len(names), np.nan), where=count > 0)
            mean[bound] = np.nan
            row |= {name: float(one) for name, one, own in zip(names, mean, first, strict=True) if not own}
            rate = Attacked.of(row["attack"], [runs[lines[place]["score"]] for place in places]).rate
            row |= bounds(HEADLINE, rate) | {"n": rate.n}
        made.append(row)
    summed = pd.DataFrame(made)[[*group.columns, "scores"]].drop(columns=["target_label", "attack_label"])
    return _fitting(labelled(summed))


def _fitting(group: pd.DataFrame) -> pd.DataFrame:
    """The rows that people are shown: where a summary has too many, the attacks that leak most from each target, and
    the floors, in the order of the table."""
    if not crowded(group):
        return group
    each = max(1, CROWD // max(1, group["target_label"].nunique()))
    order = group.sort_values(HEADLINE, ascending=False, kind="stable")
    most = order[order["role"] == "attack"].groupby("target_label", sort=False).head(each)
    kept = group[(group["role"] != "attack") | group.index.isin(most.index)]
    return kept.head(CROWD).reset_index(drop=True)


def note(group: pd.DataFrame, shown: pd.DataFrame) -> str:
    """What a table of a crowd leaves out, and where that is.

    Args:
        group: The rows of the protocol.
        shown: Those of its table.
    """
    scores = int(group["score"].notna().sum())
    told = int(shown["scores"][shown["score"].notna()].sum())
    left = f", {scores - told:,} scores of attacks that leak less are left out" if told < scores else ""
    return (
        f"{scores:,} scores, too many to read: a row is one attack on one defense, all seeds together{left}. likeness "
        "with its interval is that of all images of a row, other numbers are means over its scores. tables.csv has a "
        "row for each score."
    )


def of_score(row: Row) -> bool:
    """Whether a row is a single score's."""
    return not missing(row.get("score")) and not row.get("scores", 1) > 1
