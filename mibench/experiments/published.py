"""Numbers that papers published, beside the suites that measure the same: `[[published]]` tables of a suite's file.

    [[published]]
    model = "resnet18"
    defense = "re a_e=0.4"
    attack = "ppa"
    metric = "closed_top1"
    value = 27.75                                   # left out where nobody has published it
    source = "https://arxiv.org/abs/2409.01062"

A number is repeated as it was published, with a page that a reader can open; one that is not known stays empty, and is
never guessed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mibench.experiments.suites import parsed, suites
from mibench.metrics import Unit, metric
from mibench.runtime.errors import UserError, unknown

__all__ = ["Published", "published"]


@dataclass(frozen=True)
class Published:
    """One published number.

    Args:
        suite: The suite that measures the same.
        dataset: The data set.
        model: The target's architecture.
        defense: As the report names it: `none`, `re a_e=0.4`.
        metric: A metric by its name, a rate: `closed_top1`, which papers call attack accuracy, or `natural_accuracy`.
        value: In percent, in [0, 100]; None where it was not published, or is not known.
        source: A page that a reader can open.
        attack: The attack; empty for what no attack changes.
        note: What the number leaves open, or where it was measured otherwise than the suite does.

    Raises:
        UserError: A metric that is no rate, a value that is no percentage, or a source that is no page.
    """

    suite: str
    dataset: str
    model: str
    defense: str
    metric: str
    source: str
    value: float | None = None
    attack: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if metric(self.metric).unit is not Unit.SHARE:
            raise UserError(f"{self.suite}: {self.metric} is no rate; published numbers are rates")
        if self.value is not None and not 0 <= self.value <= 100:
            raise UserError(f"{self.suite}: a published number is a percentage in [0, 100], got {self.value}")
        if not self.source.startswith("https://"):
            raise UserError(f"{self.suite}: a published number's source is a page (https://...), got {self.source!r}")


def published(among: Iterable[str] | None = None) -> list[Published]:
    """The published numbers of suites, in their order.

    Args:
        among: Names or files of suites; all that ship with mibench if absent.

    Raises:
        UserError: As `suites.read`; or a table that is no published number.
    """
    return [
        _one(name, shared.get("dataset", ""), table)
        for name in (suites() if among is None else among)
        for shared in [parsed(name)[2]]
        for table in shared.get("published", [])
    ]


def _one(suite: str, dataset: str, table: Mapping[str, Any]) -> Published:
    known = {field.name for field in fields(Published)} - {"suite"}
    for name in table:
        if name not in known:
            raise unknown(f"field of a published number in {suite}", name, sorted(known))
    given: dict[str, Any] = {"suite": suite, "dataset": dataset} | dict(table)
    for field in fields(Published):
        value = given.get(field.name)
        if field.name == "value":
            if value is not None and type(value) not in (int, float):
                raise UserError(f"{suite}: value is a number, got {value!r}")
            given["value"] = None if value is None else float(value)
        elif field.name not in ("attack", "note") and not isinstance(value, str):
            raise UserError(f"{suite}: a published number needs {field.name}, a text")
    return Published(**given)
