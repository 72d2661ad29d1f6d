"""What each defense changes: paired differences, their tests, and how many identities and seeds they take."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mibench.report.collect import Scored
from mibench.report.tables import (
    BEST,
    CLEAR,
    LEVEL,
    Column,
    Row,
    Section,
    missing,
    percent,
    probability,
    protocols,
    rows,
    signed,
    strongest,
    title,
)
from mibench.runs import canonical
from mibench.stats import power
from mibench.stats.intervals import paired_interval
from mibench.stats.significance import adjusted, least_p, paired_test

__all__ = ["COLUMNS", "differences", "notes", "sections"]


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
        attacks = group[group["role"] == "attack"]
        judged = {row["target"]: row for row in rows(strongest(group))}
        twins: dict[tuple[str, str], Row] = {}
        for row in rows(attacks[attacks["defense"] == "none"]):
            twins.setdefault((row["attack"], runs[row["score"]].recipe), row)
        defended: dict[str, list[Row]] = defaultdict(list)
        for row in rows(attacks[attacks["defense"] != "none"]):
            defended[row["target"]].append(row)
        for target, mine in defended.items():
            top = judged[target]
            keyed = [(row, (row["attack"], runs[row["score"]].recipe)) for row in mine]
            own = [(row, twins[key]) for row, key in keyed if key in twins]
            if not own:
                continue
            rival = judged[own[0][1]["target"]]
            alike = rival["attack_label"] == top["attack_label"]
            pairs += [(row, base, {"judged_by": alike and row["score"] == top["score"]}) for row, base in own]
            if not alike:
                pairs.append((top, rival, {"judged_by": True, "attack": "strongest"}))
        if pairs:
            parts.append(_compared(runs, pairs))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _compared(runs: Mapping[str, Scored], pairs: list[tuple[Row, Row, dict[str, Any]]]) -> pd.DataFrame:
    """The rows of one protocol: each difference, then what depends on the others."""
    lines = [_difference(runs, row, base) | more for row, base, more in pairs]
    repeats: dict[str, dict[int, dict[int, float]]] = defaultdict(dict)
    owners = []
    for row, base, more in pairs:
        one, other = runs[row["score"]], runs[base["score"]]
        owners.append(canonical([_seedless(one), _seedless(other), more.get("attack", "")]))
        a, b, names = _people(one, other)
        each = dict(zip(names.tolist(), (a - b).tolist(), strict=True))
        repeats[owners[-1]].setdefault(one.target.spec["seed"], each)
    raised = adjusted(torch.tensor([line["p"] for line in lines], dtype=torch.float64)).tolist()
    for line, p, owner in zip(lines, raised, owners, strict=True):
        line["p_adjusted"] = p
        clear = p < CLEAR and line["difference"] != 0
        line["verdict"] = ("lower" if line["difference"] < 0 else "higher") if clear else "no clear difference"
        every = repeats[owner].values()
        people = sorted(set.intersection(*(set(each) for each in every)))
        seeds = torch.tensor([[each[who] for who in people] for each in every], dtype=torch.float64)
        known = power.components(seeds)
        line["seeds"] = len(seeds)
        line["seeds_needed"] = power.seeds_needed(known, float(seeds.mean())) if known else math.nan
    return pd.DataFrame(lines)


def _seedless(one: Scored) -> list[Any]:
    """What repeats of one experiment share."""
    specs = (one.target.spec, *one.made_by)
    return [{key: value for key, value in spec.items() if key != "seed"} for spec in specs]


def _paired(one: Scored, other: Scored) -> tuple[Tensor, Tensor, Tensor]:
    """Headline hits of both, paired, and the identities: image by image where both made the same number of each person,
    else person by person."""
    if torch.equal(one.hits.labels, other.hits.labels):
        return one.hits.hits, other.hits.hits, one.hits.labels
    return _people(one, other)


def _people(one: Scored, other: Scored) -> tuple[Tensor, Tensor, Tensor]:
    """Both means of each identity that both have, and the identities."""
    (names, a), (others, b) = one.by_identity, other.by_identity
    shared = names[torch.isin(names, others)]
    return a[torch.searchsorted(names, shared)], b[torch.searchsorted(others, shared)], shared


def _difference(runs: Mapping[str, Scored], row: Row, base: Row) -> dict[str, Any]:
    one, other = runs[row["score"]], runs[base["score"]]
    column = f"open_top1@{one.names[0]}"
    a, b, labels = _paired(one, other)
    found = paired_interval(a, b, labels)
    sd = power.spread(*_people(one, other)[:2])
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
        "p": paired_test(a, b, labels).p,
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


def _span(row: Row, digits: int) -> str:
    if missing(row["difference_low"]):
        return signed(row["difference"])
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    return f"{signed(row['difference'])} [{low:+.{digits}f},{high:+.{digits}f}]"


def _attacked(row: Row, digits: int) -> str:
    if row["attack"] == "strongest":
        return f"{row['attack_with']} vs {row['attack_without']} {BEST}"
    return f"{row['attack']} {BEST if row['judged_by'] else ''}".strip()


COLUMNS = [
    Column("", "defense", lambda row, digits: row["defense"], left=True),
    Column("", "attack", _attacked, left=True),
    Column("open-set", "none", lambda row, digits: percent(row["without"]), drop=2),
    Column("open-set", "defended", lambda row, digits: percent(row["with"]), drop=2),
    Column("difference", "in points", _span),
    Column("Holm", "p", lambda row, digits: probability(row["p_adjusted"]), drop=1),
    Column("attack accuracy", "is", lambda row, digits: row["verdict"], left=True),
    Column("natural", "accuracy", lambda row, digits: signed(row["natural_accuracy_difference"])),
]


def notes(pairs: pd.DataFrame) -> list[str]:
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
    by_size = sorted(rows(claimed if len(claimed) else pairs), key=lambda row: abs(row["difference"]))
    shown = {"only": by_size[0]} if len(by_size) == 1 else {"smallest": by_size[0], "largest": by_size[-1]}
    if not len(claimed):
        shown = {"largest": by_size[-1]}
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


def _needs(row: Row) -> str:
    """`(re a_e=0.4, ppa: -12.0 points) takes 34 identities of the 20 attacked, 3 seeds`."""
    whom = f"({row['defense']}, {_attacked(row, 1).removesuffix(BEST).strip()}: {signed(row['difference'])} points)"
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


def sections(group: pd.DataFrame, compared: pd.DataFrame) -> Iterator[Section]:
    """The table of a protocol, if there is anything to compare."""
    pairs = compared[compared["protocol"] == group["protocol"].iloc[0]] if len(compared) else compared
    if len(pairs):
        own = pairs.reset_index(drop=True)
        yield Section(f"What each defense changes, {title(group)}", own, COLUMNS, notes(own))
