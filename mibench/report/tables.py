"""Tables: what leaks, beside what the defense costs, between what chance gives and what real images would.

One declaration of the columns serves the terminal, Markdown and LaTeX. Rates are percentages.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mibench.metrics import power
from mibench.metrics.comparison import adjusted, least_p, paired_test
from mibench.metrics.statistics import paired_interval
from mibench.report.collect import Scored
from mibench.report.protocol import TITLE, apart
from mibench.runs import canonical

__all__ = [
    "CLEAR", "DIFFERENCES", "Column", "caption", "columns", "difference_notes", "differences", "marks", "protocols",
    "render", "title",
]  # fmt: skip

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
    cell: Callable[[pd.Series, int], str]
    drop: int = 0
    left: bool = False

    @property
    def header(self) -> str:
        """Both lines in one."""
        return f"{self.top} {self.bottom}".strip().replace("-\n", "-")


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


def queries(row: pd.Series) -> float | None:
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

    def target(row: pd.Series, digits: int) -> str:
        return row["target_label"] if row.name in opened else ""

    def natural(row: pd.Series, digits: int) -> str:
        return interval(row, "natural_accuracy", digits) if row.name in opened else ""

    def attack(row: pd.Series, digits: int) -> str:
        return f"{row['attack_label']} {marked.get(row.name, '')}".strip()

    def rate(key: str) -> Callable[[pd.Series, int], str]:
        return lambda row, digits: interval(row, key, digits)

    def plain(key: str, show: Callable[[Any], str]) -> Callable[[pd.Series, int], str]:
        return lambda row, digits: show(row.get(key))

    shown = [
        Column("", "defense", target, left=True),
        Column("natural", "accuracy", natural),
        Column("", "attack", attack, left=True),
        *(Column("open-set", name, rate(f"open_top1@{name}"), drop=0 if name == first else 8) for name in names),
        *(Column("closed", name, plain(f"closed_top1@{name}", percent), drop=7 if name == first else 6)
          for name in names),
        Column("KNN", "train", plain(f"knn_train@{first}", amount), drop=5),
        Column("KNN", "held-\nout", plain(f"knn_heldout@{first}", amount), drop=4),
        Column("fid", f"@{first}", plain(f"fid@{first}", amount), drop=4),
        *(Column("", name, plain(name, amount), drop=2) for name in ("fid", "lpips", "facenet") if name in group),
        Column("calib-", "rated", plain(f"calibrated@{first}", percent), drop=1),
        Column("target", "minus", plain(f"gap@{first}", _signed), drop=1),
        Column("times", "real", plain(f"times_real@{first}", amount), drop=1),
        *(Column("judges'", "kappa", plain(name, amount), drop=1) for name in kappas(group)),
        Column("queries", "each", lambda row, digits: count(queries(row), digits), drop=3),
        Column("with", "grad.", lambda row, digits: count(row.get("gradient_images"), digits), drop=2),
        Column("", "sec.", plain("seconds", seconds), drop=2),
    ]  # fmt: skip
    if group["n"][group["target"].notna()].nunique() > 1:
        shown.insert(3, Column("", "n", plain("n", count), drop=2))
    return [column for column in shown if column.drop == 0 or any(map(lambda row: column.cell(row, 0), _rows(group)))]


def _rows(group: pd.DataFrame) -> Iterator[pd.Series]:
    return (row for _, row in group.iterrows())


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
        for row in _rows(runs[runs["role"] == "attack"])
    }
    return ", ".join(texts)


def unavailable(found: Iterable[Scored], protocol: str) -> dict[str, tuple[str, str]]:
    """Metrics that could not be computed: name -> why, how to get it."""
    return {
        item["name"]: (item["why"], item["how"])
        for one in found if one.protocol == protocol for item in one.scores["unavailable"]
    }  # fmt: skip


# --- differences ----------------------------------------------------------------------------------------------------


def differences(found: list[Scored], table: pd.DataFrame) -> pd.DataFrame:
    """Each defended target against the undefended one that is otherwise equal, attack by attack, on the same people.

    d = mean over reconstructions of (hit under the defense - hit without), hits of the headline evaluation model,
    paired by (identity, order), with the paired interval clustered by identity. A last row for each defense compares
    strongest with strongest where these are different attacks; it pairs each identity's mean.

    `p` is that of a sign-flip test over identities, `p_adjusted` Holm's over all rows of the protocol; the verdict
    follows it. `detectable` is the smallest difference such a row shows 4 times out of 5, in the unit of `difference`;
    `identities_needed` and, where the same was measured on several `seeds`, `seeds_needed` are what a true difference
    of the size found takes (see metrics/power.py).
    """
    runs = {one.run.id: one for one in found}
    parts = []
    for group in protocols(table):
        pairs = []
        attacks, judged = group[group["role"] == "attack"], strongest(group)
        for _, defended in attacks[attacks["defense"] != "none"].groupby("target", sort=False):
            top = judged[judged["target"] == defended["target"].iloc[0]].iloc[0]
            own = [(row, base) for row in _rows(defended) if (base := _baseline(runs, row, attacks)) is not None]
            if not own:
                continue
            rival = judged[judged["target"] == own[0][1]["target"]].iloc[0]
            alike = rival["attack_label"] == top["attack_label"]
            pairs += [(row, base, {"judged_by": alike and row["score"] == top["score"]}) for row, base in own]
            if not alike:
                pairs.append((top, rival, {"judged_by": True, "attack": "strongest"}))
        if pairs:
            parts.append(_compared(runs, pairs))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _compared(runs: Mapping[str, Scored], pairs: list[tuple[pd.Series, pd.Series, dict[str, Any]]]) -> pd.DataFrame:
    """The rows of one protocol: each difference, then what depends on the others."""
    lines = [_difference(runs, row, base) | more for row, base, more in pairs]
    repeats: dict[str, dict[int, pd.Series]] = defaultdict(dict)
    owners = []
    for row, base, more in pairs:
        one, other = runs[row["score"]], runs[base["score"]]
        owners.append(canonical([_seedless(one), _seedless(other), more.get("attack", "")]))
        repeats[owners[-1]].setdefault(one.target.spec["seed"], _by_identity(one) - _by_identity(other))
    raised = adjusted(torch.tensor([line["p"] for line in lines], dtype=torch.float64)).tolist()
    for line, p, owner in zip(lines, raised, owners, strict=True):
        line["p_adjusted"] = p
        clear = p < CLEAR and line["difference"] != 0
        line["verdict"] = ("lower" if line["difference"] < 0 else "higher") if clear else "no clear difference"
        seeds = torch.tensor(pd.DataFrame(repeats[owner]).dropna().to_numpy(dtype="float64").T)
        known = power.components(seeds)
        line["seeds"] = len(seeds)
        line["seeds_needed"] = power.seeds_needed(known, float(seeds.mean())) if known else math.nan
    return pd.DataFrame(lines)


def _seedless(one: Scored) -> list[Any]:
    """What repeats of one experiment share."""
    specs = (one.target.spec, *one.made_by)
    return [{key: value for key, value in spec.items() if key != "seed"} for spec in specs]


def _by_identity(one: Scored) -> pd.Series:
    """Mean headline hits of each identity."""
    return one.per_image.groupby("label")[f"open_top1@{one.names[0]}"].mean()


def _recipe(one: Scored) -> str:
    """What an undefended twin shares: everything but the defense."""
    target = {key: value for key, value in one.target.spec.items() if key != "defenses"}
    return canonical([target, *one.made_by])


def _baseline(runs: Mapping[str, Scored], row: pd.Series, attacks: pd.DataFrame) -> pd.Series | None:
    twins = attacks[(attacks["defense"] == "none") & (attacks["attack"] == row["attack"])]
    wanted = _recipe(runs[row["score"]])
    return next((twin for twin in _rows(twins) if _recipe(runs[twin["score"]]) == wanted), None)


def _difference(runs: Mapping[str, Scored], row: pd.Series, base: pd.Series) -> dict[str, Any]:
    one, other = runs[row["score"]], runs[base["score"]]
    column = f"open_top1@{one.names[0]}"
    keys = ["label", "order"]
    pairs = one.per_image[[*keys, column]].merge(other.per_image[[*keys, column]], on=keys, suffixes=("_a", "_b"))
    if len(pairs) == len(one.per_image) == len(other.per_image):
        hits = [torch.tensor(pairs[f"{column}_{side}"].to_numpy() == 1) for side in "ab"]
        labels = torch.tensor(pairs["label"].to_numpy())
    else:  # different numbers of reconstructions: the identities are what they share
        means = [_by_identity(one), _by_identity(other)]
        shared = means[0].index.intersection(means[1].index)
        hits = [torch.tensor(mean[shared].to_numpy(dtype="float64")) for mean in means]
        labels = torch.tensor(shared.to_numpy())
    found = paired_interval(hits[0], hits[1], labels)
    people = (_by_identity(one) - _by_identity(other)).dropna()
    sd = power.spread(torch.tensor(people.to_numpy(dtype="float64")), torch.zeros(len(people)))
    return {
        "protocol": row["protocol"],
        "defense": row["target_label"],
        "attack": row["attack_label"],
        "attack_with": row["attack_label"],
        "attack_without": base["attack_label"],
        "without": base[column],
        "with": row[column],
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "n": found.n,
        "identities": found.clusters,
        "p": paired_test(hits[0], hits[1], labels).p,
        "p_adjusted": math.nan,
        "verdict": "",
        "detectable": power.detectable(sd, found.clusters),
        "identities_needed": power.identities_needed(sd, found.value),
        "seeds": 1,
        "seeds_needed": math.nan,
        "natural_accuracy_without": base["natural_accuracy"],
        "natural_accuracy_with": row["natural_accuracy"],
        "natural_accuracy_difference": row["natural_accuracy"] - base["natural_accuracy"],
        "score_with": row["score"],
        "score_without": base["score"],
    }


def _signed(value: Any) -> str:
    return "" if missing(value) else f"{100 * value:+.1f}"


def _span(row: pd.Series, digits: int) -> str:
    if missing(row["difference_low"]):
        return _signed(row["difference"])
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    return f"{_signed(row['difference'])} [{low:+.{digits}f},{high:+.{digits}f}]"


def _attacked(row: pd.Series, digits: int) -> str:
    if row["attack"] == "strongest":
        return f"{row['attack_with']} vs {row['attack_without']} {BEST}"
    return f"{row['attack']} {BEST if row['judged_by'] else ''}".strip()


DIFFERENCES = [
    Column("", "defense", lambda row, digits: row["defense"], left=True),
    Column("", "attack", _attacked, left=True),
    Column("open-set", "none", lambda row, digits: percent(row["without"]), drop=2),
    Column("open-set", "defended", lambda row, digits: percent(row["with"]), drop=2),
    Column("difference", "in points", _span),
    Column("Holm", "p", lambda row, digits: probability(row["p_adjusted"]), drop=1),
    Column("attack accuracy", "is", lambda row, digits: row["verdict"], left=True),
    Column("natural", "accuracy", lambda row, digits: _signed(row["natural_accuracy_difference"])),
]


def difference_notes(pairs: pd.DataFrame) -> list[str]:
    """What the rows of one protocol mean, and how many identities and seeds such differences take."""
    many = f"Holm's correction over the {len(pairs)} rows" if len(pairs) > 1 else "one comparison"
    lines = [
        "Defended minus undefended, percentage points of open-set top-1 accuracy, paired over the same identities "
        f"[95% interval of one comparison]. 'lower' or 'higher': p < {LEVEL} of a sign-flip test over "
        f"identities ({many}). {BEST} what a defense is judged by: its strongest attack against the strongest without "
        "it ('a vs b' where these differ). Natural accuracy, in points: the price."
    ]
    people = int(pairs["identities"].max())
    least = least_p(people, len(pairs))
    if least >= CLEAR:
        lines.append(
            f"With {people} identities and {len(pairs)} comparisons no p can be below {probability(least)}, so no "
            "difference is clear here: attack more identities."
        )
    return [*lines, _power(pairs)]


def _power(pairs: pd.DataFrame) -> str:
    """How many identities and seeds the smallest and the largest claimed difference take."""
    claimed = pairs[pairs["verdict"] != "no clear difference"]
    kind = "clear difference" if len(claimed) else "difference, though not clear"
    rows = sorted(_rows(claimed if len(claimed) else pairs), key=lambda row: abs(row["difference"]))
    shown = {"only": rows[0]} if len(rows) == 1 else {"smallest": rows[0], "largest": rows[-1]}
    if not len(claimed):
        shown = {"largest": rows[-1]}
    parts = [f"the {word} {kind} {_needs(row)}" for word, row in shown.items()]
    text = f"To show with p < {LEVEL} (uncorrected) 4 times out of 5, {' and '.join(parts)}"
    seen = pairs["detectable"].dropna()
    if len(seen):
        low, high = f"{100 * seen.min():.1f}", f"{100 * seen.max():.1f}"
        text += f". {int(pairs['identities'].max())} identities show differences from {low} points"
        text += f" ({high} where identities vary most)" if low != high else ""
    if (pairs["seeds"] < 2).all():
        text += ". One seed of each target: how much another training would change is unknown"
    return f"{text}."


def _needs(row: pd.Series) -> str:
    """`(re a_e=0.4, ppa: -12.0 points) takes 34 identities of the 20 attacked, 3 seeds`."""
    whom = f"({row['defense']}, {_attacked(row, 1).removesuffix(BEST).strip()}: {_signed(row['difference'])} points)"
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


# --- the terminal ---------------------------------------------------------------------------------------------------


def _table(group: pd.DataFrame, shown: list[Column], gap: int) -> Table:
    """A rich table; floors dim, a rule between targets."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0), expand=False)
    for column in shown:
        head = f"{column.top}\n{column.bottom}".strip()
        side: Literal["left", "right"] = "left" if column.left else "right"
        table.add_column(head, justify=side, no_wrap=True, header_style="bold", vertical="bottom")
    owner = next(name for name in ("target_label", "family", "defense") if name in group)
    ruled = bool(group[owner].duplicated().any())  # a rule below every row would tell nothing
    for place, row in enumerate(_rows(group)):
        last = ruled and (place + 1 == len(group) or group[owner].iloc[place + 1] != row[owner])
        role = row.get("role", "attack")
        cells: list[RenderableType] = []
        for column in shown:
            style = "dim" if role == "floor" and column.bottom not in ("defense", "accuracy") else ""
            if column.bottom == "defense" or (column.bottom == "attack" and role == "ceiling"):
                style = "bold" if role != "ceiling" else "italic"
            text = Text(column.cell(row, 0), style=style)
            text.highlight_words([BEST], "bold red")
            text.highlight_words([WORST], "green")
            if column.bottom == "is":
                text.stylize({"lower": "green", "higher": "red"}.get(row["verdict"], "dim"))
            cells.append(text)
        table.add_row(*cells, end_section=last and place + 1 < len(group))
    return table


def _fit(group: pd.DataFrame, shown: list[Column], console: Console) -> tuple[Table, list[str]]:
    """The table that fits the console: a narrower gap first, then without columns, in their declared order."""
    wide = console.options.update(max_width=10_000)
    left: list[str] = []
    while True:
        for gap in (2, 1, 0):
            table = _table(group, shown, gap)
            if Measurement.get(console, wide, table).maximum <= console.width:
                return table, left
        going = min((column.drop for column in shown if column.drop), default=None)
        if going is None:
            return table, left
        left += [column.header for column in shown if column.drop == going]
        shown = [column for column in shown if column.drop != going]


MOST = 150
"""Rows of a table that a terminal is good for."""


def fitted(rows: pd.DataFrame, shown: list[Column], console: Console) -> RenderableType:
    """One table, as wide as the console."""
    return _fit(rows.reset_index(drop=True), shown, console)[0]


def render(found: list[Scored], table: pd.DataFrame, compared: pd.DataFrame, console: Console) -> RenderableType:
    """Every protocol's table and its paired differences, as wide as the console; very long ones stay in the files."""
    parts: list[RenderableType] = []
    for group in protocols(table):
        if len(group) > MOST:
            parts += [Text(title(group), style="bold underline"), Text(),
                      _notes([f"{len(group)} rows, too many for a terminal: tables.md and tables.csv have them."]),
                      Text()]  # fmt: skip
            continue
        protocol = group["protocol"].iloc[0]
        main, left = _fit(group, columns(group), console)
        notes = caption(group)
        if left:
            notes.append(f"Left out at {console.width} columns: {', '.join(left)}; tables.csv and tables.md have all.")
        gone = unavailable(found, protocol)
        if gone:
            why = "; ".join(f"{name}: {why}" for name, (why, _) in gone.items())
            path = next(one.run.path for one in found if one.protocol == protocol) / "scores.json"
            notes.append(f"Not measured: {why}. What to fetch and where to put it: 'unavailable' in {path}.")
        parts += [Text(title(group), style="bold underline"), Text(), main, Text(), _notes(notes), Text()]
        pairs = compared[compared["protocol"] == protocol] if len(compared) else compared
        if len(pairs):
            small, _ = _fit(pairs.reset_index(drop=True), DIFFERENCES, console)
            parts += [Text("What each defense changes", style="bold underline"), Text(), small, Text(),
                      _notes(difference_notes(pairs)), Text()]  # fmt: skip
    reasons = apart(found, table["protocol"])
    if reasons:
        parts += [Text(TITLE, style="bold underline"), Text(), _notes(reasons), Text()]
    return Group(*parts)


def _notes(lines: list[str]) -> RenderableType:
    return Group(*(Padding(Text(line, style="dim"), 0) for line in lines))
