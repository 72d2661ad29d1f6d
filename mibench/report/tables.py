"""Tables: what leaks, beside what the defense costs, between what chance gives and what real images would.

One declaration of the columns serves the terminal, Markdown and LaTeX. Rates are percentages.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from mibench.plugins import registry
from mibench.report.collect import Scored

__all__ = ["CLEAR", "Column", "Row", "Section", "caption", "columns", "marks", "protocols", "rows", "section", "title"]

BEST, WORST = "▲", "▽"
"""Marks of the attacks that leak most and least from a target, by the headline number."""

CLEAR = 0.05
"""A difference is called clear where its adjusted p-value is below."""

LEVEL = f"{CLEAR:g}".lstrip("0")


@dataclass(frozen=True)
class Column:
    """One column: its two-line header, what it shows of a row (at so many digits), and when it goes.

    `drop` is the order in which columns are left out where the terminal is too narrow: 1 goes first, 0 always stays.
    """

    top: str
    bottom: str
    cell: Callable[["Row", int], str]
    drop: int = 0
    left: bool = False

    @property
    def header(self) -> str:
        """Both lines in one."""
        return f"{self.top} {self.bottom}".strip().replace("-\n", "-")


class Section(NamedTuple):
    """One table of the report."""

    title: str
    rows: pd.DataFrame
    columns: list[Column]
    notes: list[str]


# --- cells ----------------------------------------------------------------------------------------------------------


def missing(value: Any) -> bool:
    """None or NaN."""
    return value is None or bool(value != value)


def percent(value: Any) -> str:
    """A rate as a percentage with one digit; all and nothing without."""
    return "" if missing(value) else f"{100 * value:.{0 if value in (0, 1) else 1}f}"


def interval(row: Any, key: str, digits: int) -> str:
    """`82.0 [74,88]`; without bounds where there is no interval."""
    name, at, model = key.partition("@")
    value, low, high = (row.get(f"{name}{end}{at}{model}") for end in ("", "_low", "_high"))
    if missing(value) or missing(low) or missing(high):
        return percent(value)
    return f"{percent(value)} [{100 * low:.{digits}f},{100 * high:.{digits}f}]"


def probability(value: Any) -> str:
    """A p-value with three digits, without its leading zero."""
    if missing(value):
        return ""
    return "<.001" if value < 0.0005 else f"{value:.3f}".lstrip("0") if value < 0.9995 else "1"


def amount(value: Any) -> str:
    """A quantity with three significant digits, never in powers of ten below a million."""
    if missing(value):
        return ""
    whole = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(whole, 4)}f}"


def count(value: Any, digits: int = 1) -> str:
    """A number of images; in the terminal (digits 0) thousands and millions in short: 12.6k."""
    if missing(value):
        return ""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if digits == 0 and value >= 10 * size:
            return f"{amount(value / size)}{sign}"
    return f"{value:,.0f}"


def seconds(value: Any) -> str:
    """Wall-clock time, to a tenth where that is much."""
    return "" if missing(value) else f"{value:,.{1 if value < 100 else 0}f}"


def signed(value: Any) -> str:
    """A difference of rates in points, with its sign."""
    return "" if missing(value) else f"{100 * value:+.1f}"


def queries(row: "Row") -> float | None:
    """Images asked per identity as the oracle counts them: an identity's own and those that serve all."""
    return None if missing(row.get("queries")) else row["queries"] + row["shared_queries"]


# --- one protocol ---------------------------------------------------------------------------------------------------


def protocols(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of each protocol, in order; rows of two protocols are not comparable."""
    if table.empty:
        return
    for _, group in table.groupby("protocol", sort=False):
        yield group.reset_index(drop=True)


def evaluators(group: pd.DataFrame) -> list[str]:
    """Names of the evaluation models, headline first."""
    return str(group["evaluators"].iloc[0]).split(",")


def headline(group: pd.DataFrame) -> str:
    """The column of the headline number."""
    return f"open_top1@{evaluators(group)[0]}"


def marks(group: pd.DataFrame) -> dict[int, str]:
    """Row -> mark: the attack that leaks most and the one that leaks least from each target; floors take no part.

    Equal attacks share a mark; where all are equal there is none.
    """
    found: dict[int, str] = {}
    column = headline(group)
    for _, rows in group[group["role"] == "attack"].groupby("target"):
        values = rows[column]
        if values.max() > values.min():
            found |= dict.fromkeys(values.index[values == values.max()], BEST)
            found |= dict.fromkeys(values.index[values == values.min()], WORST)
    return {int(index): mark for index, mark in found.items()}


def kappas(group: pd.DataFrame) -> list[str]:
    """The column of the agreement of the headline evaluation model with the next one; none in older scores."""
    return [str(name) for name in group if str(name).startswith("kappa@")][:1]


def strongest(group: pd.DataFrame) -> pd.DataFrame:
    """The attack of each target with the highest headline number: what the target is judged by."""
    attacks = group[group["role"] == "attack"]
    return attacks.loc[attacks.groupby("target", sort=False)[headline(group)].idxmax()]


def columns(group: pd.DataFrame) -> list[Column]:
    """The columns of a protocol's table."""
    names = evaluators(group)
    first = names[0]
    marked: dict[Any, str] = {**marks(group)}
    changed = group["target_label"] != group["target_label"].shift()
    opened = set(group.index[changed])

    def target(row: Row, digits: int) -> str:
        return row["target_label"] if row.name in opened else ""

    def natural(row: Row, digits: int) -> str:
        return interval(row, "natural_accuracy", digits) if row.name in opened else ""

    def attack(row: Row, digits: int) -> str:
        return f"{row['attack_label']} {marked.get(row.name, '')}".strip()

    def rate(key: str) -> Callable[[Row, int], str]:
        return lambda row, digits: interval(row, key, digits)

    def plain(key: str, show: Callable[[Any], str]) -> Callable[[Row, int], str]:
        return lambda row, digits: show(row.get(key))

    shown = [
        Column("", "defense", target, left=True),
        Column("natural", "accuracy", natural),
        Column("", "attack", attack, left=True),
        *(Column("open-set", name, rate(f"open_top1@{name}"), drop=0 if name == first else 8) for name in names),
        *(
            Column("closed", name, plain(f"closed_top1@{name}", percent), drop=7 if name == first else 6)
            for name in names
        ),
        Column("KNN", "train", plain(f"knn_train@{first}", amount), drop=5),
        Column("KNN", "held-\nout", plain(f"knn_heldout@{first}", amount), drop=4),
        Column("fid", f"@{first}", plain(f"fid@{first}", amount), drop=4),
        *(Column("", name, plain(name, amount), drop=2) for name in ("fid", "lpips", "facenet") if name in group),
        Column("calib-", "rated", plain(f"calibrated@{first}", percent), drop=1),
        Column("target", "minus", plain(f"gap@{first}", signed), drop=1),
        Column("times", "real", plain(f"times_real@{first}", amount), drop=1),
        *(Column("judges'", "kappa", plain(name, amount), drop=1) for name in kappas(group)),
        Column("queries", "each", lambda row, digits: count(queries(row), digits), drop=3),
        Column("with", "grad.", lambda row, digits: count(row.get("gradient_images"), digits), drop=2),
        Column("", "sec.", plain("seconds", seconds), drop=2),
    ]
    if group["n"][group["target"].notna()].nunique() > 1:
        shown.insert(3, Column("", "n", plain("n", count), drop=2))
    lines = rows(group)
    return [column for column in shown if column.drop == 0 or any(column.cell(row, 0) for row in lines)]


class Row(dict[str, Any]):
    """One row of a table as Python values; a tenth of the time that pandas takes for its own kind of row."""

    def __init__(self, name: int, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.name = name


def rows(group: pd.DataFrame) -> list[Row]:
    """The rows of a table, named by its index."""
    return [Row(name, values) for name, values in zip(group.index, group.to_dict("records"), strict=True)]  # type: ignore[arg-type]


def title(group: pd.DataFrame) -> str:
    """What a protocol's table is about."""
    row = group.iloc[0]
    settings = f" ({row['dataset_settings']})" if row["dataset_settings"] else ""
    people = row["identities"]
    of = f" of {row['classes']}" if row["classes"] != people else ""
    return f"{row['dataset']}{settings}: {people}{of} identities attacked"


def caption(group: pd.DataFrame) -> list[str]:
    """What the numbers mean, how they were made, what is missing: one line each."""
    row, names = group.iloc[0], evaluators(group)
    first = names[0]
    runs = group[group["target"].notna()]
    sizes = sorted({int(n) for n in runs["n"]})
    floors = ", ".join(dict.fromkeys(group["attack"][group["role"] == "floor"]))
    real = group[group["role"] == "ceiling"].iloc[0]
    n = f"n = {sizes[0]:,}" if len(sizes) == 1 else f"n = {sizes[0]:,} to {sizes[-1]:,}"
    judges = ", ".join(
        f"{name} {percent(row[f'heldout_accuracy@{name}'])} ({percent(row[f'heldout_accuracy_open@{name}'])} "
        f"open-set, among {count(row[f'distractors@{name}'])} other people)"
        for name in names
    )
    lines = [
        f"Rates are % of {n} reconstructions of {row['identities']} identities, [95% interval: bootstrap clustered by "
        "identity, widened for rates]. Higher leaks more.",
        f"open-set = top-1 attack accuracy of an evaluation model that can also answer 'someone else'; {first}'s is "
        "the headline. closed = private identities only, as in most papers.",
        f"{BEST} leaks most and {WORST} least of a target's attacks, by the headline. Floors, without optimisation: "
        f"{floors}. Ceiling: {real['attack']}, {count(real['n'])} unseen real images of the same people, judged as if "
        "reconstructed.",
        f"KNN = squared L2 to the nearest private image of the person, in {first}'s features (train to train "
        f"{amount(row[f'knn_real_to_real@{first}'])}); fid@{first} is taken there too. Lower leaks more.",
        "queries each = images the target was asked for one identity, those for all identities included; with grad. = "
        "of these, images it was differentiated for; sec. = the whole inversion.",
        *_doubts(group, first),
        f"Evaluation models, held-out accuracy: {judges}.",
        f"Attack settings: {_settings(runs)}. Target: {', '.join(sorted(set(runs['model'])))}.",
        *_partial(runs),
    ]
    asked = runs[runs["prior_queries"] > 0].groupby("prior")[["prior_queries", "prior_gradients"]].max()
    if len(asked):
        told = [
            f"{name} {int(row['prior_queries']):,}"
            + (f" ({int(row['prior_gradients']):,} of them with grad.)" if row["prior_gradients"] else "")
            for name, row in asked.iterrows()
        ]
        lines.append(f"What learning a prior asked each target comes on top: {', '.join(told)}.")
    if bool(row[f"distractors_are_public@{first}"]) and "public_search" in set(runs["attack"]):
        lines.append("The people taken for someone else are the attacker's public people, so public_search scores 0.")
    return lines


def _doubts(group: pd.DataFrame, first: str) -> list[str]:
    """What the columns about false positives mean, where there are any."""
    if f"calibrated@{first}" not in group:
        return []
    pairs = [name.partition("@")[2].replace("+", " and ") for name in kappas(group)]
    judges = f"; kappa = how far {pairs[0]} agree on the hits, 0 is chance" if pairs else ""
    return [
        f"Likeness or look-alike: calibrated = % that {first} takes for the person more surely than 99% of real images "
        "of other people; target minus = points by which the target's own verdict exceeds open-set; times real = "
        f"distance to the nearest held-out image in units of another real photograph's{judges}."
    ]


def _settings(runs: pd.DataFrame) -> str:
    """`gmi quick from wgan_gp, ppa quick from dcgan`."""
    texts = {
        f"{row['attack']} {row['preset']}" + (f" from {row['prior']}" if row["prior"] else ""): None
        for row in rows(runs[runs["role"] == "attack"])
    }
    return ", ".join(texts)


def _partial(runs: pd.DataFrame) -> list[str]:
    """A line for each preset that stands for its method only in part, see `registry.partial`."""
    asked = dict.fromkeys((row["attack"], row["preset"]) for row in rows(runs[runs["role"] == "attack"]))
    told = ((f"{attack} {preset}", registry.partial(attack, preset)) for attack, preset in asked)
    return [f"{name} is not the whole method: {what}." for name, what in told if what]


def section(group: pd.DataFrame, found: Iterable[Scored], brief: bool = False) -> Section:
    """A protocol's table, with what could not be measured and how to get it (if brief: where that is written)."""
    protocol = group["protocol"].iloc[0]
    own = [one for one in found if one.protocol == protocol]
    gone = {item["name"]: (item["why"], item["how"]) for one in own for item in one.scores["unavailable"]}
    notes = [f"Not measured: {name}: {why}; {how}" for name, (why, how) in gone.items()]
    if brief and gone:
        why = "; ".join(f"{name}: {why}" for name, (why, _) in gone.items())
        path = own[0].run.path / "scores.json"
        notes = [f"Not measured: {why}. What to fetch and where to put it: 'unavailable' in {path}."]
    return Section(title(group), group, columns(group), caption(group) + notes)
