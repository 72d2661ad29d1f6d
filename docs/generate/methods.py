"""One page for each method of every kind, from its card, docstring, fields and presets."""

import csv
import dataclasses
import importlib
import math
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

from docstrings import cell, parse, prose, references, signature

from mibench.core.capabilities import CAPABILITIES
from mibench.plugins import capabilities, registry
from mibench.plugins.settings import settings_of
from mibench.report.cite import entry

__all__ = ["ROOT", "TITLES", "index", "page"]

ROOT = Path(__file__).parent.parent.parent
TITLES = {
    "attacks": "Attacks",
    "defenses": "Defenses",
    "priors": "Priors",
    "data": "Data sets",
    "models": "Models",
    "metrics": "Metrics",
}
LEADS = {
    "attacks": "An attack searches a prior until the target agrees with an identity. Floors are attacks that optimise "
    "nothing: what does not exceed them has inverted nothing. Wrappers change another attack: `ppa+eot`.",
    "defenses": "A defense changes how a target is trained or what it answers. Controls are not proposed as defenses: "
    "they hide as much, or change as much, as a defense does.",
    "priors": "What the attacker knows of how images of this kind look, and how he learns it.",
    "data": "One private population, what the attacker may know of its kind, and whom else evaluation models know.",
    "models": "Architectures for targets and evaluation models; every classifier of torchvision works by its own name.",
    "metrics": "What is measured of reconstructions, and of targets beside their accuracy.",
}
ACCESS = {"none": "never asks the target", "label_only": "label only", "black_box": "black box: scores"}
COMMANDS = {
    "attacks": "mibench attack --method {name}",
    "defenses": "mibench train --defense {name}",
    "priors": "mibench train-prior --prior {name}",
    "data": "mibench train --dataset {name}",
    "models": "mibench train --model {name}",
}
WARNING = (
    '!!! warning "Read these numbers with care"\n    One run on `digiface` with targets that were trained for fifteen '
    "epochs and are **not converged**; the share is of\n    images whose identity an evaluation model accepts "
    "(*agreement*), which is not likeness: see [results](../results/older.md).\n"
)


def index(kind: str) -> str:
    """The list of all methods of a kind."""
    rows = ["| name | what it is | published |", "|:---|:---|:---|"]
    for name, card in sorted(registry.cards(kind).items(), key=lambda item: (_order(item[1]), item[0])):
        role = f" *({card['role']})*" if card.get("role", "attack") != "attack" else ""
        rows.append(f"| [`{name}`]({name}.md) | {cell(card['summary'])}{role} | {_published(card)} |")
    return "\n".join([f"# {TITLES[kind]}", "", LEADS[kind], "", *rows, ""])


def page(kind: str, name: str) -> str:
    """One method: what it is, its equation, settings, presets, measured numbers, sources and BibTeX."""
    card = registry.card(kind, name)
    module = importlib.import_module(f"mibench.{kind}.{name}")
    top = parse(module.__doc__)
    parts = [f"# `{name}`", prose(f"{card['summary'][0].upper()}{card['summary'][1:]}."), _facts(kind, name, card)]
    parts += ["## What it does", prose(top.body)]
    if kind in registry.BASES:
        plugin = registry.load(kind, name)
        own = parse(plugin.__doc__)
        parts.append(prose(own.body))
        for section in ("Source", "Differs"):
            for doc in (top, own):
                if section in doc.sections:
                    parts.append(f"**{section}.** {prose(doc.sections[section])}")
        parts += ["## Settings", _settings(plugin, _meanings(plugin), _prefix(kind, name, card))]
        parts += _presets(kind, name)
    else:
        parts += [f"**{title}.** {prose(top.sections[title])}" for title in ("Differs",) if title in top.sections]
        parts += _declared(module)
        parts += _functions(module)
    parts += _measured(kind, name)
    if "References" in top.sections:
        parts += ["## References", references(top.sections["References"])]
    if bibtex := entry(card):
        parts += ["## Cite", f"```bibtex\n{bibtex}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _order(card: dict[str, Any]) -> int:
    return ["attack", "wrapper", "floor", "control"].index(card.get("role", "attack"))


def _published(card: dict[str, Any]) -> str:
    words = f"{card.get('venue') or ''} {card.get('year') or ''}".strip()
    return f"[{words}]({card['link']})" if words and card.get("link") else words


def _facts(kind: str, name: str, card: dict[str, Any]) -> str:
    facts: list[tuple[str, str]] = []
    if card.get("title") and card.get("authors"):
        link = f"[{cell(card['title'])}]({card['link']})" if card.get("link") else cell(card["title"])
        facts.append(("paper", f"{link}, {cell(card['authors'])}, {card.get('venue', '')} {card.get('year', '')}"))
    if kind == "attacks":
        facts.append(("role", card["role"]))
        facts.append(("access", ACCESS.get(card["access"], "white box: the network's gradients")))
        if card.get("prior"):
            facts.append(
                ("its prior", f"[`{card['prior']}`](../priors/{card['prior']}.md) unless `--prior` says other")
            )
        for word in card.get("requires", ()):
            able = ", ".join(f"[`{one}`](../priors/{one}.md)" for one in capabilities.offering("priors", word))
            facts.append(("requires", f"{cell(CAPABILITIES.get(word, word))}: {able}"))
        if card.get("cost"):
            each, gradients, shared = card["cost"]
            many = "as many as there are public images, or as its settings say" if shared is None else f"{shared:,}"
            facts.append(
                (
                    "asks the target (defaults)",
                    f"{each:,} images per identity, {gradients:,} of them differentiated; for all identities together "
                    f"{many}",
                )
            )
    if kind == "defenses" and card.get("strength"):
        grid = ", ".join(f"{value:g}" for value in card["grid"])
        facts.append(("its strength", f"`{card['strength']}`; `mibench sweep` tries {grid}"))
        for what, why in card.get("adaptive", {}).items():
            facts.append(("adaptive attacker", f"`{what}`: {cell(why)}"))
        for other, why in card.get("conflicts", {}).items():
            facts.append(("cannot be combined with", f"`{other}`: {cell(why)}"))
    keys = ("critic", "range", "better", "unit", "images", "identities", "licence", "architectures")
    for key in keys:
        if card.get(key):
            value = card[key]
            facts.append((key, cell(", ".join(value) if isinstance(value, tuple | list) else str(value))))
    if kind in COMMANDS and kind != "models":
        around = f"ppa+{name}" if card.get("role") == "wrapper" else name
        facts.append(("use it", f"`{COMMANDS[kind].format(name=around)}`"))
    facts.append(("code", f"`mibench/{kind}/{name}.py`"))
    test = ROOT / "tests" / kind / f"test_{name}.py"
    shared = ROOT / "tests" / kind / "test_contract.py"
    tests = [f"`{path.relative_to(ROOT)}`" for path in (test, shared) if path.is_file()]
    if tests:
        facts.append(("tests", ", ".join(tests)))
    return "\n".join(["| | |", "|:---|:---|", *(f"| {what} | {text} |" for what, text in facts)])


def _prefix(kind: str, name: str, card: dict[str, Any]) -> str:
    if card.get("role") == "wrapper":
        return f"{name}."
    return {"priors": "prior.", "data": "data.", "defenses": f"{name}."}.get(kind, "")


def _settings(plugin: type, meanings: dict[str, str], prefix: str) -> str:
    known = settings_of(plugin)
    if not known:
        return "None."
    hints = typing.get_type_hints(plugin)
    rows = ["| `--set` | type | default | meaning |", "|:---|:---|:---|:---|"]
    for name, item in known.items():
        default = "required" if item.default is dataclasses.MISSING else f"`{_value(item.default)}`"
        rows.append(f"| `{prefix}{name}` | {_type(hints[name])} | {default} | {cell(meanings.get(name, ''))} |")
    return "\n".join(rows)


def _meanings(plugin: type) -> dict[str, str]:
    """What each setting means; what a class does not say its base does."""
    meanings: dict[str, str] = {}
    for one in reversed(plugin.__mro__):
        meanings |= parse(one.__doc__).items("Args")
    return meanings


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " \\| ".join(_type(one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        return f"{_type(inner[0])}, ..." if inner[-1] is Ellipsis else ", ".join(_type(one) for one in inner)
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(_value(one) for one in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _presets(kind: str, name: str) -> list[str]:
    presets = {preset: values for preset, values in registry.presets(kind, name).items() if preset != "default"}
    if not presets:
        return []
    changed = sorted({field for values in presets.values() for field in values})
    told = (
        "What each preset changes; `paper` is the published setting, `quick` fits in CPU minutes, `legacy` follows "
        "the authors' code where it differs from their paper."
    )
    if not changed:
        return ["## Presets", f"{', '.join(f'`{preset}`' for preset in presets)}: all are the defaults above."]
    defaults = registry.defaults(kind, name) if "wrapper" not in str(registry.card(kind, name).get("role")) else {}
    rows = [f"| setting | {' | '.join(f'`{preset}`' for preset in presets)} |", "|:---|" + ":---|" * len(presets)]
    for field in changed:
        values = [f"`{_value(one[field])}`" if field in one else _default(defaults, field) for one in presets.values()]
        rows.append(f"| `{field}` | {' | '.join(values)} |")
    return ["## Presets", told, "\n".join(rows)]


def _default(defaults: dict[str, Any], field: str) -> str:
    return f"{_value(defaults[field])}" if field in defaults else "default"


def _declared(module: types.ModuleType) -> list[str]:
    """What a metric's numbers are called and mean, from their declarations."""
    rows = ["| column | unit | range | leakage | needs |", "|:---|:---|:---|:---|:---|"]
    rows += [
        f"| `{one.name}`: {cell(one.summary)} | {cell(one.unit.words)} | {cell(one.range)} | {one.direction.words} "
        f"| {cell('; '.join(need.words for need in one.needs))} |"
        for one in getattr(module, "METRICS", ())
    ]
    return ["## Numbers", "\n".join(rows)] if len(rows) > 2 else []


def _functions(module: types.ModuleType) -> list[str]:
    """Public functions and classes of a metric's or model's module, with signatures."""
    parts: list[str] = []
    for name in getattr(module, "__all__", []):
        member = getattr(module, name)
        if getattr(member, "__module__", None) != module.__name__ or not callable(member):
            continue
        doc = parse(member.__doc__)
        parts += [f"### `{name}`", f"```python\n{signature(name, member)}\n```", prose(doc.body)]
        for section in ("Args", "Returns", "Raises"):
            if items := doc.items(section):
                parts.append("\n".join(f"- **{key or section.lower()}**: {prose(text)}" for key, text in items.items()))
    return ["## Functions", *parts] if parts else []


@cache
def _rows(file: str) -> list[dict[str, str]]:
    path = ROOT / "results" / "reference" / file
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _percent(row: dict[str, str], key: str) -> str:
    value, low, high = (row.get(part) or "" for part in (key, key.replace("@", "_low@"), key.replace("@", "_high@")))
    if key.count("@") == 0:
        low, high = row.get(f"{key}_low") or "", row.get(f"{key}_high") or ""
    if not value or math.isnan(float(value)):
        return ""
    ends = f" [{100 * float(low):.0f}, {100 * float(high):.0f}]" if low and high else ""
    return f"{100 * float(value):.1f}{ends}"


def _measured(kind: str, name: str) -> list[str]:
    """What reference runs measured: for orientation whether one's own number is of the expected size."""
    if kind == "attacks":
        rows = [row for row in _rows("attacks/tables.csv") if _base(row["attack"]) == name]
        if not rows:
            return []
        lines = ["| attack | target | open-set, % | n | seconds |", "|:---|:---|---:|---:|---:|"]
        lines += [
            f"| {cell(row['attack_label'])} | {cell(row['target_label'])} | {_percent(row, 'open_top1@resnet')} "
            f"| {row['n'].removesuffix('.0')} | {_seconds(row)} |"
            for row in rows
        ]
        told = "`mibench attack --method all,ppa+eot,ppa+align,ppa+ppdg`, presets `quick`, seed 0, judged by `resnet`:"
    elif kind == "defenses":
        every = _rows("defenses/tradeoff.csv")
        rows = [row for row in every if row["family"].split(" ")[0] == name]
        if not rows:
            return []
        if name != "none":
            rows = [
                row for row in every if row["family"] == "none" and row["base"] in {one["base"] for one in rows}
            ] + rows
        lines = ["| defense | natural accuracy, % | white box, % | black box, % | label only, % |"]
        lines += ["|:---|---:|---:|---:|---:|"]
        access = ("natural_accuracy", "white_box", "black_box", "label_only")
        lines += [
            f"| {cell(row['defense'])} ({cell(row['base'])}) | "
            + " | ".join(_percent(row, key) for key in access)
            + " |"
            for row in rows
        ]
        told = "`mibench run defenses`, three seeds, 50 people; open-set accuracy of the strongest attack by `resnet`:"
    else:
        return []
    return ["## Numbers of a reference run", told, "\n".join(lines), WARNING]


def _base(attack: str) -> str:
    """`ppa+eot` is listed under its wrapper."""
    return attack.split("+")[-1]


def _seconds(row: dict[str, str]) -> str:
    value = next((row[key] for key in ("cpu_seconds", "seconds") if row.get(key)), "")
    return f"{float(value):.0f}" if value else ""
