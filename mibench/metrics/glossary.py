"""Every declared metric, found by the name of a column; and the data dictionary that follows from the declarations.

Declarations are read off the files, as cards are, without importing them: torch and the judging networks take seconds.
"""

import ast
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mibench.metrics.declaration import Direction, Field, Metric, Need, Per, Unit
from mibench.runtime.errors import unknown

__all__ = ["Column", "Entry", "declared", "dictionary", "listing", "metric", "parse"]

WORDS = {kind.__name__: kind for kind in (Direction, Need, Per, Unit)}
"""The names that a declaration may use besides literals."""

BOUNDS = {"low": "lower", "high": "upper"}


class Column(NamedTuple):
    """A column's metric, the evaluation model (or two) it belongs to, and which bound of the interval it is."""

    metric: Metric
    at: str = ""
    bound: str = ""


class Entry(NamedTuple):
    """One line of the data dictionary."""

    name: str
    unit: str
    direction: str
    meaning: str
    source: str


def _value(node: ast.expr) -> Any:
    """A declaration's argument: a literal, a member of an enumeration, or a tuple of these.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in WORDS:
        return WORDS[node.value.id][node.attr]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    return ast.literal_eval(node)


def _metric(call: ast.Call, module: str) -> Metric:
    given = {str(item.arg): _value(item.value) for item in call.keywords} | {"module": module}
    return Metric(*(_value(item) for item in call.args), **given)


def _read(path: Path) -> list[Metric]:
    """The `METRICS` of a file: a tuple of `Metric(...)`, each with literal arguments."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "METRICS"):
            continue
        try:
            calls: list[ast.Call] = node.value.elts  # type: ignore[attr-defined]
            return [_metric(call, path.stem) for call in calls]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: METRICS must be a tuple of Metric(...) with literal arguments: {error}"
            ) from None
    return []


@cache
def declared() -> dict[str, Metric]:
    """Every metric by its name, file by file; mibench's own first, then those of other packages.

    Raises:
        ValueError: If two files declare one name, or a declaration is not literal.
    """
    from mibench.plugins import registry

    files = [(path.stem, path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    others = [name for name in registry.names("metrics") if not registry.is_own("metrics", name)]
    files += [(name, registry.source_of("metrics", name)) for name in others]
    known: dict[str, Metric] = {}
    for name, path in files:
        for one in _read(path):
            if one.name in known:
                raise ValueError(f"the metric {one.name} is declared in {known[one.name].module} and in {name}")
            known[one.name] = replace(one, module=name)
    return known


def metric(name: str) -> Metric:
    """A metric by its name.

    Raises:
        UserError: If no file declares it.
    """
    known = declared()
    if name not in known:
        raise unknown("metric", name, known)
    return known[name]


def parse(column: str) -> Column | None:
    """What a column of the form `name`, `name@model`, `name_low@one+other` holds; None where it is no metric's."""
    name, _, at = column.partition("@")
    known = declared()
    if name in known:
        return Column(known[name], at)
    base, _, bound = name.rpartition("_")
    if bound in BOUNDS and base in known and known[base].interval:
        return Column(known[base], at, bound)
    return None


def dictionary(columns: Iterable[str], fields: Iterable[Field] = ()) -> list[Entry]:
    """The data dictionary: what each column or JSON key is, in what unit, which way it leaks more, and from where.

    Args:
        columns: Names as they stand in a file: columns of a CSV, or dotted paths of JSON keys.
        fields: What is known of those that are no metric's; these go first, so that a file may use a word its own way.

    Raises:
        UserError: If a name is neither declared as a metric nor among the fields.
    """
    others = {one.name: one for one in fields}
    return [_entry(name, others) for name in columns]


def _entry(name: str, fields: dict[str, Field]) -> Entry:
    field = next((one for pattern, one in fields.items() if _matches(pattern, name)), None)
    if field is not None:
        return Entry(name, field.unit.words, "", field.summary, field.source)
    path, ending = name, ""
    if "." in name:  # a JSON key: evaluators.resnet.open_top1.low
        path, _, ending = name.rpartition(".")
        if ending not in ("value", "low", "high", "n", "clusters"):
            path, ending = name, ""
        path = path.rpartition(".")[2]
    column = parse(path)
    if column is None:
        raise unknown("column", name, [*declared(), *fields])
    one = column.metric
    bound = column.bound or (ending if ending in BOUNDS else "")
    if ending in ("n", "clusters"):
        counted = "how many values" if ending == "n" else "how many identities"
        return Entry(name, Unit.COUNT.words, "", f"{counted} the mean is taken over: {one.summary}", _source(one))
    meaning = f"{one.summary}{f', by {column.at}' if column.at else ''}"
    if bound:
        meaning = f"{BOUNDS[bound]} bound of the 95% interval, clustered by identity: {meaning}"
    return Entry(name, f"{one.unit.words}; range {one.range}", one.direction.words, meaning, _source(one))


def _matches(pattern: str, name: str) -> bool:
    """Whether a field's name is this one; * stands for one part of a path, @* for any evaluation model."""
    if "*" not in pattern:
        return pattern == name
    if pattern.endswith("@*"):
        return name.partition("@")[0] == pattern.removesuffix("@*") and "@" in name
    own, given = pattern.split("."), name.split(".")
    return len(own) == len(given) and all(one in ("*", other) for one, other in zip(own, given, strict=True))


def _source(one: Metric) -> str:
    """The paper and where to read it, else the file that defines it."""
    card = one.card
    if not card.get("title"):
        return f"mibench.metrics.{one.module}"
    return f"{card['title']} ({card['authors']}, {card['year']}) {card['link']}".strip()


def listing() -> dict[str, dict[str, Any]]:
    """Every metric's declaration as text, for `mibench list metrics`."""
    return {
        name: {
            "summary": one.summary,
            "unit": one.unit.words,
            "range": one.range,
            "direction": one.direction.words,
            "per": one.per.words,
            "needs": [need.words for need in one.needs],
            "link": one.link,
        }
        for name, one in declared().items()
    }
