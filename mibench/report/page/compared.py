"""`mibench diff` as a page: what changed from A to B, in the words, cells and figures of the report's page."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mibench.metrics import Unit
from mibench.report import diff_words as words
from mibench.report.diff import Folders, Quantity, Scores
from mibench.report.leakage import numbered
from mibench.report.page import document, pictures, provenance, views
from mibench.report.page.charts import WIDTH, Figure
from mibench.report.page.svg import Scale, drawing, el, mark, text
from mibench.report.result import Result
from mibench.stats.intervals import Interval

__all__ = ["file_of", "render", "write"]

MOST = 40
"""Rows of a figure; the table has all."""

NUMBERS = ("A %", "B %", "B - A, points", "p", "B is")


def write(compared: Scores | Folders, sides: tuple[Path, Path], names: bool = True) -> Path:
    """The page, in the folder `report` beside B's other pages; it appears whole or not at all.

    Args:
        compared: What it says.
        sides: The two results folders, or the folders that both scores lie in.
        names: Whether names, real photographs and whole paths are shown.
    """
    folder = sides[1] / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return document.write(folder / file_of(compared, sides), render(compared, sides, names))


def file_of(compared: Scores | Folders, sides: tuple[Path, Path]) -> str:
    """`diff-<score>-<score>.html`; of folders their names."""
    a, b = (
        (compared.a.run.id, compared.b.run.id)
        if isinstance(compared, Scores)
        else (side.resolve().name for side in sides)
    )
    return f"diff-{a}-{b}.html"


def render(compared: Scores | Folders, sides: tuple[Path, Path], names: bool = True) -> str:
    """The page's text."""
    shown = _scores(compared, names) if isinstance(compared, Scores) else _folders(compared, sides, names)
    told = shown.pop("left_out")
    left_out = [line if names else document.unnamed(line) for line in told]
    return document.render(
        "diff.html", ("page.js",), sentence=compared.sentence, withheld=not names, left_out=left_out, **shown
    )


def _scores(pair: Scores, names: bool) -> dict[str, Any]:
    cells = [(words.called(quantity), quantity) for quantity in pair.quantities]
    beside = pictures.beside({f"{side}: {words.named(one)}": one for side, one in _sides(pair)}, names)
    changed = [(one.part, one.field, words.value(one.a), words.value(one.b)) for one in pair.changed]
    people = [
        (
            one.name if names else numbered(one.label),
            f"{one.hits_a} of {one.images_a}",
            f"{one.hits_b} of {one.images_b}",
            Unit.POINTS.show(one.difference),
        )
        for one in pair.people
    ]
    return {
        "kicker": "Two scores: A against B",
        "lead": words.lead(pair),
        "sides": [(side, words.named(one), _facts(one, names)) for side, one in _sides(pair)],
        "pictures": beside,
        "equal": "equal, byte for byte" if pair.same_images else "not the same",
        "figures_": _figures(cells),
        "numbers": _table("numbers", "Rates and differences", "quantity", cells, [words.OF_SCORES]),
        "arithmetic": [line for line in [words.arithmetic(pair)] if line],
        "changed": views.plain("changed", "What differs", ("specification", "field", "A", "B"), changed),
        "people": views.plain(
            "people",
            "Person by person",
            ("person", "hits of A", "hits of B", "B - A, points"),
            people,
            ["Those that changed most first. A few images of one person support no test, so none is made."],
        ),
        "alone": [],
        "left_out": beside.missing,
    }


def _folders(both: Folders, sides: tuple[Path, Path], names: bool) -> dict[str, Any]:
    cells = [(words.named(match.a), quantity) for match, quantity in zip(both.matches, both.quantities, strict=True)]
    images = ["equal" if match.same_images else "differ" for match in both.matches]
    alone = [
        (f"Only in {side}", [(words.named(one), one.run.id, one.protocol) for one in own])
        for side, own in (("A", both.only_a), ("B", both.only_b))
        if own
    ]
    return {
        "kicker": "Two results folders: A against B",
        "lead": "",
        "sides": [
            (side, str(path) if names else path.resolve().name, [("scores", str(len(both.matches) + len(own)))])
            for side, path, own in zip("AB", sides, (both.only_a, both.only_b), strict=True)
        ],
        "pictures": pictures.Beside([], [], []),
        "equal": "",
        "figures_": _figures(cells),
        "numbers": _table("numbers", "Scores that both have", "attack and target", cells, [words.OF_FOLDERS], images),
        "arithmetic": both.arithmetic,
        "changed": None,
        "people": None,
        "alone": [
            views.plain(f"alone-{title[-1].lower()}", title, ("attack and target", "score", "protocol"), own)
            for title, own in alone
        ],
        "left_out": [*both.apart, *both.left_out],
    }


def _sides(pair: Scores) -> list[tuple[str, Result]]:
    return [("A", pair.a), ("B", pair.b)]


def _facts(result: Result, names: bool) -> list[tuple[str, str]]:
    """Which score it is, and how to make it again."""
    return [
        ("score", result.run.id),
        ("protocol", result.protocol),
        ("images", f"{result.score.n:,} of {result.score.identities} people"),
        ("command", provenance.again(result, names)),
    ]


def _table(
    name: str,
    title: str,
    first: str,
    cells: Sequence[tuple[str, Quantity]],
    notes: list[str],
    images: Sequence[str] = (),
) -> views.Table:
    """Both rates, the difference and what is said of it; numbers are sorted as numbers."""
    heads = [views.Head(first, True), *(views.Head(head, head == NUMBERS[-1]) for head in NUMBERS)]
    heads += [views.Head("images", True)] if images else []
    lines = []
    for place, (label, quantity) in enumerate(cells):
        own = [label, *words.numbers(quantity), *images[place : place + 1]]
        told = [views.Cell(one, None if head.left else views.key(one)) for one, head in zip(own, heads, strict=True)]
        lines.append(views.Line(told, "", ""))
    return views.Table(name, title, heads, lines, notes)


def _figures(cells: Sequence[tuple[str, Quantity]]) -> list[Figure]:
    """Both rates of each row, and B minus A where it was estimated."""
    shown = list(cells)[:MOST]
    known = [(name, one) for name, one in shown if one.difference is not None]
    return [_rates(shown), *([_differences(known)] if known else [])] if shown else []


STEP, TOP = 46.0, 26.0


def _ruled(x: Scale, marks: Iterable[float], bottom: float, sign: str) -> list[Any]:
    """Upright lines, each with its number below."""
    every = list(marks)
    parts = [el("line", x1=x(one), x2=x(one), y1=TOP - 6, y2=bottom, class_="rule") for one in every]
    for place, one in enumerate(every):
        anchor = "start" if not place else "end" if place == len(every) - 1 else "middle"
        told = f"{100 * one:+g}" if sign == "+" and one else f"{100 * one:g}"
        parts.append(
            text(x(one), bottom + 15, f"{told}%" if sign == "%" and one == every[-1] else told, "tick", anchor)
        )
    return parts


def _span(known: Interval, x: Scale) -> tuple[float, float]:
    if known.low != known.low or known.high != known.high:
        return x(known.value), x(known.value)
    return x(known.low), x(known.high)


def _rates(cells: Sequence[tuple[str, Quantity]]) -> Figure:
    x, bottom = Scale(0.0, 1.0, 8.0, WIDTH - 8), TOP + STEP * len(cells)
    parts = _ruled(x, (0.0, 0.25, 0.5, 0.75, 1.0), bottom, "%")
    for place, (name, quantity) in enumerate(cells):
        y, told = TOP + STEP * place, words.numbers(quantity)
        group = [el("title", f"{name}: A {told.a}%, B {told.b}%"), text(8.0, y + 13, name, "name attack")]
        # Each of its own kind, colour, and shape: hollow or filled tells them apart without any colour.
        for kind, known, low in (("floor", quantity.a, y + 24), ("attack", quantity.b, y + 35)):
            if known.value == known.value:
                left, right = _span(known, x)
                group.append(el("line", x1=left, x2=right, y1=low, y2=low, class_=f"bar {kind}"))
                group.append(mark(x(known.value), low, f"dot {kind}"))
        parts.append(el("g", *group))
    title = "A (hollow) and B (filled), %"
    return Figure("diff-rates", title, drawing(WIDTH, bottom + 22, title, *parts))


def _differences(cells: Sequence[tuple[str, Quantity]]) -> Figure:
    every = [one.difference for _, one in cells if one.difference is not None]
    reach = max((abs(end) for one in every for end in one[:3] if end == end), default=0.0)
    reach = next(one for one in (0.1, 0.2, 0.5, 1.0) if one >= min(reach, 1.0))
    x, bottom = Scale(-reach, reach, 8.0, WIDTH - 8), TOP + STEP * len(cells)
    parts = _ruled(x, (-reach, -reach / 2, 0.0, reach / 2, reach), bottom, "+")
    parts.append(el("line", x1=x(0.0), x2=x(0.0), y1=TOP - 6, y2=bottom, class_="ceiling"))
    for place, (name, quantity) in enumerate(cells):
        y, told, known = TOP + STEP * place, words.numbers(quantity), quantity.difference
        if known is None:
            continue
        kind = "attack" if quantity.words in ("lower", "higher") else "floor"
        (left, right), at = _span(known, x), x(known.value)
        parts.append(
            el(
                "g",
                el("title", f"{name}: {told.difference}, {told.words}"),
                text(8.0, y + 13, name, f"name {kind}"),
                text(WIDTH - 8, y + 13, quantity.words, f"number {kind}", "end"),
                el("line", x1=left, x2=right, y1=y + 28, y2=y + 28, class_=f"bar {kind}"),
                mark(at, y + 28, f"dot {kind}"),
            )
        )
    title = "B minus A, points: filled where the test shows a difference"
    return Figure("diff-differences", title, drawing(WIDTH, bottom + 22, title, *parts))
