"""Who leaks: the people a target gives away most, how unequally it leaks, and whether groups of people fare alike.

An average hides that one person may be reconstructed every time. Each target is judged by its strongest attack,
open-set top-1 of the headline evaluation model, as in the tables.

With few reconstructions of each person some are hit more often than others by luck alone. The Gini coefficient that
luck gives is shown beside the one found.

References:
    | Variabilità e mutabilità (Gini, 1912), the coefficient
    | https://en.wikipedia.org/wiki/Gini_coefficient
    | The Jackknife, the Bootstrap and Other Resampling Plans (Efron, 1982)
    | https://doi.org/10.1137/1.9781611970319
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit
from scipy.stats import binom
from torch import Tensor

from mibench.report import tables
from mibench.report.collect import Scored
from mibench.report.tables import (
    Column,
    Row,
    Section,
    amount,
    evaluators,
    interval,
    missing,
    percent,
    probability,
    protocols,
)
from mibench.stats.intervals import proportion
from mibench.stats.significance import adjusted, gap_test

__all__ = ["Leakage", "gini", "gini_by_luck", "gini_interval", "leakage", "numbered", "sections"]

NAMED = 5
"""At most so many people of a target are named in a table; leakage.csv has all."""

ROWS = 40
"""So many people in all are named in a table, but at least one of each target."""

PEOPLE = [
    "protocol",
    "defense",
    "attack",
    "rank",
    "identity",
    "label",
    "group",
    "hits",
    "n",
    "rate",
    "nearest",
    "distance_rank",
    "target_confidence",
]
"""Columns of leakage.csv."""


class Leakage(NamedTuple):
    """Rows of each person under each target, of each target, and of each group under each target."""

    people: pd.DataFrame
    targets: pd.DataFrame
    groups: pd.DataFrame


# --- how unequal ----------------------------------------------------------------------------------------------------


def gini(rates: Float[Tensor, "*r c"]) -> Float64[Tensor, "*r"]:
    """Gini coefficient of hit rates over c people, in [0, 1]: 0 if all are equal, 1 if one person has all hits.

        G = sum_ij |x_i - x_j| / (2 c (c - 1) mean x)

    NaN for one person, or if nobody was hit.

    Differs: divided by c (c - 1), not c^2, so that few people can reach 1 and the value does not depend on their
    number.
    """
    x = rates.double().sort(dim=-1).values
    c = x.shape[-1]
    place = torch.arange(1, c + 1, dtype=torch.float64)
    # Sorted, the double sum is a single one: x_(i) is the larger of i - 1 pairs and the smaller of c - i.
    return ((2 * place - c - 1) * x).sum(dim=-1) / ((c - 1) * x.sum(dim=-1))


def gini_interval(rates: Float[Tensor, " c"]) -> tuple[float, float]:
    """95% interval of `gini` over other people, from leaving out one person at a time (the jackknife), by Student's t
    on the scale log(G / (1 - G)).

    Simulated coverage, 10 to 100 people with 5 reconstructions each: 92% to 99%, where percentiles of a bootstrap cover
    86% to 97%. NaN where the spread says nothing: fewer than three people, all rates equal, or only one person hit.
    """
    c = len(rates)
    value = float(gini(rates)) if c > 2 else math.nan
    if not 0 < value < 1:
        return math.nan, math.nan
    x = rates.double().sort().values
    place, whole, below = torch.arange(1, c + 1, dtype=torch.float64), x.sum(), x.cumsum(0)
    apart = (2 * place - c) * x + whole - 2 * below  # sum_j |x_k - x_j|, what leaving out k takes from all pairs
    each = (value * (c - 1) * whole - apart) / ((c - 2) * (whole - x))
    error = math.sqrt((c - 1) / c * float((each - each.mean()).square().sum()))
    half = float(stdtrit(c - 1, 0.975)) * error / (value * (1 - value))
    centre = float(logit(value))
    return float(expit(centre - half)), float(expit(centre + half))


def gini_by_luck(rate: float, n: int) -> float:
    """Gini coefficient expected of hit rates over n reconstructions each, were everybody hit with the same probability.

    E|X - Y| / (2 E X) = sum_k F(k) (1 - F(k)) / (n rate),   X and Y binomial (n, rate) with the distribution F
    """
    if rate <= 0:
        return math.nan
    below = binom.cdf(range(n), n, rate)
    return float((below * (1 - below)).sum() / (n * rate))


def numbered(label: int) -> str:
    """What stands for a person's name in a report that is handed on."""
    return f"identity {label}"


# --- rows -----------------------------------------------------------------------------------------------------------


def leakage(found: list[Scored], table: pd.DataFrame, names: bool = True) -> Leakage:
    """Every person, target and group of every protocol; people are numbered where `names` are not to be shown.

    `people`: hits of n reconstructions, `nearest` (squared distance of the nearest reconstruction to a private image of
    the person, in the headline model's features), mean confidence of the target; `rank` by hit rate, equal rates by
    distance; `distance_rank` by distance alone. Worst first.
    """
    runs = {one.run.id: one for one in found}
    people, targets, groups = [], [], []
    for group in protocols(table):
        attacks = group[group["role"] == "attack"]
        if attacks.empty:
            continue
        own: list[dict[str, Any]] = []
        for row in tables.rows(tables.strongest(group)):
            name = evaluators(group)[0]
            persons = _persons(runs[row["score"]], name)
            about = {"protocol": row["protocol"], "defense": row["target_label"], "attack": row["attack_label"]}
            members = _members(runs[row["score"]])
            persons["group"] = [members.get(one, "") for one in persons["identity"]]
            if not names:
                persons["identity"] = [numbered(label) for label in persons["label"]]
            people.append(persons.assign(**about)[PEOPLE])
            targets.append(about | interval_of(row, f"open_top1@{name}") | _inequality(persons))
            own += _by_group(about, runs[row["score"]], name, members)
        groups += _with_adjusted(own)
    return Leakage(
        pd.concat(people, ignore_index=True) if people else pd.DataFrame(), pd.DataFrame(targets), pd.DataFrame(groups)
    )


def interval_of(row: Row, key: str) -> dict[str, Any]:
    """The headline number of a row with its bounds, as `rate`."""
    name, _, model = key.partition("@")
    return {f"rate{end}": row[f"{name}{end}@{model}"] for end in ("", "_low", "_high")}


def _members(one: Scored) -> dict[str, str]:
    """Identity -> group, from the card that the target's training wrote down; empty without groups."""
    if not (one.target.path / "data.json").is_file():
        return {}
    found = one.target.read("data.json").get("groups")
    return {str(name): str(group) for name, group in found.items()} if isinstance(found, Mapping) else {}


def _persons(one: Scored, name: str) -> pd.DataFrame:
    """One row per attacked person, worst first."""
    rows = one.per_image.sort_values("label", kind="stable")
    labels, starts, n = np.unique(rows["label"].to_numpy(), return_index=True, return_counts=True)

    def column(key: str) -> NDArray[np.float64]:
        unknown = np.full(len(rows), math.nan)
        return rows[key].to_numpy(dtype="float64") if key in rows else unknown

    hits = np.add.reduceat((rows[f"open_top1@{name}"] == 1).to_numpy().astype("int64"), starts)
    persons = pd.DataFrame(
        {
            "label": labels,
            "identity": rows["identity"].to_numpy()[starts],
            "hits": hits,
            "n": n,
            "rate": hits / n,
            "nearest": np.minimum.reduceat(column(f"knn_train@{name}"), starts),
            "target_confidence": np.add.reduceat(column("target_confidence"), starts) / n,
        }
    )
    persons["distance_rank"] = persons["nearest"].rank(method="min").astype("Int64")
    persons = persons.sort_values(["rate", "nearest", "label"], ascending=[False, True, True], kind="stable")
    persons.insert(0, "rank", range(1, len(persons) + 1))
    return persons.reset_index(drop=True)


def _inequality(persons: pd.DataFrame) -> dict[str, Any]:
    rates, sizes = torch.tensor(persons["rate"].to_numpy(dtype="float64")), persons["n"]
    low, high = gini_interval(rates)
    alike = gini_by_luck(float(rates.mean()), int(sizes.iloc[0])) if sizes.nunique() == 1 else math.nan
    line: dict[str, Any] = {
        "identities": len(persons),
        "gini": float(gini(rates)) if len(rates) > 1 else math.nan,
        "gini_low": low,
        "gini_high": high,
        "gini_by_luck": alike,
    }
    for name, share in (("never", rates == 0), ("always", rates == 1)):
        known = proportion(share, torch.arange(len(rates)))
        line |= {name: known.value, f"{name}_low": known.low, f"{name}_high": known.high}
    return line


def _by_group(about: dict[str, Any], one: Scored, name: str, members: Mapping[str, str]) -> list[dict[str, Any]]:
    """Hit rates of the groups, highest first; nothing unless two groups were attacked."""
    rows = one.per_image.assign(group=[members.get(who, "") for who in one.per_image["identity"]])
    rows = rows[rows["group"] != ""]
    names = sorted(set(rows["group"]))
    if len(names) < 2:
        return []
    hits, labels = torch.tensor(rows[f"open_top1@{name}"].to_numpy() == 1), torch.tensor(rows["label"].to_numpy())
    kinds = torch.tensor([names.index(each) for each in rows["group"]])
    found = [(each, proportion(hits[kinds == place], labels[kinds == place])) for place, each in enumerate(names)]
    found.sort(key=lambda pair: -pair[1].value)
    gap = {
        "gap": found[0][1].value - found[-1][1].value,
        "gap_most": found[0][0],
        "gap_least": found[-1][0],
        "gap_p": gap_test(hits, labels, kinds),
    }
    return [
        about
        | {
            "group": each,
            "identities": known.clusters,
            "n": known.n,
            "rate": known.value,
            "rate_low": known.low,
            "rate_high": known.high,
        }
        | gap
        for each, known in found
    ]


def _with_adjusted(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Holm's correction over the targets of a protocol."""
    each = {line["defense"]: line["gap_p"] for line in lines}
    raised = adjusted(torch.tensor(list(each.values()), dtype=torch.float64)).tolist()
    known = dict(zip(each, raised, strict=True))
    return [line | {"gap_p_adjusted": known[line["defense"]]} for line in lines]


# --- tables ---------------------------------------------------------------------------------------------------------


def _short(text: str, digits: int) -> str:
    """A name as a terminal (digits 0) can show it."""
    return text if digits or len(text) <= 24 else f"{text[:23]}…"


def _first(rows: pd.DataFrame, name: str) -> Any:
    """A cell that shows what is new in a column of targets, and nothing where it repeats."""
    opened = set(rows.index[rows["defense"] != rows["defense"].shift()])
    return lambda row, digits: row[name] if row.name in opened else ""


def _people(rows: pd.DataFrame) -> list[Column]:
    shown = [
        Column("", "defense", _first(rows, "defense"), left=True),
        Column("", "attack", _first(rows, "attack"), drop=1, left=True),
        Column("", "person", lambda row, digits: _short(str(row["identity"]), digits), left=True),
        Column("", "hits", lambda row, digits: f"{row['hits']} of {row['n']}"),
        Column("nearest", "private", lambda row, digits: amount(row["nearest"]), drop=3),
        Column("target", "confidence", lambda row, digits: percent(row["target_confidence"]), drop=2),
    ]
    if rows["group"].any():
        shown.insert(3, Column("", "group", lambda row, digits: _short(row["group"], digits), drop=4, left=True))
    return shown


def _targets(rows: pd.DataFrame) -> list[Column]:
    def rate(name: str) -> Any:
        return lambda row, digits: interval(row, name, digits)

    def coefficient(row: Row, digits: int) -> str:
        text = _coefficient(row["gini"])
        return (
            text
            if missing(row["gini_low"])
            else (f"{text} [{_coefficient(row['gini_low'])},{_coefficient(row['gini_high'])}]")
        )

    return [
        Column("", "defense", lambda row, digits: row["defense"], left=True),
        Column("", "attack", lambda row, digits: row["attack"], drop=1, left=True),
        Column("attack", "accuracy", rate("rate"), drop=3),
        Column("Gini of", "hit rates", coefficient),
        Column("Gini", "by luck", lambda row, digits: _coefficient(row["gini_by_luck"]), drop=2),
        Column("people", "never hit", rate("never")),
        Column("people", "always hit", rate("always")),
    ]


def _coefficient(value: Any) -> str:
    return "" if missing(value) else f"{value:.2f}"


def _groups(rows: pd.DataFrame) -> list[Column]:
    gap, p = _first(rows, "gap"), _first(rows, "gap_p_adjusted")

    def points(row: Row, digits: int) -> str:
        value = gap(row, digits)
        return "" if value == "" else f"{100 * value:.1f}"

    def adjusted_p(row: Row, digits: int) -> str:
        value = p(row, digits)
        return "" if value == "" else probability(value)

    return [
        Column("", "defense", _first(rows, "defense"), left=True),
        Column("", "attack", _first(rows, "attack"), drop=1, left=True),
        Column("", "group", lambda row, digits: _short(row["group"], digits), left=True),
        Column("", "people", lambda row, digits: f"{row['identities']}", drop=2),
        Column("attack", "accuracy", lambda row, digits: interval(row, "rate", digits)),
        Column("largest", "gap", points),
        Column("Holm", "p", adjusted_p, drop=3),
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
            _people(worst),
            [
                f"{whom} of each target that its strongest attack hit most often, equal ones by distance; leakage.csv "
                "has everybody. nearest private = squared L2 of the nearest "
                f"reconstruction to a private image of the person, in {evaluators(group)[0]}'s features; lower leaks "
                "more. target confidence: mean over the person's reconstructions, in %."
            ],
        )
        yield Section(
            f"How unequally people leak, {about}",
            targets,
            _targets(targets),
            [
                "Gini of hit rates over people [95% interval over identities]: 0 everybody is hit alike, 1 one person "
                "has all hits; by luck = what so few reconstructions each would give if everybody were hit with the "
                "same probability. Never and always hit: % of the attacked people [95% interval]."
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
                    "Attack accuracy of each group, the strongest attack, in % [95% interval, clustered by identity]. "
                    "largest gap: highest minus lowest, in points; p that memberships shuffled among the people give "
                    f"one as large, Holm's correction over the targets.{left}"
                ],
            )


def _of(part: pd.DataFrame, protocol: str) -> pd.DataFrame:
    return part[part["protocol"] == protocol].reset_index(drop=True) if len(part) else part
