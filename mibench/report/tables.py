"""Tables: what leaks, beside what the defense costs, between what chance gives and what real images would.

One declaration of the columns serves the terminal, Markdown and LaTeX. Rates are percentages.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mibench.metrics import Need, Unit, metric
from mibench.report.format import missing, shown

__all__ = [
    *("ABOVE", "BEST", "CLEAR", "HEADLINE", "LEVEL", "WORST", "Column", "Row", "Section", "beyond", "columns"),
    *("evaluators", "marks", "measured", "protocols", "rows", "scope", "title", "verifiers"),
]

BEST, WORST = "▲", "▽"
"""Marks of the attacks that leak most and least from a target, by the headline number."""

ABOVE = "°"
"""Marks a rate of reconstructions that is above the one of real held-out images."""

HEADLINE = "likeness"
"""The column of the headline number."""

CLEAR = 0.05
"""A difference is called clear where its adjusted p-value is below."""

LEVEL = f"{CLEAR:g}".lstrip("0")


@dataclass(frozen=True)
class Column:
    """One column: its two-line header, what it shows of a row (at so many digits), and when it goes.

    `drop` is the order in which columns are left out where the terminal is too narrow: 1 goes first, 0 always stays.
    `once` names the frame's column on whose runs of equal values the cell depends alone: tables that cannot be sorted
    print it at the first row of each run.
    """

    top: str
    bottom: str
    cell: Callable[["Row", int], str]
    drop: int = 0
    left: bool = False
    once: str = ""

    def cells(self, lines: Sequence["Row"], digits: int) -> list[str]:
        """The column as it is printed: what stands for several rows stands at the first."""
        before = [None, *(line.get(self.once) for line in lines[:-1])]
        return [
            "" if self.once and place and line[self.once] == before[place] else self.cell(line, digits)
            for place, line in enumerate(lines)
        ]

    @property
    def header(self) -> str:
        """Both lines in one: `KNN held-out`, `hypervolume`."""
        bottom = self.bottom.replace("\n", "")
        return f"{self.top.removesuffix('-')}{bottom}" if self.top.endswith("-") else f"{self.top} {bottom}".strip()


class Section(NamedTuple):
    """One table of the report.

    Args:
        title: What it shows.
        rows: Of a frame.
        columns: In their order.
        notes: What its numbers mean, a line each.
        about: A note -> headers of the columns it explains; it says nothing to whom none of them is shown.
    """

    title: str
    rows: pd.DataFrame
    columns: list[Column]
    notes: list[str]
    about: Mapping[str, Sequence[str]] = {}

    def notes_on(self, headers: Iterable[str]) -> list[str]:
        """The notes for a table that shows these columns only."""
        shown = set(headers)
        return [note for note in self.notes if note not in self.about or not shown.isdisjoint(self.about[note])]


def queries(row: "Row") -> float | None:
    """Images asked per identity as the oracle counts them: an identity's own and those that serve all."""
    return None if missing(row.get("queries")) else row["queries"] + row["shared_queries"]


def protocols(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of each protocol, in order; rows of two protocols are not comparable."""
    if table.empty:
        return
    for _, group in table.groupby("protocol", sort=False):
        yield group.reset_index(drop=True)


def evaluators(group: pd.DataFrame) -> list[str]:
    """Names of the evaluation models, headline first."""
    return str(group["evaluators"].iloc[0]).split(",")


def verifiers(group: pd.DataFrame) -> list[str]:
    """Names of the verifiers, the headline's first; none where the data have too few people."""
    return [name for name in str(group["verifiers"].iloc[0]).split(",") if name]


def scope(seeds: int) -> str:
    """What an interval or a p-value of a table that compares targets speaks of.

    Args:
        seeds: The fewest training seeds of a target in the table.
    """
    if seeds > 1:
        return f"At least {seeds} training seeds of each target: intervals resample identities and seeds."
    return (
        "These trained networks: with one seed, intervals and p-values speak of other people, not of another training "
        "(often 4 to 5 points)."
    )


def beyond(group: pd.DataFrame) -> list["Row"]:
    """The attacks whose headline is above the one of real held-out images: prototypes, which please every judge."""
    real = group[group["role"] == "ceiling"]
    if real.empty or missing(best := real[HEADLINE].iloc[0]):
        return []
    return rows(group[(group["role"] == "attack") & (group[HEADLINE] > best)])


def marks(group: pd.DataFrame) -> dict[int, str]:
    """Row -> mark: the attack that leaks most and the one that leaks least from each target; floors take no part.

    Equal attacks share a mark; where all are equal there is none.
    """
    marked: dict[int, str] = {}
    for _, rows in group[group["role"] == "attack"].groupby("target"):
        values = rows[HEADLINE]
        if values.max() > values.min():
            marked |= dict.fromkeys(values.index[values == values.max()], BEST)
            marked |= dict.fromkeys(values.index[values == values.min()], WORST)
    return {int(index): mark for index, mark in marked.items()}


def measured(name: str, at: str = "", drop: int = 0, interval: bool = False) -> Column:
    """The column of a metric as its declaration has it.

    Args:
        name: The metric.
        at: The evaluation model, or two (`resnet+ir`); empty if it needs none.
        drop: As `Column`.
        interval: Whether its interval is shown.
    """
    own = metric(name)
    column, unit = own.column(at), own.unit

    def text(row: Row, digits: int) -> str:
        return shown(row, column, unit, digits) if interval else unit.show(row.get(column))

    # A distance in a model's features is not that model's verdict, and is told from the same in Inception's.
    place = f"@{at}" if at and Need.FEATURES in own.needs else at
    return Column(*own.heading(place), text, drop)


def _pairs(group: pd.DataFrame) -> list[str]:
    """The headline evaluation model and the next one of another family, `resnet+ir`, where both were asked."""
    return [str(name).partition("@")[2] for name in group if str(name).startswith("both@")][:1]


def columns(group: pd.DataFrame) -> list[Column]:
    """The columns of a protocol's table."""
    names, matchers = evaluators(group), verifiers(group)
    first = names[0]
    above = {row.name for row in beyond(group)}
    marked: dict[Any, str] = {**marks(group)}
    accuracy = replace(measured("natural_accuracy", interval=True), once="target_label")

    def attack(row: Row, digits: int) -> str:
        return f"{row['attack_label']} {marked.get(row.name, '')}".strip()

    def headline(row: Row, digits: int) -> str:
        return shown(row, HEADLINE, Unit.SHARE, digits, ABOVE if row.name in above else "")

    def count(key: str) -> Callable[[Row, int], str]:
        return lambda row, digits: Unit.COUNT.show(row.get(key), digits)

    each = [
        Column("", "defense", lambda row, digits: row["target_label"], left=True, once="target_label"),
        accuracy,
        Column("", "attack", attack, left=True),
        Column(*metric(HEADLINE).heading(), headline),
        *(measured("verified", name, 6 if place else 9, interval=not place) for place, name in enumerate(matchers)),
        measured("both_verified", drop=5),
        *(measured("verified_strict", name, 4) for name in matchers),
        *(measured("open_top1", name, 8 if name == first else 5, interval=name == first) for name in names),
        measured("latent_rank1", drop=7, interval=True),
        *(measured("closed_top1", name, 4 if name == first else 3) for name in names),
        measured("own_ball", first, 4),
        measured("tpir", first, 3),
        measured("closeness", first, 3),
        measured("knn_train", first, 2),
        measured("knn_heldout", first, 2),
        measured("fid", first, 2),
        *(measured(name, drop=1) for name in ("fid", "lpips", "facenet") if name in group),
        measured("gap", first, 1),
        *(measured("both", name, 1) for name in _pairs(group)),
        Column("queries", "each", lambda row, digits: Unit.COUNT.show(queries(row), digits), drop=2),
        Column("with", "grad.", count("gradient_images"), drop=1),
        Column("", "sec.", lambda row, digits: Unit.SECONDS.show(row.get("seconds")), drop=1),
    ]
    if group["n"][group["target"].notna()].nunique() > 1:
        each.insert(3, Column("", "n", lambda row, digits: Unit.COUNT.show(row.get("n")), drop=2))
    if "scores" in group:
        each.insert(3, Column("", "scores", lambda row, digits: Unit.COUNT.show(row["scores"]), drop=2))
    lines = rows(group)
    return [column for column in each if column.drop == 0 or any(column.cell(row, 0) for row in lines)]


class Row(dict[str, Any]):
    """One row of a table as Python values; a tenth of the time that pandas takes for its own kind of row."""

    def __init__(self, name: int, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.name = name


def rows(group: pd.DataFrame) -> list[Row]:
    """The rows of a table, named by its index; values are those of `to_dict("records")`, which is slow for many."""
    names = [str(name) for name in group]
    columns = [_python(group.iloc[:, place]) for place in range(len(names))]
    return [
        Row(name, dict(zip(names, values, strict=True))) for name, *values in zip(group.index, *columns, strict=True)
    ]


def _python(column: pd.Series) -> list[Any]:
    values = column.tolist()
    if column.dtype == object:  # numpy's own numbers may be among others
        return [value.item() if isinstance(value, np.generic) else value for value in values]
    return values


def title(group: pd.DataFrame) -> str:
    """What a protocol's table is about."""
    row = group.iloc[0]
    settings = f" ({row['dataset_settings']})" if row["dataset_settings"] else ""
    people = row["identities"]
    of = f" of {row['classes']}" if row["classes"] != people else ""
    return f"{row['dataset']}{settings}: {people}{of} identities attacked"
