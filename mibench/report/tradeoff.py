"""Privacy against utility: what each defense prevents, beside what it costs.

A *point* is a defense at one strength: its targets of all seeds together, each access with its strongest attack. A
*curve* is the points of one defense over its strengths, with no defense as strength zero.

Attack accuracy is open-set top-1 of the headline evaluation model; utility is natural accuracy. Intervals resample
identities, of all seeds together: they say how other people would have fared, while the spread over seeds is shown as
such. Which attack is strongest is chosen by the same numbers that are shown, so that a defense under many attacks looks
a little worse than one under few.

References:
    | On the Vulnerability of Skip Connections to Model Inversion Attacks (Koh et al., ECCV 2024), the trade-off Delta
    | https://arxiv.org/abs/2409.01696
    | Multiobjective evolutionary algorithms: a comparative case study (Zitzler and Thiele, 1999), the hypervolume
    | https://doi.org/10.1109/4235.797969
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from mibench.evaluation.checks import Evidence, Finding, check
from mibench.plugins import registry
from mibench.report.collect import Scored, settings_text
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.stages import artifacts
from mibench.stats.intervals import Interval, drawn, expanded, paired_interval, proportion
from mibench.stats.significance import adjusted, paired_test

__all__ = ["ACCESSES", "Curve", "Point", "curves", "findings", "frame", "matched", "pareto", "points", "summary"]

ACCESSES = ("white_box", "black_box", "label_only")
BELOW = (0.02, 0.05, 0.1)
"""At how much less natural accuracy than the undefended target's attack accuracies are compared."""

LEAST = 0.005
"""Accuracies that differ by less are equal: the field's Delta divides by their difference."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Judged:
    """One attack on a point: hits of the headline evaluation model, one row per reconstruction of any seed."""

    attack: str
    hits: Tensor
    labels: Tensor
    seeds: Tensor

    @cached_property
    def rate(self) -> Interval:
        """Attack accuracy, clustered by identity."""
        return proportion(self.hits, self.labels)

    @cached_property
    def means(self) -> pd.Series:
        """Share of hits of each identity under each seed."""
        flat = {"seed": self.seeds.numpy(), "identity": self.labels.numpy(), "hits": self.hits.double().numpy()}
        return pd.DataFrame(flat).groupby(["seed", "identity"])["hits"].mean()


@dataclass(frozen=True)
class Point:
    """A defense at one strength, its targets of all seeds together.

    Args:
        protocol: Rows that share it are comparable.
        base: The network, what it starts from and how it is trained: what an undefended twin shares.
        defense: The stack and its settings but the strength; `none` is the undefended target.
        label: The same with the strength.
        strength: The value of the swept field; NaN if there is none.
        targets: One for each seed.
        attacks: Access -> the strongest attack of that access.
        heldout: Hits and labels of the held-out images, all seeds; older targets have none.
    """

    protocol: str
    base: str
    defense: str
    label: str
    strength: float
    targets: tuple[Run, ...]
    attacks: Mapping[str, Judged]
    heldout: tuple[Tensor, Tensor] | None

    @property
    def defended(self) -> bool:
        """Whether there is any defense."""
        return self.defense != "none"

    @cached_property
    def natural(self) -> Interval:
        """Natural accuracy; without the single verdicts (older targets) only the mean of the seeds."""
        if self.heldout is not None:
            return proportion(*self.heldout)
        found = [run.read("metrics.json")["natural_accuracy"] for run in self.targets]
        mean = fmean(one["value"] for one in found)
        known = len(found) == 1
        low, high = (found[0]["low"], found[0]["high"]) if known else (math.nan, math.nan)
        return Interval(mean, low, high, sum(one["n"] for one in found), found[0]["clusters"])

    @cached_property
    def spread(self) -> tuple[float, float]:
        """Least and greatest natural accuracy of a seed."""
        values = [run.read("metrics.json")["natural_accuracy"]["value"] for run in self.targets]
        return min(values), max(values)

    @property
    def strongest(self) -> tuple[str, Judged]:
        """The access and the attack that leak most: what the defense is judged by."""
        access = max(self.attacks, key=lambda name: self.attacks[name].rate.value)
        return access, self.attacks[access]


# --- points ---------------------------------------------------------------------------------------------------------


def _strength(spec: Mapping[str, Any]) -> tuple[str, float]:
    """What a stack is called without its strength, and the strength of its first defense."""
    names, strength = [], math.nan
    for place, item in enumerate(spec["defenses"]):
        name, settings = item["name"], dict(item["settings"])
        try:
            swept = registry.card("defenses", name).get("strength")
        except UserError:
            swept = None
        if place == 0 and swept in settings and isinstance(settings[swept], int | float):
            strength = float(settings.pop(swept))
        names.append(" ".join(part for part in (name, settings_text("defenses", name, settings)) if part))
    return " + ".join(names) or "none", strength


def points(found: Iterable[Scored], table: pd.DataFrame) -> list[Point]:
    """Every defended and undefended configuration that attacks were run on, in the order of the table."""
    runs = {one.run.id: one for one in found}
    attacks = table[table["role"] == "attack"] if len(table) else table
    groups: dict[tuple[str, str, str], list[Scored]] = defaultdict(list)
    labels: dict[tuple[str, str, str], str] = {}
    for row in attacks.to_dict("records"):
        one = runs[row["score"]]
        base = " ".join(part for part in (row["model"], row["start"], row["training"]) if part)
        key = (row["protocol"], base, row["defense"])
        groups[key].append(one)
        labels[key] = row["defense"] if not row["start"] else f"{row['defense']} ({row['start']})"
    return [_point(key, labels[key], ones) for key, ones in groups.items()]


def _point(key: tuple[str, str, str], label: str, ones: list[Scored]) -> Point:
    protocol, base, _ = key
    targets = {one.target.id: one.target for one in ones}
    by_attack: dict[str, dict[str, dict[str, Scored]]] = defaultdict(lambda: defaultdict(dict))
    for one in ones:
        spec = one.inversion.spec["attack"]
        name = " ".join(part for part in (spec["name"], _informed(one)) if part)
        known = by_attack[one.inversion.spec["access"]][name]
        known.setdefault(one.target.id, one)
    chosen: dict[str, Judged] = {}
    for access in ACCESSES:
        # An attack counts where it was run on every seed, so that none is judged by its luckiest target.
        whole = {name: runs for name, runs in by_attack.get(access, {}).items() if len(runs) == len(targets)}
        judged = [_judged(name, list(runs.values())) for name, runs in whole.items()]
        if judged:
            chosen[access] = max(judged, key=lambda one: one.rate.value)
    defense, strength = _strength(next(iter(targets.values())).spec)
    runs = tuple(targets.values())
    return Point(protocol, base, defense, label, strength, runs, chosen, _heldout(runs))


def _informed(one: Scored) -> str:
    """What was changed of an attack because of the target's defenses."""
    settings = one.inversion.spec["attack"]["settings"]
    said = []
    for item in one.target.spec["defenses"]:
        try:
            changes = registry.card("defenses", item["name"]).get("adaptive", {})
        except UserError:
            continue
        for change in changes:
            key, equals, value = change.partition("=")
            if equals and not key.startswith("+") and str(settings.get(key)) == value:
                said.append(change)
    return " ".join(dict.fromkeys(said))


def _judged(name: str, ones: list[Scored]) -> Judged:
    hits, labels, seeds = [], [], []
    for one in ones:
        hits.append(one.hits.hits)
        labels.append(one.hits.labels)
        seeds.append(torch.full((len(one.hits.hits),), int(one.target.spec["seed"])))
    return Judged(name, torch.cat(hits), torch.cat(labels), torch.cat(seeds))


def _heldout(targets: Iterable[Run]) -> tuple[Tensor, Tensor] | None:
    hits, labels = [], []
    for run in targets:
        path = run.path / "heldout.safetensors"
        if not path.is_file():
            return None
        tensors, _ = artifacts.read_tensors(path, "held-out verdicts")
        hits.append(tensors["hits"].bool())
        labels.append(tensors["labels"])
    return torch.cat(hits), torch.cat(labels)


def paired(one: Judged, other: Judged) -> Interval | None:
    """Attack accuracy of one minus the other's, paired over the identities and seeds both have; None if none."""
    sides = _shared(one, other)
    return None if sides is None else paired_interval(*sides)


def tested(one: Judged, other: Judged) -> float:
    """p-value of `paired`'s difference: a sign-flip test over identities, all seeds together; NaN if none is shared."""
    sides = _shared(one, other)
    return math.nan if sides is None else paired_test(*sides).p


def _shared(one: Judged, other: Judged) -> tuple[Tensor, Tensor, Tensor] | None:
    """Means of both for each (seed, identity) that both have, and the identities."""
    shared = one.means.index.intersection(other.means.index).sort_values()
    if not len(shared):
        return None
    a, b = (torch.tensor(side.means[shared].to_numpy()) for side in (one, other))
    return a, b, torch.tensor(shared.get_level_values("identity").to_numpy())


def bare(point: Point, among: Iterable[Point]) -> Point | None:
    """The undefended twin: same protocol, network, start and training."""
    return next(
        (one for one in among if not one.defended and (one.protocol, one.base) == (point.protocol, point.base)), None
    )


# --- curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One defense over its strengths under one access; the undefended point is part of it, if it was measured."""

    defense: str
    access: str
    points: tuple[Point, ...]

    def place(self, point: Point) -> tuple[float, float]:
        """(natural accuracy, attack accuracy) of a point."""
        return point.natural.value, point.attacks[self.access].rate.value

    def xy(self) -> list[tuple[float, float]]:
        """Every point's place, by rising natural accuracy."""
        return sorted(map(self.place, self.points))


def curves(found: list[Point], access: str) -> list[Curve]:
    """Every defense's curve, in the order of the points; `strongest` takes each point's strongest attack."""
    groups: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for one in found:
        if access in one.attacks:
            groups[one.protocol, one.base, one.defense].append(one)
    lines = []
    for (_, _, defense), own in groups.items():
        if defense == "none":
            continue
        none = bare(own[0], [one for one in found if access in one.attacks])
        lines.append(Curve(defense, access, tuple([none, *own] if none else own)))
    return lines


def pareto(found: list[Point], access: str) -> list[Point]:
    """The points that no other beats in both: natural accuracy at least as high, attack accuracy at least as low."""
    known = [one for one in found if access in one.attacks]
    place = {id(one): (one.natural.value, one.attacks[access].rate.value) for one in known}

    def beaten(one: Point) -> bool:
        x, y = place[id(one)]
        others = [place[id(other)] for other in known if other.protocol == one.protocol]
        return any(a >= x and b <= y and (a, b) != (x, y) for a, b in others)

    return [one for one in known if not beaten(one)]


def hypervolume(xy: Iterable[tuple[float, float]]) -> float:
    """Area of {(u, p)} that some point reaches: u <= its natural accuracy, p <= 1 - its attack accuracy; in [0, 1].

    The reference point is (0, 0): no utility, everything leaks.
    """
    area, best = 0.0, 0.0
    # From the most useful down: each adds a strip as wide as its utility for the privacy that is new.
    for natural, attack in sorted(xy, key=lambda pair: (-pair[0], pair[1])):
        if 1 - attack > best:
            area += natural * (1 - attack - best)
            best = 1 - attack
    return area


def matched(curve: Curve, natural: float) -> Interval | None:
    """Attack accuracy at a given natural accuracy, linear between the two nearest points; None beyond the curve's ends.

    Identities are resampled for all points together; the natural accuracies move with them where both are of the same
    identities.
    """
    xy = curve.xy()
    if len(xy) < 2 or not xy[0][0] <= natural <= xy[-1][0]:
        return None
    whole = torch.tensor(list(zip(*xy, strict=True)), dtype=torch.float64)
    value = float(_interpolated(whole[0][None], whole[1][None], natural))
    found = _resampled(curve)
    if found is None:
        return Interval(value, math.nan, math.nan, 0, 0)
    attack, own, people = found
    order = own.argsort(dim=1)
    each = _interpolated(own.gather(1, order), attack.gather(1, order), natural)
    low, high = expanded(each, people)
    n = sum(len(one.attacks[curve.access].hits) for one in curve.points)
    return Interval(value, min(low, value), max(high, value), n, people)


def _interpolated(x: Float64[Tensor, "r p"], y: Float64[Tensor, "r p"], at: float) -> Float64[Tensor, " r"]:
    """Rows of points with rising x; a row that ends before `at` (a resampled curve) is continued by its end."""
    right = torch.searchsorted(x, torch.full((len(x), 1), at, dtype=torch.float64)).clamp(1, x.shape[1] - 1)
    x0, x1, y0, y1 = x.gather(1, right - 1), x.gather(1, right), y.gather(1, right - 1), y.gather(1, right)
    share = ((at - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
    return (y0 + share * (y1 - y0))[:, 0]


def _resampled(curve: Curve) -> tuple[Float64[Tensor, "r p"], Float64[Tensor, "r p"], int] | None:
    """Attack and natural accuracy of each point, over resampled identities."""
    judged = [one.attacks[curve.access] for one in curve.points]
    served = [one.heldout for one in curve.points if one.heldout is not None]
    people = judged[0].labels.unique()
    if len(served) < len(curve.points) or len(people) < 2:
        return None
    weight = drawn(len(people), RESAMPLES)

    def means(hits: Tensor, labels: Tensor) -> Tensor:
        index = torch.searchsorted(people, labels)
        inside = (index < len(people)) & (people[index.clamp(max=len(people) - 1)] == labels)
        zero = torch.zeros(len(people), dtype=torch.float64)
        total = zero.index_add(0, index[inside], hits[inside].double())
        count = zero.index_add(0, index[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
        rest = hits[~inside].double()  # held-out images of people who were not attacked stay as they are
        return (weight @ total + rest.sum()) / (weight @ count + len(rest))

    attack = torch.stack([means(one.hits, one.labels) for one in judged], dim=1)
    natural = torch.stack([means(*one) for one in served], dim=1)
    return attack, natural, len(people)


# --- tables ---------------------------------------------------------------------------------------------------------


def _flat(name: str, found: Interval | None) -> dict[str, Any]:
    value = found or Interval(math.nan, math.nan, math.nan, 0, 0)
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def frame(found: list[Point]) -> pd.DataFrame:
    """One row per point: natural accuracy, the strongest attack of each access, differences to the undefended twin with
    their p-values (also Holm's over the protocol's points of an access), the field's Delta, whether it lies on the
    Pareto front, what it costs besides."""
    fronts = {access: {id(one) for one in pareto(found, access)} for access in ACCESSES}
    lines = []
    for one in found:
        none = bare(one, found)
        line: dict[str, Any] = {
            "protocol": one.protocol,
            "base": one.base,
            "defense": one.label,
            "family": one.defense,
            "strength": one.strength,
            "seeds": len(one.targets),
        }
        line |= _flat("natural_accuracy", one.natural)
        line |= {"natural_least": one.spread[0], "natural_most": one.spread[1]}
        for access in ACCESSES:
            judged = one.attacks.get(access)
            line[f"{access}_attack"] = judged.attack if judged else ""
            line |= _flat(access, judged.rate if judged else None)
            twin = none.attacks.get(access) if none is not None and one.defended else None
            line |= _flat(f"{access}_difference", paired(judged, twin) if judged and twin else None)
            line[f"{access}_p"] = tested(judged, twin) if judged and twin else math.nan
            line[f"{access}_p_adjusted"] = math.nan
            line[f"{access}_delta"] = (
                delta(none, one, access) if none is not None and one.defended and judged and twin else math.nan
            )
            line[f"{access}_pareto"] = id(one) in fronts[access]
        if one.attacks:
            access, judged = one.strongest
            line |= {"judged_by": judged.attack, "judged_access": access} | _flat("judged", judged.rate)
        line |= _side_effects(one, none)
        lines.append(line)
    for access in ACCESSES:
        for protocol in dict.fromkeys(line["protocol"] for line in lines):
            own = [line for line in lines if line["protocol"] == protocol and not math.isnan(line[f"{access}_p"])]
            raised = adjusted(torch.tensor([line[f"{access}_p"] for line in own], dtype=torch.float64))
            for line, p in zip(own, raised.tolist(), strict=True):
                line[f"{access}_p_adjusted"] = p
    return pd.DataFrame(lines)


def delta(none: Point, one: Point, access: str) -> float:
    """The paper's trade-off (AttAcc_none - AttAcc) / (Acc_none - Acc); NaN where the accuracies are equal, negative
    where the defense raises natural accuracy."""
    lost = none.natural.value - one.natural.value
    gained = none.attacks[access].rate.value - one.attacks[access].rate.value
    return gained / lost if abs(lost) >= LEAST else math.nan


def _side_effects(one: Point, none: Point | None) -> dict[str, Any]:
    """Means over the seeds of what the targets' metrics say, and the training time beside the twin's."""
    flat: dict[str, list[float]] = defaultdict(list)
    for run in one.targets:
        metrics = run.read("metrics.json")
        effects = metrics.get("side_effects", {})
        for eps, rate in effects.get("adversarial_accuracy", {}).items():
            flat[f"pgd_{eps}"].append(rate["value"])
        for key in ("ece",):
            if key in effects:
                found = effects[key]
                flat[key].append(found["value"] if isinstance(found, Mapping) else found)
        for report in metrics.get("defense_reports", []):
            for key, value in report.items():
                flat[key].append(value)
    line = {key: fmean(values) for key, values in flat.items()}
    own, others = _seconds(one), _seconds(none) if none is not None else None
    line["training_seconds"] = own if own is not None else math.nan
    line["training_ratio"] = own / others if own is not None and others else math.nan
    return line


def _seconds(point: Point) -> float | None:
    """Mean processor time of a target's training, where it is known."""
    found = [run.read("run.json")["provenance"].get("training_cpu_seconds") for run in point.targets]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def summary(found: list[Point]) -> pd.DataFrame:
    """One row per defense and access: hypervolume, and attack accuracy at natural accuracies that no defense chose."""
    lines = []
    for access in ACCESSES:
        for curve in curves(found, access):
            first = curve.points[0]
            line: dict[str, Any] = {
                "protocol": first.protocol,
                "base": first.base,
                "defense": curve.defense,
                "access": access,
                "points": len(curve.points),
                "hypervolume": hypervolume(curve.xy()),
                "hypervolume_none": math.nan if first.defended else hypervolume([curve.place(first)]),
            }
            for below in BELOW:
                at = math.nan if first.defended else first.natural.value - below
                line |= _flat(f"at_minus_{100 * below:g}", None if math.isnan(at) else matched(curve, at))
            lines.append(line)
    return pd.DataFrame(lines)


def findings(found: list[Point]) -> list[Finding]:
    """What `checks.py` has to say of the points."""
    evidence = []
    for one in found:
        gaps = {}
        for weak in ACCESSES:
            for strong in ACCESSES:
                if ACCESSES.index(weak) > ACCESSES.index(strong) and weak in one.attacks and strong in one.attacks:
                    gap = paired(one.attacks[weak], one.attacks[strong])
                    if gap is not None:
                        gaps[weak, strong] = gap
        effects = tuple(run.read("metrics.json").get("side_effects", {}) for run in one.targets)
        best = {access: (judged.attack, judged.rate) for access, judged in one.attacks.items()}
        evidence.append(Evidence(one.label, best, gaps, effects))
    return check(evidence)
