"""A page for each suite that repeats a published protocol: what is run, what differs, what was published; read from the
suite, the recipe, the cards and the docstrings, so that a page cannot be out of date."""

import inspect
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from docstrings import cell, parse, prose

from mibench.experiments import suites
from mibench.experiments.experiment import Attacker, Experiment, Target, Targets
from mibench.experiments.plan import cost_of, plan
from mibench.experiments.published import Published, published
from mibench.plugins import registry
from mibench.priors.imported.published import PUBLISHED
from mibench.report.naming import defense_label, settings_text
from mibench.runtime.absent import WEIGHTS, as_published
from mibench.training import recipes

__all__ = ["NAMES", "index", "page"]

NAMES = [name for name in suites.suites() if published([name])]
"""The suites that have a page."""

LEAD = """# The papers' protocols

The rows of the papers as suites: the authors' data, splits, networks, recipes, priors, numbers of people, candidates
and steps, and beside each row what was published of it, where that is known. `mibench report` shows measured,
published, difference, and whether the interval of the measured number holds the published one.

None of the data and weights is shipped, so that none of these suites has been run for this documentation: **no number
on these pages was measured by mibench.** What differs from the authors' code stands on each page; a row is as alike as
that says.

| suite | what | data | published rows | of which known |
|:---|:---|:---|---:|---:|
"""

WORDS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
"""By suite: what is written by hand."""

READING = """## How to read it

`mibench report` puts the published numbers into the table "Beside what papers published". A published number has an
error of its own, of one training and as a rule one attack, that papers do not give: one inside the measured interval
agrees, one outside need not contradict. Papers' attack accuracy is `closed_top1` by the first evaluation model, which
counts images that please the judge and no human; the headline of mibench is
[likeness](../reading.md), and stands beside it. Compare defenses where they cost the same natural accuracy.
"""


def index() -> str:
    """The list of all of them."""
    rows = []
    for name in NAMES:
        parts, told = _read(name), published([name])
        data = ", ".join(dict.fromkeys(one.dataset.name for one in parts if one.dataset))
        known = sum(one.value is not None for one in told)
        rows.append(f"| [`{name}`]({name}.md) | {cell(parts[0].title)} | {data} | {len(told)} | {known} |")
    return LEAD + "\n".join(rows) + "\n"


@cache
def _read(name: str) -> list[Experiment]:
    with as_published():
        return suites.read(name)


def page(name: str) -> str:
    """The page of one suite."""
    with as_published():
        parts = [
            f"# `{name}`",
            f"{_read(name)[0].title}.\n\n{WORDS[name]['about']}",
            "## What is run",
            "\n".join(_sweeps(name)),
            "\n".join(_commands(name)),
            "## What is needed",
            "\n".join(_files(name)),
            "## Cost",
            "\n".join(_cost(name)),
            "## What differs from the authors' code",
            "\n".join(_differs(name)),
            "## What was published",
            "\n".join(_rows(published([name]))),
            READING,
        ]
    return "\n\n".join(parts)


def _sweeps(name: str) -> Iterator[str]:
    yield "| sweep | target | defenses | attacks | prior | people | evaluation models |"
    yield "|:---|:---|:---|:---|:---|:---|:---|"
    named = [part.get("name", "") for part in suites.parsed(name)[2].get("sweep", [{}])]
    for sweep, one in zip(named, _read(name), strict=True):
        assert isinstance(one.subject, Targets) and one.dataset is not None
        each = one.subject.each
        models = ", ".join(f"`{model}`" for model in dict.fromkeys(target.model for target in each))
        defenses = ", ".join(f"`{label}`" for label in dict.fromkeys(map(_defended, each)))
        attacks = ", ".join(f"`{_attack(attacker)}`" for attacker in one.attackers)
        priors = ", ".join(dict.fromkeys(_prior(attacker.on(one.dataset.name)) for attacker in one.attackers))
        people = one.identities or f"all {one.dataset.shape.classes}"
        judges = ", ".join(f"`{judge}`" for judge in one.evaluators.names or ())
        yield f"| {sweep or '(all)'} | {models} | {defenses} | {attacks} | {priors} | {people} | {judges} |"
    floors = sorted({floor for one in _read(name) for floor in one.floors})
    shown = ", ".join(f"[`{floor}`](../attacks/{floor}.md)" for floor in floors)
    yield (
        "\nAttacks and priors have the presets of the papers; settings in the table are those that a paper has "
        f"otherwise. Each attack stands between floors ({shown}) and a ceiling, real pictures that were held out."
    )


def _defended(target: Target) -> str:
    return defense_label({"defenses": [one.spec() for one in target.defenses if one.name != "none"]})


def _attack(attacker: Attacker) -> str:
    asked, plain = attacker.attack, registry.configure("attacks", attacker.attack.name, attacker.attack.preset)
    usual, given = plain.spec()["settings"], asked.spec()["settings"]
    preset = "" if asked.preset == "paper" else f" ({asked.preset})"
    return f"{asked.name} {settings_text({k: v for k, v in given.items() if v != usual[k]})}".strip() + preset


def _prior(attacker: Attacker) -> str:
    chosen = attacker.prior
    if chosen.plugin.imported:
        crop = f", centre {chosen.plugin.crop}" if chosen.plugin.crop else ""
        return f"`{chosen.plugin.name}.pkl`{crop}"
    return f"[`{chosen.name}`](../priors/{chosen.name}.md)"


def _commands(name: str) -> Iterator[str]:
    yield "From the download to the report:\n"
    yield "    export MIBENCH_DATA=DIR                       # the data sets, and weights in DIR/weights"
    yield f"    {f'mibench run {name} --check':<46}# everything that is missing, and where to get it"
    for data, fields in _datasets(name):
        words = " ".join(["mibench data prepare", data, *(f"--set data.{key}={value}" for key, value in fields)])
        yield f"    {words}"
    sweeps = dict.fromkeys(part["name"] for part in suites.parsed(name)[2].get("sweep", []) if "name" in part)
    if sweeps:
        yield f"    {f'mibench run {name}:{next(iter(sweeps))}':<46}# one sweep; it resumes where it was stopped"
    yield f"    {f'mibench run {name}':<46}# all of it"
    yield "    mibench report results/"


def _datasets(name: str) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Every preparation that the suite needs, once."""
    found = []
    for one in _read(name):
        assert one.dataset is not None
        plain = registry.configure("data", one.dataset.name).plugin
        given = tuple(
            (key, str(value).lower() if isinstance(value, bool) else value)
            for key, value in vars(one.dataset.plugin).items()
            if value != getattr(plain, key)
        )
        found.append((one.dataset.name, given))
    return list(dict.fromkeys(found))


def _files(name: str) -> Iterator[str]:
    yield "| file below `MIBENCH_DATA` | what | from | licence |"
    yield "|:---|:---|:---|:---|"
    rows = []
    for one in _read(name):
        assert one.dataset is not None
        for folder, need in one.dataset.plugin.needed():
            names = " or ".join(f"`{folder}/{one}`" for one in need.names)
            rows.append(f"| {names} | {cell(need.what)} | {cell(need.source)} | {cell(need.licence)} |")
        for attacker in one.attackers:
            if attacker.prior.plugin.imported:
                file = f"{attacker.prior.plugin.name}.pkl"
                known = PUBLISHED[file]
                what = f"StyleGAN2 of {known.resolution} px, {known.size}"
                rows.append(f"| `{WEIGHTS}/{file}` | {what} | <{known.source}> | {cell(known.licence)} |")
    for file, need in suites.needs(name).items():
        rows.append(f"| `{WEIGHTS}/{file}` | {cell(need['size'])} | <{need['source']}> | {cell(need['licence'])} |")
    yield from dict.fromkeys(rows)
    yield (
        "\nCrops and splits: [the papers' data sets](../datasets.md). Generators: [StyleGAN2 priors](../stylegan.md). "
        "Networks that start from ImageNet take its weights from torchvision's hub or its cache: [networks, recipes, "
        "weights](../networks.md)."
    )


def _cost(name: str) -> Iterator[str]:
    runs = {run.id: run for one in _read(name) for run in plan(one, Path("nowhere"))}
    todo = dict(runs)
    waiting = list(runs.values())
    while waiting:
        for parent in waiting.pop().ancestors():
            if parent.id not in todo:
                todo[parent.id] = parent
                waiting.append(parent)
    counts = {kind: sum(run.kind == kind for run in todo.values()) for kind in ("targets", "evaluators", "priors")}
    attacks = sum(run.kind == "inversions" for run in todo.values())
    yield (
        f"{counts['targets']} targets, {counts['evaluators']} evaluation models, {counts['priors']} priors and "
        f"{attacks} attacks (floors included). What each attack asks of the target, in images:\n"
    )
    yield "| attack | answers a person | gradients a person | answers for all |"
    yield "|:---|---:|---:|---:|"
    rows = []
    for one in _read(name):
        assert one.dataset is not None
        for attacker in one.attackers:
            cost = cost_of(attacker.on(one.dataset.name), one.dataset)
            figures = (cost.queries, cost.gradient_images, cost.shared_queries)
            rows.append(f"| `{_attack(attacker)}` | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
    yield from dict.fromkeys(rows)
    yield ""
    yield f"How long that takes on a machine is measured there: `mibench run {name} --check`."


def _differs(name: str) -> Iterator[str]:
    for line in WORDS[name]["differs"]:
        yield f"- {line}"
    parts = _read(name)
    shown: list[tuple[str, str]] = []
    for one in parts:
        assert isinstance(one.subject, Targets) and one.dataset is not None
        shown.append(("data", one.dataset.name))
        shown += [("defenses", choice.name) for target in one.subject.each for choice in target.defenses]
        for attacker in one.attackers:
            shown += [("attacks", part) for part in attacker.attack.name.split("+")]
            shown.append(("priors", attacker.on(one.dataset.name).prior.name))
    for recipe in dict.fromkeys(target.recipe for one in parts for target in _each(one) if target.recipe):
        known = recipes.find(recipe)
        yield f"- **recipe [`{recipe}`](../networks.md)**: {'; '.join(cell(line) for line in known.differs)}"
    for kind, plugin in dict.fromkeys(shown):
        for text in _told(kind, plugin):
            yield f"- **{registry.SINGULAR[kind]} [`{plugin}`](../{kind}/{plugin}.md)**: {cell(text)}"


def _each(one: Experiment) -> tuple[Target, ...]:
    assert isinstance(one.subject, Targets)
    return one.subject.each


def _told(kind: str, name: str) -> Iterator[str]:
    """What the docstrings of a plug-in say under Differs."""
    module = import_module(registry.module_of(kind, name))
    plugin = registry.load(kind, name)
    for text in dict.fromkeys((module.__doc__, inspect.getdoc(plugin))):
        doc = parse(text)
        if "Differs" in doc.sections:
            yield doc.sections["Differs"]
        for meaning in doc.items("Args").values():
            if "Differs: " in meaning:
                yield meaning.partition("Differs: ")[2]


def _rows(told: list[Published]) -> Iterator[str]:
    yield "Percent. A dash is a number that is not known here: it was not published, or nobody could check it.\n"
    yield "| target | defense | attack | metric | published | source |"
    yield "|:---|:---|:---|:---|---:|:---|"
    notes: dict[str, int] = {}
    for one in told:
        shown = "-" if one.value is None else f"{one.value:.2f}"
        mark = f" [{notes.setdefault(one.note, len(notes) + 1)}]" if one.note else ""
        source = f"[{one.source.removeprefix('https://').partition('/')[2] or one.source}]({one.source})"
        attack = f"`{one.attack}`" + (f" ({one.prior})" if one.prior else "") if one.attack else ""
        yield f"| `{one.model}` | `{one.defense}` | {attack} | `{one.metric}` | {shown}{mark} | {source} |"
    yield ""
    yield from (f"{number}. {prose(note)}" for note, number in notes.items())
