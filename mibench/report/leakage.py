"""Who leaks: the people a target gives away most, how unequally it leaks, and whether groups of people fare alike.

An average hides that one person may be reconstructed every time. Each target is judged by its strongest attack in the
headline, likeness, chosen on one half of the people and counted on the other (`stats.strongest`), as in the tables.

With few reconstructions of each person some are hit more often than others by luck alone. The Gini coefficient that
luck gives is shown beside the one found.

References:
    | Variabilità e mutabilità (Gini, 1912), the coefficient
    | https://en.wikipedia.org/wiki/Gini_coefficient
    | The Jackknife, the Bootstrap and Other Resampling Plans (Efron, 1982)
    | https://doi.org/10.1137/1.9781611970319
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit
from scipy.stats import binom
from torch import Tensor

from mibench.report import rows, tables
from mibench.report.pairing import Attacked, holm
from mibench.report.result import Result
from mibench.report.tables import HEADLINE, evaluators, protocols
from mibench.runtime import escape
from mibench.stats.intervals import proportion
from mibench.stats.significance import gap_test

__all__ = ["Leakage", "gini", "gini_by_luck", "gini_interval", "leakage", "numbered"]

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
    86% to 97%. NaN where the spread says nothing: fewer than three people, all rates equal, only one person hit, or
    everybody's absence changes it alike.
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
    if error < 1e-12:
        return math.nan, math.nan
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


def leakage(results: list[Result], table: pd.DataFrame, names: bool = True) -> Leakage:
    """Every person, target and group of every protocol; people are numbered where `names` are not to be shown.

    `people`: hits of n reconstructions, `nearest` (squared distance of the nearest reconstruction to a private image of
    the person, in the headline model's features), mean confidence of the target; `rank` by hit rate, equal rates by
    distance; `distance_rank` by distance alone. Worst first.
    """
    runs = {result.run.id: result for result in results}
    people, targets, groups = [], [], []
    for group in protocols(table):
        attacks = group[group["role"] == "attack"]
        if attacks.empty:
            continue
        own: list[dict[str, Any]] = []
        name = evaluators(group)[0]
        by_target: dict[str, list[tables.Row]] = defaultdict(list)
        for row in tables.rows(attacks[["protocol", "target", "target_label", "attack_label", "score"]]):
            by_target[row["target"]].append(row)
        for rivals in by_target.values():
            row = rivals[0]
            best = Attacked.strongest([Attacked.of(each["attack_label"], [runs[each["score"]]]) for each in rivals])
            images = _images(best)
            persons = _persons(images, name)
            about = {"protocol": row["protocol"], "defense": row["target_label"], "attack": best.attack}
            members = _members(best.results[0])
            persons["group"] = [members.get(one, "") for one in persons["identity"]]
            if not names:
                persons["identity"] = [numbered(label) for label in persons["label"]]
            people.append(persons.assign(**about)[PEOPLE])
            targets.append(about | rows.bounds("rate", best.rate) | _inequality(persons))
            own += _by_group(about, images, members)
        groups += _with_adjusted(own)
    return Leakage(
        pd.concat(people, ignore_index=True) if people else pd.DataFrame(), pd.DataFrame(targets), pd.DataFrame(groups)
    )


def _images(best: Attacked) -> pd.DataFrame:
    """The rows of per_image.csv that count."""
    parts = []
    for result, own in best.parts:
        images = pd.DataFrame({"identity": result.identities, **result.columns})
        parts.append(images if own is None else images[images["label"].isin(own.tolist())])
    return pd.concat(parts, ignore_index=True)


def _members(result: Result) -> dict[str, str]:
    """Identity, as per_image.csv calls it, -> group, from the card of the target's data; empty without groups."""
    if not (result.target.path / "data.json").is_file():
        return {}
    groups = result.target.read("data.json").get("groups")
    return {escape.csv(str(name)): str(group) for name, group in groups.items()} if isinstance(groups, Mapping) else {}


def _persons(images: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row per attacked person, worst first."""
    images = images.sort_values("label", kind="stable")
    labels, starts, n = np.unique(images["label"].to_numpy(), return_index=True, return_counts=True)

    def column(key: str) -> NDArray[np.float64]:
        unknown = np.full(len(images), math.nan)
        return images[key].to_numpy(dtype="float64") if key in images else unknown

    hits = np.add.reduceat((images[HEADLINE] == 1).to_numpy().astype("int64"), starts)
    persons = pd.DataFrame(
        {
            "label": labels,
            "identity": images["identity"].to_numpy()[starts],
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
        line |= rows.bounds(name, known)
    return line


def _by_group(about: dict[str, Any], images: pd.DataFrame, members: Mapping[str, str]) -> list[dict[str, Any]]:
    """Hit rates of the groups, highest first; nothing unless two groups were attacked."""
    images = images.assign(group=[members.get(who, "") for who in images["identity"]])
    images = images[images["group"] != ""]
    names = sorted(set(images["group"]))
    if len(names) < 2:
        return []
    hits, labels = torch.tensor(images[HEADLINE].to_numpy() == 1), torch.tensor(images["label"].to_numpy())
    kinds = torch.tensor([names.index(each) for each in images["group"]])
    rates = [(each, proportion(hits[kinds == place], labels[kinds == place])) for place, each in enumerate(names)]
    rates.sort(key=lambda pair: -pair[1].value)
    gap = {
        "gap": rates[0][1].value - rates[-1][1].value,
        "gap_most": rates[0][0],
        "gap_least": rates[-1][0],
        "gap_p": gap_test(hits, labels, kinds),
    }
    return [
        about | {"group": each, "identities": known.clusters, "n": known.n} | rows.bounds("rate", known) | gap
        for each, known in rates
    ]


def _with_adjusted(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Holm's correction over the targets of a protocol."""
    each = {line["defense"]: line["gap_p"] for line in lines}
    known = dict(zip(each, holm(pd.Series(list(each.values()), dtype="float64")), strict=True))
    return [line | {"gap_p_adjusted": known[line["defense"]]} for line in lines]
