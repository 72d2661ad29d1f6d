"""Privacy against utility: what each defense prevents, beside what it costs.

References:
    | On the Vulnerability of Skip Connections to Model Inversion Attacks (Koh et al., ECCV 2024), the trade-off Delta
    | https://arxiv.org/abs/2409.01696
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from mibench.core import Access
from mibench.evaluation.checks import Evidence, Finding, check
from mibench.report.curves import pareto
from mibench.report.pairing import compare, holm
from mibench.report.points import Point, undefended
from mibench.report.rows import bounds

__all__ = ["delta", "findings", "frame"]

LEAST = 0.005
"""Accuracies that differ by less are equal: the field's Delta divides by their difference."""


def frame(points: list[Point]) -> pd.DataFrame:
    """One row per point: natural accuracy, the strongest attack of each access, differences to the undefended twin with
    their p-values (also Holm's over the protocol's points of an access), the field's Delta, whether it lies on the
    Pareto front, what it costs besides."""
    fronts = {access: {id(point) for point in pareto(points, access)} for access in Access.strongest_first()}
    lines = []
    for point in points:
        none = undefended(point, points)
        line: dict[str, Any] = {
            "protocol": point.protocol,
            "track": point.track,
            "base": point.base,
            "defense": point.label,
            "family": point.defense,
            "strength": point.strength,
            "seeds": len(point.targets),
            "converged": point.converged,
        }
        line |= bounds("natural_accuracy", point.natural)
        line |= {"natural_least": point.spread[0], "natural_most": point.spread[1]}
        for access, front in fronts.items():
            line |= _against(point, none if point.defended else None, access)
            line[f"{access.key}_pareto"] = id(point) in front
        if point.strongest is not None:
            keys = dict.fromkeys(result.access.key for result in point.strongest.results)
            line |= {"judged_by": point.strongest.attack, "judged_access": " | ".join(keys)}
            line |= bounds("judged", point.strongest.rate)
        lines.append(line | _side_effects(point, none))
    table = pd.DataFrame(lines)
    for access in Access.strongest_first() if lines else ():
        for _, own in table.groupby(["protocol", "track"], sort=False):
            table.loc[own.index, f"{access.key}_p_adjusted"] = holm(own[f"{access.key}_p"])
    return table


def _against(point: Point, twin: Point | None, access: Access) -> dict[str, Any]:
    """The strongest attack of one access, and what it differs by from the twin's."""
    key, attacked = access.key, point.attacks.get(access)
    rival = twin.attacks.get(access) if twin is not None else None
    comparison = compare(attacked, rival) if attacked is not None and rival is not None else None
    line: dict[str, Any] = {f"{key}_attack": attacked.attack if attacked else ""}
    line |= bounds(key, attacked.rate if attacked else None)
    line |= bounds(f"{key}_difference", comparison.interval if comparison else None)
    return line | {
        f"{key}_identical": comparison is not None and comparison.identical,
        f"{key}_p": comparison.p if comparison else math.nan,
        f"{key}_p_adjusted": math.nan,
        f"{key}_delta": delta(twin, point, access) if twin is not None and attacked and rival else math.nan,
    }


def delta(none: Point, point: Point, access: Access) -> float:
    """The papers' trade-off (AttAcc_none - AttAcc) / (Acc_none - Acc); NaN where the accuracies are equal, negative
    where the defense raises natural accuracy."""
    lost = none.natural.value - point.natural.value
    gained = none.attacks[access].rate.value - point.attacks[access].rate.value
    return gained / lost if abs(lost) >= LEAST else math.nan


def _side_effects(point: Point, none: Point | None) -> dict[str, Any]:
    """Means over the seeds of what the targets' metrics say, and the training time beside the twin's."""
    flat: dict[str, list[float]] = defaultdict(list)
    for metrics in point.metrics:
        effects = metrics.get("side_effects", {})
        for eps, robust in effects.get("adversarial_accuracy", {}).items():
            flat[f"pgd_{eps}"].append(robust["value"])
        if "ece" in effects:
            ece = effects["ece"]
            flat["ece"].append(ece["value"] if isinstance(ece, Mapping) else ece)
        if "ood" in effects:
            flat["ood_auroc"].append(effects["ood"]["auroc"])
        for report in metrics.get("defense_reports", []):
            for key, value in report.items():
                flat[key].append(value)
    line = {key: fmean(values) for key, values in flat.items()}
    own, others = _seconds(point), _seconds(none) if none is not None else None
    line["training_seconds"] = own if own is not None else math.nan
    line["training_ratio"] = own / others if own is not None and others else math.nan
    return line


def _seconds(point: Point) -> float | None:
    """Mean processor time of a target's training, where it is known."""
    times = [run.read("run.json")["provenance"].get("training_cpu_seconds") for run in point.targets]
    known = [value for value in times if value is not None]
    return fmean(known) if known else None


def findings(points: list[Point]) -> list[Finding]:
    """What the checks have to say of the points."""
    evidence = []
    for point in points:
        gaps = {}
        for weak, attacked in point.attacks.items():
            for strong, rival in point.attacks.items():
                gap = compare(attacked, rival) if weak < strong else None
                if gap is not None:
                    gaps[weak, strong] = gap.interval
        effects = tuple(metrics.get("side_effects", {}) for metrics in point.metrics)
        best = {access: (attacked.attack, attacked.rate) for access, attacked in point.attacks.items()}
        evidence.append(Evidence(point.label, best, gaps, effects))
    return check(evidence)
