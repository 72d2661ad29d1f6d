"""Configurations: a defense at one strength, its targets of all training seeds together.

Attack accuracy is the headline, likeness; utility is natural accuracy. Intervals resample identities, and training
seeds where there are several. Which attack is strongest is chosen on one half of the people and counted on the other
(`stats.strongest`), so that a defense under many attacks looks no worse than one under few.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from mibench.core import Access
from mibench.report.format import missing
from mibench.report.naming import card, changes, settings_text
from mibench.report.pairing import Attacked
from mibench.report.result import Result
from mibench.report.tables import rows
from mibench.runs import Run
from mibench.stages import artifacts
from mibench.stats.intervals import Interval
from mibench.stats.pairing import Hits, combined
from mibench.training.convergence import CONVERGED

__all__ = ["Point", "heldout", "points", "undefended"]

NAMED = ["protocol", "score", "model", "start", "training", "defense"]
"""Columns that a configuration goes by."""

SETUP = ["attack", "prior", "preset", "prior_preset", "budget"]
"""Columns that an attack goes by: with other settings or another prior it is another attack."""


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
        attacks: Access -> the strongest attack of that access, cross-fitted.
        strongest: The strongest attack of any access, cross-fitted, with the access of each that was chosen; None if
            nothing was attacked.
        heldout: Verdicts of the targets on held-out images, all seeds; older targets have none.
        track: What the attacks' priors draw (`Result.track`): strongest attacks are chosen within a track only.
    """

    protocol: str
    base: str
    defense: str
    label: str
    strength: float
    targets: tuple[Run, ...]
    attacks: Mapping[Access, Attacked]
    heldout: Hits | None
    strongest: Attacked | None = None
    track: str = ""

    @property
    def defended(self) -> bool:
        """Whether there is any defense."""
        return self.defense != "none"

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """What each target's training wrote down."""
        return [run.read("metrics.json") for run in self.targets]

    @cached_property
    def natural(self) -> Interval:
        """Natural accuracy; without the single verdicts (older targets) only the mean of the seeds."""
        if self.heldout is not None:
            return self.heldout.rate
        known = [one["natural_accuracy"] for one in self.metrics]
        mean = fmean(one["value"] for one in known)
        low, high = (known[0]["low"], known[0]["high"]) if len(known) == 1 else (math.nan, math.nan)
        return Interval(mean, low, high, sum(one["n"] for one in known), known[0]["clusters"])

    @cached_property
    def converged(self) -> bool:
        """Whether the training of every seed had converged; of an older target, which did not say, that is unknown and
        counts as no.

        A target says so itself, or by its accuracy on its own training images as trained.
        """
        said = [
            one.get("convergence", {}).get("converged", one.get("fit", {}).get("value", 0.0) >= CONVERGED)
            for one in self.metrics
        ]
        return all(said)

    @cached_property
    def spread(self) -> tuple[float, float]:
        """Least and greatest natural accuracy of a seed."""
        values = [one["natural_accuracy"]["value"] for one in self.metrics]
        return min(values), max(values)


def points(results: Iterable[Result], table: pd.DataFrame) -> list[Point]:
    """Every defended and undefended configuration that attacks were run on, in the order of the table."""
    runs = {result.run.id: result for result in results}
    attacks = table[table["role"] == "attack"][[*NAMED, *SETUP]] if len(table) else table
    groups: dict[tuple[str, str, str, str], list[tuple[tuple[str, ...], Result]]] = defaultdict(list)
    labels: dict[tuple[str, str, str, str], str] = {}
    for row in rows(attacks):
        base = " ".join(part for part in (row["model"], row["start"], row["training"]) if part)
        key = (row["protocol"], runs[row["score"]].track, base, row["defense"])
        groups[key].append((tuple(_word(row[column]) for column in SETUP), runs[row["score"]]))
        labels[key] = row["defense"] if not row["start"] else f"{row['defense']} ({row['start']})"
    return [_point(key, labels[key], own) for key, own in groups.items()]


def _word(value: Any) -> str:
    return "" if missing(value) else str(value)


def _called(setups: Mapping[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
    """A name for each set-up: the short one that is given, and what sets it apart from others of that name."""
    names = {}
    for setup, short in setups.items():
        alike = [other for other, name in setups.items() if name == short]
        apart = [place for place in range(1, len(SETUP)) if len({other[place] for other in alike}) > 1]
        more = [f"{'from ' if SETUP[place] == 'prior' else ''}{setup[place]}" for place in apart if setup[place]]
        names[setup] = " ".join([setup[0], *more]) if apart else short
    return names


def _point(key: tuple[str, str, str, str], label: str, results: list[tuple[tuple[str, ...], Result]]) -> Point:
    protocol, track, base, _ = key
    targets = {result.target.id: result.target for _, result in results}
    called = _called({setup: f"{setup[0]} {_adaptations(result)}".strip() for setup, result in results})
    by_attack: dict[Access, dict[str, dict[str, Result]]] = defaultdict(lambda: defaultdict(dict))
    for setup, result in results:
        by_attack[result.access][called[setup]].setdefault(result.target.id, result)
    strongest: dict[Access, Attacked] = {}
    every: list[Attacked] = []
    for access in Access.strongest_first():
        # An attack counts where it was run on every seed, so that none is judged by its luckiest target.
        whole = {name: runs for name, runs in by_attack.get(access, {}).items() if len(runs) == len(targets)}
        attacked = [Attacked.of(name, list(runs.values())) for name, runs in whole.items()]
        if attacked:
            strongest[access] = Attacked.strongest(attacked)
            every += attacked
    defense, strength = _strength(next(iter(targets.values())).spec)
    own = tuple(targets.values())
    best = Attacked.strongest(every) if every else None
    return Point(protocol, base, defense, label, strength, own, strongest, heldout(own), best, track)


def _strength(spec: Mapping[str, Any]) -> tuple[str, float]:
    """What a stack is called without its strength, and the strength of its first defense."""
    names, strength = [], math.nan
    for place, item in enumerate(spec["defenses"]):
        name, settings = item["name"], dict(item["settings"])
        swept = card("defenses", name).get("strength")
        if place == 0 and swept in settings and isinstance(settings[swept], int | float):
            strength = float(settings.pop(swept))
        names.append(f"{name} {settings_text(changes('defenses', name, settings))}".strip())
    return " + ".join(names) or "none", strength


def _adaptations(result: Result) -> str:
    """The settings of an attack that were changed because of the target's defenses."""
    settings = result.inversion.spec["attack"]["settings"]
    changed = []
    for item in result.target.spec["defenses"]:
        for change in card("defenses", item["name"]).get("adaptive", {}):
            key, equals, value = change.partition("=")
            if equals and not key.startswith("+") and str(settings.get(key)) == value:
                changed.append(change)
    return " ".join(dict.fromkeys(changed))


def heldout(targets: Sequence[Run]) -> Hits | None:
    """What targets make of their held-out images, each under its own training seed, as the verdicts on reconstructions
    are; None if one is older than these verdicts."""
    parts = []
    for run in targets:
        path = run.path / "heldout.safetensors"
        if not path.is_file():
            return None
        tensors, _ = artifacts.read_tensors(path, "held-out verdicts")
        labels = tensors["labels"]
        parts.append(Hits(labels, tensors["hits"].bool(), torch.full_like(labels, run.spec["seed"])))
    return combined(parts)


def undefended(point: Point, among: Iterable[Point]) -> Point | None:
    """The undefended twin: same protocol, track, network, start and training."""
    key = (point.protocol, point.track, point.base)
    return next((one for one in among if not one.defended and (one.protocol, one.track, one.base) == key), None)
