"""Numbers that papers published, beside the suites that measure the same: `[[published]]` tables of a suite's file.

    [[published]]
    model = "resnet18"
    defense = "re a_e=0.4"
    attack = "ppa images=8 candidates=16"
    metric = "closed_top1"
    value = 27.75                                   # left out where nobody has published it, or it is not known
    source = "https://arxiv.org/abs/2409.01062"

Several of one source are shorter as rows, which are laid over their table; each metric is a column, and nan is a number
that is not known:

    [[published]]
    attack = "ppa images=8 candidates=16"
    source = "https://arxiv.org/abs/2409.01062"
    rows = [{model = "resnet18", defense = "none", natural_accuracy = nan, closed_top1 = 88.67}]

A number is repeated as it was published, with a page that a reader can open; one that is not known stays empty, and is
never guessed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from mibench.experiments.suites import parsed, suites
from mibench.metrics import Unit, listing, metric
from mibench.plugins import registry
from mibench.plugins.settings import named
from mibench.runs import Run, canonical
from mibench.runtime.errors import UserError, unknown

__all__ = ["Published", "published"]


@dataclass(frozen=True)
class Published:
    """One published number.

    Args:
        suite: The suite that measures the same.
        dataset: The data set, with the settings that it must have: `celeba split=ppa`.
        model: The target's architecture.
        defense: As the report names it: `none`, `re a_e=0.4`.
        metric: A metric by its name, a rate: `closed_top1`, which papers call attack accuracy, or `natural_accuracy`.
        value: In percent, in [0, 100]; None where it was not published, or is not known.
        source: A page that a reader can open.
        attack: The attack, with the settings that it must have: `ppa images=8 candidates=16`; empty for what no attack
            changes.
        prior: What the attack searched, by the name of its run (`ffhq`); any if empty.
        note: What the number leaves open, or where it was measured otherwise than the suite does.

    Raises:
        UserError: A metric that is no rate, a value that is no percentage, a source that is no page, or an attack or
            data set that does not exist or has no such setting.
    """

    suite: str
    dataset: str
    model: str
    defense: str
    metric: str
    source: str
    value: float | None = None
    attack: str = ""
    prior: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if metric(self.metric).unit is not Unit.SHARE:
            raise UserError(f"{self.suite}: {self.metric} is no rate; published numbers are rates")
        if self.value is not None and not 0 <= self.value <= 100:
            raise UserError(f"{self.suite}: a published number is a percentage in [0, 100], got {self.value}")
        if not self.source.startswith("https://"):
            raise UserError(f"{self.suite}: a published number's source is a page (https://...), got {self.source!r}")
        _ = self._data, self._attack

    @cached_property
    def _data(self) -> tuple[str, dict[str, str]]:
        """Name and settings, the latter as JSON texts."""
        name, given = named(self.dataset)
        plugin = registry.configure("data", name, settings=dict(given)).plugin
        return name, {key: canonical(getattr(plugin, key)) for key in given}

    @cached_property
    def _attack(self) -> tuple[str, dict[str, str]]:
        """The same of the attack."""
        if not self.attack:
            return "", {}
        name, given = named(self.attack)
        known = registry.configure("attacks", name, settings=dict(given)).spec()["settings"]
        return name, {key: canonical(known[key]) for key in given}

    def speaks_of(self, inversion: Run, defense: str) -> bool:
        """Whether an inversion is of the same data, target, attack and prior.

        Args:
            inversion: The run, planned or done.
            defense: Its target's, as the report names it.
        """
        target, prior = inversion.target.spec, inversion.prior
        if prior is None or (target["model"], defense) != (self.model, self.defense):
            return False
        asked = [(self._data, target["dataset"])]
        if self.attack:
            asked.append((self._attack, inversion.spec["attack"]))
        return self.prior in ("", prior.name) and all(
            name == spec["name"] and all(canonical(spec["settings"].get(key)) == one for key, one in given.items())
            for (name, given), spec in asked
        )


def published(among: Iterable[str] | None = None) -> list[Published]:
    """The published numbers of suites, in their order.

    Args:
        among: Names or files of suites; all that ship with mibench if absent.

    Raises:
        UserError: As `suites.read`; or a table that is no published number.
    """
    return [
        _one(name, shared, row)
        for name in (suites() if among is None else among)
        for shared in [parsed(name)[2]]
        for table in shared.get("published", [])
        for row in _rows(name, table)
    ]


def _rows(suite: str, table: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The single numbers of a table."""
    if "rows" not in table:
        yield table
        return
    shared, rates = {key: value for key, value in table.items() if key != "rows"}, set(listing())
    if not isinstance(table["rows"], list) or not all(isinstance(row, dict) for row in table["rows"]):
        raise UserError(f"{suite}: rows of published numbers are tables: rows = [{{model = .., closed_top1 = ..}}]")
    for row in table["rows"]:
        own = {key: value for key, value in row.items() if key not in rates}
        for name in row:
            if name in rates:
                line = shared | own | {"metric": name}
                if type(row[name]) is not float or not math.isnan(row[name]):
                    line["value"] = row[name]
                yield line if name != "natural_accuracy" else line | {"attack": "", "prior": ""}


def _one(suite: str, shared: Mapping[str, Any], table: Mapping[str, Any]) -> Published:
    known = {field.name for field in fields(Published)} - {"suite"}
    for name in table:
        if name not in known:
            raise unknown(f"field of a published number in {suite}", name, sorted(known))
    own = shared.get("settings", {}).get("data", {})
    dataset = " ".join([str(shared.get("dataset", "")), *(f"{key}={value}" for key, value in own.items())])
    given: dict[str, Any] = {"suite": suite, "dataset": dataset} | dict(table)
    for field in fields(Published):
        value = given.get(field.name)
        if field.name == "value":
            if value is not None and type(value) not in (int, float):
                raise UserError(f"{suite}: value is a number, got {value!r}")
            given["value"] = None if value is None else float(value)
        elif field.name not in ("attack", "prior", "note") and not isinstance(value, str):
            raise UserError(f"{suite}: a published number needs {field.name}, a text")
    return Published(**given)
