"""Figures of how runs went on: training, and what the target answered along an attack's queries (log.jsonl)."""

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from mibench.metrics import Unit
from mibench.report.page.charts import LONG, MOST, WIDTH, Figure, axes, called, hundred, thousands
from mibench.report.page.svg import Scale, drawing, el, path, text, ticks
from mibench.report.result import Result
from mibench.report.tables import Row
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_text

__all__ = ["ATTACKS", "answered", "training"]

Places = list[tuple[float, float]]

PROGRESS = ("step", "iteration", "epoch")
"""What the log of a training counts by, the first that its lines have."""

LOGGED = {
    "targets": "Training of the targets",
    "evaluators": "Training of the evaluation models",
    "verifiers": "Training of the verifiers",
    "backbones": "Training of the backbones",
    "priors": "Learning of the priors",
}

ANSWERS = {
    "reached": "people the target has named, %",
    "confidence": "the target's probability of the person, %",
    "loss": "the target's cross-entropy, nats",
}
"""What an attack's log tells of the target's answers -> what its drawing is called."""

ATTACKS = {
    "confidence": "Attacks: the target's mean probability of the person who was asked for, along the images asked for "
    "one person. An attack's last images may be a choice among views or candidates and not its search.",
    "loss": "The same answers as cross-entropy, in nats: what most attacks minimise.",
}
"""What of ANSWERS is drawn among the curves -> what that is."""

STYLES = 6
"""Kinds of line; a seventh looks like the first, and is told apart by its name."""


def training(runs: Sequence[Run]) -> list[Figure]:
    """What the models' runs logged, one drawing for each kind of run and quantity, a line a run."""
    lines: dict[tuple[str, str, str], list[tuple[str, Places]]] = {}
    for run in runs:
        log = _log(run) if run.kind in LOGGED else []
        along = next((key for key in PROGRESS if log and key in log[0]), None)
        if along is None:
            continue
        for key in sorted({key for line in log for key in line} - {along}):
            if len(places := _places(log, along, key)) > 1:
                lines.setdefault((run.kind, along, key), []).append((f"{run.name}-{run.id}", places))
    order = list(LOGGED)
    wanted = sorted(lines, key=lambda one: (order.index(one[0]), one[1:]))
    return [_logged(kind, along, key, lines[kind, along, key][:MOST]) for kind, along, key in wanted]


def answered(lines: Sequence[Row], results: Mapping[str, Result], key: str) -> list[Figure]:
    """Of each target what it answered along the queries for one person, a line an attack; floors grey.

    Args:
        lines: Rows of the scores, in the order of their table.
        results: Score id -> result.
        key: One of ANSWERS.
    """
    drawn: dict[str, list[tuple[Row, Places]]] = {}
    for line in lines:
        target = line["target_label"]
        if len(drawn.get(target, ())) >= MOST or (target not in drawn and len(drawn) >= MOST):
            continue
        result = results.get(str(line["score"]))
        log = _log(result.inversion) if result is not None else []
        if len(places := _places(log, "step", key)) > 1:
            drawn.setdefault(target, []).append((line, places))
    return [_answers(target, key, known) for target, known in drawn.items()]


def _log(run: Run) -> list[dict[str, float]]:
    """The run's log; empty where there is none or it cannot be read, which takes no number away."""
    try:
        lines = [json.loads(line) for line in read_text(run.path / "log.jsonl").splitlines()]
    except (OSError, ValueError, UserError):
        return []
    return [
        {key: float(value) for key, value in line.items() if isinstance(value, int | float)}
        for line in lines
        if isinstance(line, dict)
    ]


def _places(log: Sequence[Mapping[str, float]], along: str, key: str) -> Places:
    places = [(line[along], line[key]) for line in log if along in line and key in line]
    return [(one, other) for one, other in places if math.isfinite(one) and math.isfinite(other)]


def _logged(kind: str, along: str, key: str, lines: Sequence[tuple[str, Places]]) -> Figure:
    across = [one for _, places in lines for one, _ in places]
    x, y = Scale(min(across), max(across), 44.0, WIDTH - 14), _upright(lines)
    parts = axes(x, y, along, key.replace("_", " "), lambda value: f"{value:g}", lambda value: f"{value:g}")
    named = []
    for place, (name, every) in enumerate(lines):
        about = f"{name}: {key.replace('_', ' ')} {every[0][1]:.4g} to {every[-1][1]:.4g}"
        parts.append(el("g", el("title", about), _trace(x, y, every, f"trace t{place % STYLES}")))
        named.append((f"trace t{place % STYLES}", name))
    parts += _legend(named, 246.0)
    title = f"{LOGGED[kind]}: {key.replace('_', ' ')}"
    return Figure(f"log-{kind}-{key}", title, drawing(WIDTH, 236.0 + LINE * len(lines), title, *parts))


LINE = 20.0
"""Between two lines of a legend."""


def _legend(named: Sequence[tuple[str, str]], top: float) -> list[Markup]:
    """What each kind of line is, one below the other."""
    parts = []
    for place, (kind, name) in enumerate(named):
        y = top + LINE * place
        parts.append(el("line", x1=44.0, x2=72.0, y1=y - 4, y2=y - 4, class_=kind))
        parts.append(text(80.0, y, name, "label"))
    return parts


def _upright(lines: Sequence[tuple[object, Places]]) -> Scale:
    up = [one for _, places in lines for _, one in places]
    low, high = min(0.0, *up), max(up)
    marks = ticks(low, high if high > low else low + 1.0)
    return Scale(marks[0], max(marks[-1], high), 190.0, 30.0)


def _trace(x: Scale, y: Scale, every: Places, kind: str) -> Markup:
    places = every[:: max(1, len(every) // 400)]
    return el("polyline", points=path((x(one), y(other)) for one, other in places), class_=kind)


def _answers(target: str, key: str, lines: Sequence[tuple[Row, Places]]) -> Figure:
    """Queries in powers of ten: attacks ask tens for one person, or tens of thousands."""
    asked = [one for _, places in lines for one, _ in places]
    low, high = 10.0 ** math.floor(math.log10(min(asked))), 10.0 ** math.ceil(math.log10(max(asked)))
    share = key != "loss"
    x = Scale(low, high, 44.0, WIDTH - 14, log=True)
    y = Scale(0.0, 1.0, 210.0, 30.0) if share else _upright(lines)
    show: Callable[[float], str] = hundred if share else lambda value: f"{value:g}"
    parts = axes(x, y, "queries for one person", ANSWERS[key], show, thousands)
    named = []
    for place, (line, every) in enumerate(lines):
        last = Unit.SHARE.show(every[-1][1]) + "%" if share else f"{every[-1][1]:.3g}"
        about = f"{line['attack_label']}: {last} after {Unit.COUNT.show(every[-1][0])} queries for one person"
        style = "trace floor" if line["role"] == "floor" else f"trace t{place % STYLES}"
        parts.append(el("g", el("title", about), _trace(x, y, every, style)))
        named.append((style, f"{textwrap.shorten(line['attack_label'], LONG, placeholder='…')} {last}"))
    parts += _legend(named, 266.0)
    title = f"{called(target)}: {ANSWERS[key]}"
    return Figure(f"{key}-{target}", called(target), drawing(WIDTH, 256.0 + LINE * len(lines), title, *parts))
