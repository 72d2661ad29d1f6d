"""What was measured beside what papers published of the same target, attack and metric.

A row says whether the published number lies within the interval of the measured one. That is no test of the paper: its
own number has an error too (it is one training, and as a rule one attack), which nobody published; and a row is only as
alike as the suite that measured it says.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mibench.experiments.published import Published
from mibench.metrics import Unit, metric
from mibench.report.format import bounded, missing, shown
from mibench.report.result import Result
from mibench.report.rows import bounds
from mibench.report.tables import Column, Section
from mibench.stats.intervals import Interval

__all__ = ["frame", "section"]

NOTE = (
    "Measured with its 95% interval over people; a published number has an error of its own, which the paper does not "
    "give: one inside the interval agrees, one outside need not contradict. What the suite does otherwise than the "
    "paper stands in its page of the documentation."
)


def frame(results: Sequence[Result], known: Sequence[Published]) -> pd.DataFrame:
    """One row per score and published number of the same: data, architecture, defense, attack, prior, metric.

    Args:
        results: The scores.
        known: The published numbers.
    """
    of: dict[tuple[str, str], list[Published]] = defaultdict(list)
    for one in known:
        if one.value is not None:
            of[one.model, one.defense].append(one)
    lines = []
    for result in results:
        if result.prior is None:
            continue
        for one in of.get((result.row["model"], result.row["defense"]), ()):
            if one.speaks_of(result.inversion, result.row["defense"]):
                lines.append(_line(result, one))
    table = pd.DataFrame(lines)
    # No attack changes natural accuracy: once for each target.
    return table.drop_duplicates(["target", "attack", "metric", "source"], ignore_index=True) if lines else table


def _line(result: Result, one: Published) -> dict[str, Any]:
    assert one.value is not None
    row = result.row
    column = one.metric if one.metric in row else metric(one.metric).column(result.names[0])
    value, low, high = (math.nan if missing(part) else float(part) for part in bounded(row, column))
    known, stated = not math.isnan(low), one.value / 100
    measured = Interval(value, low, high, 0, 0) if known else None
    shift = Interval(value - stated, low - stated, high - stated, 0, 0) if known else None
    return {
        "suite": one.suite,
        "dataset": row["dataset"],
        "model": one.model,
        "target": result.target.id,
        "defense": one.defense,
        "attack": result.attack if one.attack else "",
        "metric": one.metric,
        "evaluator": column.partition("@")[2],
        **bounds("measured", measured),
        "published": stated if known else math.nan,
        **bounds("difference", shift),
        "within": ("yes" if low <= stated <= high else "no") if known else "",
        "source": one.source,
        "note": one.note,
    }


def section(table: pd.DataFrame) -> Section:
    """The rows as a table."""
    columns = [
        Column("", "model", lambda row, digits: row["model"], left=True, drop=3),
        Column("", "defense", lambda row, digits: row["defense"], left=True),
        Column("", "attack", lambda row, digits: row["attack"], left=True),
        Column(
            "",
            "metric",
            lambda row, digits: " ".join(metric(row["metric"]).heading(row["evaluator"])).strip(),
            left=True,
        ),
        Column("", "measured", lambda row, digits: shown(row, "measured", Unit.SHARE, digits)),
        Column("", "published", lambda row, digits: Unit.SHARE.show(row["published"])),
        Column("", "difference", lambda row, digits: shown(row, "difference", Unit.POINTS, digits)),
        Column("within", "interval", lambda row, digits: row["within"]),
        Column("", "source", lambda row, digits: row["source"], left=True, drop=2),
    ]
    return Section("Beside what papers published", table, columns, [NOTE])
