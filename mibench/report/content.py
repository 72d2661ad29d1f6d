"""All that a report says, computed once; the terminal, the files and the figures only show it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from mibench.evaluation.checks import Finding
from mibench.report import collect, differences, facts, leakage, privacy, tables, tradeoff
from mibench.report.collect import Scored
from mibench.report.leakage import Leakage
from mibench.report.protocol import apart
from mibench.report.tables import Section
from mibench.report.tradeoff import Point

__all__ = ["Content"]


@dataclass(frozen=True)
class Content:
    """What some scores tell; each part is computed when it is first asked for.

    Args:
        found: The scores.
        names: Whether people are called by their names.
    """

    found: list[Scored]
    names: bool = True

    @cached_property
    def table(self) -> pd.DataFrame:
        """`collect.frame`."""
        return collect.frame(self.found)

    @cached_property
    def compared(self) -> pd.DataFrame:
        """`differences.differences`."""
        return differences.differences(self.found, self.table)

    @cached_property
    def points(self) -> list[Point]:
        """`tradeoff.points`."""
        return tradeoff.points(self.found, self.table)

    @cached_property
    def tradeoff(self) -> pd.DataFrame:
        """`tradeoff.frame`."""
        return tradeoff.frame(self.points)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """`tradeoff.summary`."""
        return tradeoff.summary(self.points)

    @cached_property
    def leaks(self) -> Leakage:
        """`leakage.leakage`."""
        return leakage.leakage(self.found, self.table, self.names)

    @cached_property
    def findings(self) -> list[Finding]:
        """What the checks found of defenses and of scores."""
        return [*tradeoff.findings(self.points), *facts.findings(self.found)]

    @cached_property
    def apart(self) -> list[str]:
        """Why two tables are apart."""
        return apart(self.found, self.table["protocol"]) if len(self.table) else []

    def sections(self, brief: bool = False) -> Iterator[Section]:
        """Every table but `people`, protocol by protocol; `brief` where a terminal shows them."""
        for group in tables.protocols(self.table):
            yield tables.section(group, self.found, brief)
            yield from differences.sections(group, self.compared)
        yield from privacy.sections(self.tradeoff, self.curves, privacy.titles(self.table))

    def people(self) -> Iterator[Section]:
        """The tables of who leaks."""
        return leakage.sections(self.leaks, self.table)
