"""All that a report says, computed once; the terminal, the files and the figures only show it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from mibench.evaluation.checks import Finding
from mibench.experiments import published as papers
from mibench.report import (
    captions,
    combinations,
    curves,
    differences,
    facts,
    frame,
    headline,
    judges,
    leakage,
    leakage_tables,
    points,
    published,
    summary,
    tables,
    tradeoff,
)
from mibench.report import tradeoff_tables as tradeoffs
from mibench.report.leakage import Leakage
from mibench.report.points import Point
from mibench.report.protocol import apart
from mibench.report.result import Result
from mibench.report.tables import Section

__all__ = ["Content"]


@dataclass(frozen=True)
class Content:
    """What some scores say; each part is computed when it is first asked for.

    Args:
        results: The scores.
        names: Whether people are called by their names.
    """

    results: list[Result]
    names: bool = True

    @cached_property
    def table(self) -> pd.DataFrame:
        """`frame.scores`."""
        return frame.scores(self.results)

    @cached_property
    def shown(self) -> pd.DataFrame:
        """`summary.summary`: the table as people are shown it."""
        return summary.summary(self.table, self.results)

    @cached_property
    def compared(self) -> differences.Compared:
        """`differences.differences`."""
        return differences.differences(self.results, self.table)

    @property
    def differences(self) -> pd.DataFrame:
        """What each defense changes, by the headline."""
        return self.compared.differences

    @property
    def judges(self) -> pd.DataFrame:
        """What each defense changes, by every judge."""
        return self.compared.judges

    @cached_property
    def disagreements(self) -> list[str]:
        """The report's first lines: on which defenses the judges disagree; none where they agree."""
        return judges.lines(self.judges)

    @cached_property
    def points(self) -> list[Point]:
        """`points.points`."""
        return points.points(self.results, self.table)

    @cached_property
    def tradeoff(self) -> pd.DataFrame:
        """`tradeoff.frame`."""
        return tradeoff.frame(self.points)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """`curves.frame`."""
        return curves.frame(self.points)

    @cached_property
    def combinations(self) -> pd.DataFrame:
        """`combinations.frame`."""
        return combinations.frame(self.points)

    @cached_property
    def published(self) -> pd.DataFrame:
        """`published.frame`: beside the numbers of the shipped suites."""
        return published.frame(self.results, papers.published())

    @cached_property
    def leaks(self) -> Leakage:
        """`leakage.leakage`."""
        return leakage.leakage(self.results, self.table, self.names)

    @cached_property
    def findings(self) -> list[Finding]:
        """What the checks found of defenses and of scores."""
        return [*tradeoff.findings(self.points), *facts.findings(self.results)]

    @cached_property
    def apart(self) -> list[str]:
        """Why two tables are apart."""
        return apart(self.results, self.table["protocol"]) if len(self.table) else []

    @cached_property
    def headlines(self) -> "list[headline.Headline]":
        """`headline.headlines`."""
        return headline.headlines(self.results, self.table, self.points, self.differences)

    @cached_property
    def titles(self) -> dict[str, str]:
        """Protocol -> what it is about."""
        return {group["protocol"].iloc[0]: tables.title(group) for group in tables.protocols(self.table)}

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """Every CSV file's name, without its ending -> its rows."""
        return {
            "tables": self.table,
            "differences": self.differences,
            "judges": self.judges,
            "tradeoff": self.tradeoff,
            "curves": self.curves,
            "combinations": self.combinations,
            "published": self.published,
            "leakage": self.leaks.people,
            "inequality": self.leaks.targets,
            "groups": self.leaks.groups,
        }

    def sections(self, brief: bool = False) -> Iterator[Section]:
        """Every table but those of people, protocol by protocol; `brief` where a terminal shows them."""
        shown = {group["protocol"].iloc[0]: group for group in tables.protocols(self.shown)}
        for group in tables.protocols(self.table):
            yield captions.section(group, shown[group["protocol"].iloc[0]], self.results, brief)
            yield from differences.sections(group, self.differences)
        yield from tradeoffs.sections(self.tradeoff, self.curves, self.combinations, self.titles)
        if len(self.published):
            yield published.section(self.published)

    def people(self) -> Iterator[Section]:
        """The tables of who leaks."""
        return leakage_tables.sections(self.leaks, self.table)
