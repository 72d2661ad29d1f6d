"""The report as one file that needs no network: `index.html`.

The page computes nothing: its numbers are the cells of the report's tables, its words `headline`'s, its figures drawn
of the same frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mibench.evaluation import checks
from mibench.report import cite, dictionary, tables
from mibench.report.content import Content
from mibench.report.headline import Headline
from mibench.report.page import charts, document, pictures, progress, provenance, views
from mibench.report.page.charts import Figure
from mibench.report.result import Result
from mibench.report.verdict import Verdict, verdict

__all__ = ["render", "write"]


@dataclass(frozen=True)
class Part:
    """What the page says of one protocol."""

    protocol: str
    about: str
    headline: Headline | None
    first: list[tuple[str, list[pictures.Shot]]]
    people: list[str]
    attacks: list[Figure]
    tradeoff: list[Figure]
    heat: views.Heat
    exposed: list[Figure]
    bought: list[Figure]
    reached: list[Figure]
    card: list[tuple[str, str]]


def write(folder: Path, content: Content, errors: Sequence[str]) -> Path:
    """`index.html`; it appears whole or not at all.

    Args:
        folder: Where it goes; it exists.
        content: What it says. Without names (`content.names`), real photographs are withheld as well.
        errors: A line for each run that was left out.
    """
    return document.write(folder / "index.html", render(content, errors))


def render(content: Content, errors: Sequence[str]) -> str:
    """The page's text."""
    from markupsafe import Markup

    own = _own(content)
    shown = pictures.gallery(own, content.shown, content.names)
    root = content.results[0].run.root if content.results else Path()
    told = [line.replace(f"{root}/", "") for line in [*errors, *shown.missing]]
    if not content.names:
        told = [document.unnamed(line) for line in told]
    runs, by_id = provenance.every(own), {result.run.id: result for result in own}
    scored = tables.rows(content.shown[content.shown["score"].notna()]) if len(content.shown) else []
    return document.render(
        "index.html",
        ("page.js", "gallery.js"),
        verdicts=_verdicts(content),
        parts=_parts(content, shown),
        disagreements=content.disagreements,
        brief=checks.brief(content.findings),
        findings=[(one, *checks.explanation(one.check)) for one in content.findings],
        passed=[(name, checks.explanation(name)[0]) for name in checks.passed(content.findings)],
        apart=content.apart,
        errors=list(dict.fromkeys(told)),
        tables=_tables(content),
        people=views.people(content.leaks.people),
        training=progress.training(runs),
        answered=[(about, progress.answered(scored, by_id, key)) for key, about in progress.ATTACKS.items()],
        origins=provenance.origins(own, content.names),
        left=len(content.results) - len(own),
        scores=len(content.results),
        runs=provenance.lines(runs, content.names),
        scored=scored,
        bibtex=cite.bibtex(*(result.run for result in content.results)),
        dictionary=_dictionary(content),
        gallery=Markup(views.json_text(shown.data)),
        sheets=[Markup(sheet) for sheet in shown.sheets],
        images=sum(result.score.n for result in content.results),
        withheld=not content.names,
        steps=views.STEPS,
    )


def _own(content: Content) -> list[Result]:
    """The scores that have pictures, curves and a line of their own: of a summary's row the first."""
    if content.shown is content.table:
        return content.results
    shown = set(content.shown["score"])
    return [result for result in content.results if result.run.id in shown]


def _verdicts(content: Content) -> list[Verdict]:
    """One for each target that was trained elsewhere, as `mibench audit` ends with; not what it says was not tried."""
    attacks = [one for one in content.results if one.role == "attack" and one.target.spec.get("origin") == "imported"]
    return [
        verdict(content.results, target, names=content.names)
        for target in dict.fromkeys(one.target.id for one in attacks)
    ]


def _parts(content: Content, shown: pictures.Gallery) -> list[Part]:
    said = {one.protocol: one for one in content.headlines}
    cards = provenance.cards(content.results)
    by_id = {result.run.id: result for result in content.results}
    leaks, made = content.leaks.people, []
    for group in tables.protocols(content.shown):
        tracked = _tracked(group, by_id)
        protocol = str(group["protocol"].iloc[0])
        exposed = leaks[leaks["protocol"] == protocol] if len(leaks) else leaks
        made.append(
            Part(
                protocol,
                tables.title(group),
                said.get(protocol),
                shown.first.get(protocol, []),
                shown.people.get(protocol, []),
                charts.attacks(tracked),
                charts.tradeoff([point for point in content.points if point.protocol == protocol]),
                views.heat(tracked),
                charts.people(exposed),
                charts.bought(group),
                progress.answered(tables.rows(group[group["score"].notna()]), by_id, "reached"),
                cards[protocol],
            )
        )
    return made


def _tracked(group: pd.DataFrame, results: Mapping[str, Result]) -> pd.DataFrame:
    """The rows of a protocol; where attackers of several tracks are among them, each attack is called by its own."""
    tracks = [result.track if (result := results.get(str(score))) else "" for score in group["score"]]
    if len({*tracks} - {""}) < 2:
        return group
    names = zip(group["attack_label"], tracks, strict=True)
    return group.assign(attack_label=[f"{name}, {track}" if track else name for name, track in names])


def _tables(content: Content) -> list[views.Table]:
    sections = [*content.sections(), *content.people()]
    return [views.table(f"table-{place + 1}", section) for place, section in enumerate(sections)]


def _dictionary(content: Content) -> views.Table:
    described = dictionary.describe(content.frames)
    lines = [[str(cell) for cell in line] for line in described.itertuples(index=False)]
    return views.plain("dictionary-table", "Every column of every CSV file", [str(name) for name in described], lines)
