"""From what was typed to runs: settings, data sets, targets, evaluation models, attacks with their floors, scores."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from mibench import models, runs
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.plugins.settings import parse_settings
from mibench.runs import Run
from mibench.runtime import engine
from mibench.runtime.errors import UserError, unknown
from mibench.stages import artifacts, import_images, invert, score, train_prior, train_target

__all__ = [
    "attack_sets",
    "choose_data",
    "choose_evaluators",
    "choose_methods",
    "data_of",
    "defense_sets",
    "find_targets",
    "floors",
    "plan_attack",
    "plan_floors",
    "plan_images",
    "plan_score",
    "plan_target",
    "prepare",
    "prior_preset",
    "queries",
    "split_sets",
]


def split_sets(sets: list[str] | None, main: str, prefixes: list[str]) -> dict[str, dict[str, str]]:
    """`--set` values by what they belong to: `prefix.field=value`, or a bare field for the command's main subject."""
    found: dict[str, dict[str, str]] = {name: {} for name in [main, *prefixes]}
    for field, value in parse_settings(sets or []).items():
        owner, dot, name = field.partition(".")
        if not dot:
            if main == "none":
                shown = ", ".join(f"{prefix}.{field}" for prefix in prefixes)
                raise UserError(f"--set {field}=...: without a defense it needs a prefix, one of {shown}")
            owner, name = main, field
        if owner not in found:
            raise unknown("prefix of --set", owner, found)
        found[owner][name] = value
    return found


def prepare(device: str, precision: str) -> tuple[str, str]:
    """The device and precision that `auto` stands for here."""
    return engine.device_name(device), engine.resolve(device, precision).precision


def choose_data(name: str, settings: dict[str, str]) -> Choice:
    """The data set with its settings."""
    return registry.configure("data", name, settings=settings)


def data_of(target: Run) -> Choice:
    """The data set a target was trained on."""
    asked = target.inputs["dataset"]
    return registry.configure("data", asked["name"], settings=asked["settings"])


def choose_defenses(text: str, settings: dict[str, dict[str, str]]) -> list[Choice]:
    """`re+bido` with the settings of each."""
    chosen = [name.strip() for name in text.split("+")]
    if len(set(chosen)) != len(chosen):
        raise UserError(f"--defense {text} names a defense twice")
    if "none" in chosen and len(chosen) > 1:
        raise UserError(f"--defense {text}: 'none' cannot be combined")
    for one, other in itertools.permutations(chosen, 2):
        why = registry.card("defenses", one).get("conflicts", {}).get(other)
        if why:
            raise UserError(f"--defense {text}: {one} and {other} cannot be combined: {why}")
    return [registry.configure("defenses", name, settings=settings.get(name, {})) for name in chosen]


def choose_evaluators(
    root: Path, data: Choice, architecture: str, given: str | None, precision: str, training: dict[str, str]
) -> list[Run]:
    """The runs of the evaluation models for a target's architecture."""
    chosen = [name.strip() for name in given.split(",")] if given else train_target.evaluator_families(architecture)
    names = list(dict.fromkeys(chosen))
    if len(names) < 2 or len({models.family(name) for name in names}) < 2:
        raise UserError(f"--evaluators needs at least two models of different families, got {', '.join(names)}")
    for name in names:
        train_target.require_other_family(name, architecture)
    return [train_target.plan_evaluator(root, data, name, precision, training) for name in names]


def plan_target(
    root: Path,
    data: Choice,
    model: str,
    defense: str,
    sets: dict[str, dict[str, str]],
    seed: int,
    precision: str,
    pretrained: str | None = None,
) -> Run:
    """The run of one target; it starts from a public backbone where a defense must and nothing else was asked for."""
    if seed == train_target.EVALUATOR_SEED:
        raise UserError(f"seed {seed} is the evaluation models'; a target needs another one")
    chosen = choose_defenses(defense, sets)
    if pretrained is None:
        pretrained = "public" if any(choice.plugin.start == "public" for choice in chosen) else "none"
    if pretrained not in get_args(train_target.Pretrained):
        raise unknown("start of a target", pretrained, get_args(train_target.Pretrained))
    start = cast(train_target.Pretrained, pretrained)
    return train_target.plan(root, data, model, chosen, seed, precision, sets["training"], start)


def defense_sets(sets: list[str] | None, defense: str, extra: list[str]) -> dict[str, dict[str, str]]:
    """`--set` for a stack of defenses: bare fields belong to the only or first one."""
    chosen = [name.strip() for name in defense.split("+")]
    for name in chosen:
        if name not in registry.names("defenses"):
            raise unknown("defense", name, registry.names("defenses"))
    return split_sets(sets, chosen[0], [*chosen[1:], "data", "training", *extra])


def choose_methods(text: str, preset: str, settings: dict[str, str]) -> list[str]:
    """`gmi,ppa+eot` or `all,ppa+eot`: the attacks (all but floors and wrappers); names and settings are checked.

    `all` leaves out attacks that have no such preset: who is in no paper has no `paper`.

    Raises:
        UserError: For an unknown name or setting, or settings that are for one of several attacks.
    """
    every = [name for name, card in registry.cards("attacks").items() if card.get("role", "attack") == "attack"]
    every = [name for name in every if preset in registry.presets("attacks", name)] or every
    named = [name.strip() for name in text.split(",")]
    chosen = list(dict.fromkeys(one for name in named for one in (every if name == "all" else [name])))
    if len(chosen) > 1 and settings:
        raise UserError(f"--set {next(iter(settings))}=... is for one attack; --method names {len(chosen)}")
    for name in chosen:
        registry.configure("attacks", name, preset, settings)
    return chosen


def attack_sets(sets: list[str] | None, method: str, extra: list[str]) -> dict[str, dict[str, str]]:
    """`--set` for an attack: bare fields belong to it, `eot.copies` to a wrapper around it."""
    around = registry.wrappers(method) if "," not in method else []
    given = split_sets(sets, "attack", [*around, *extra])
    for one in around:
        given["attack"] |= {f"{one}.{field}": value for field, value in given.pop(one).items()}
    return given


def find_targets(root: Path, data: Choice, wanted: list[str] | None, exact: bool) -> list[Run]:
    """The named targets, or every finished one of the data set."""
    if wanted:
        found = [runs.find(root, one) for one in wanted]
        for run in found:
            if run.kind != "targets":
                raise UserError(f"{run.label} is not a target; --target takes one of {root}/targets")
        return found
    found = [
        run
        for run in runs.finished(root, "targets")
        if run.spec["dataset"]["name"] == data.name and (not exact or run.spec["dataset"] == data.spec())
    ]
    if not found:
        raise UserError(
            f"no trained target of data set '{data.name}' in {root}; run first: mibench train --dataset {data.name}"
        )
    return found


def plan_attack(
    target: Run,
    method: str,
    preset: str,
    settings: dict[str, Any],
    prior: str | None,
    prior_settings: dict[str, str],
    seed: int,
    precision: str,
    identities: int | None,
    budget: int | None,
) -> Run:
    """The inversion of one target, with the prior it needs."""
    attack = registry.configure("attacks", method, preset, settings)
    if identities is not None and target.done and identities > (known := target.read("metrics.json")["classes"]):
        raise UserError(f"--identities {identities}: the target {target.label} knows {known} identities")
    wanted = prior or registry.card("attacks", method)["prior"]
    recipe = registry.configure("priors", wanted, prior_preset(wanted, preset), prior_settings)
    card, asks = registry.card("attacks", method), recipe.plugin.target_access
    if card["role"] == "attack" and asks is not None and asks > invert.ACCESS[card["access"]]:
        raise UserError(
            f"{method} is granted {card['access']} access; the prior '{wanted}' learns from more of the target "
            f"({asks.name.lower()}): choose another with --prior, or leave it out for {card['prior']}"
        )
    parent = train_prior.plan(target.root, data_of(target), recipe, target, seed, precision)
    return invert.plan(target.root, target, parent, attack, seed, precision, identities, budget)


def prior_preset(name: str, preset: str) -> str:
    """An attack's preset is its prior's too; where the prior has none of that name it is as published, if anything."""
    offered = registry.presets("priors", name)
    return next(one for one in (preset, "paper", "default") if one in offered)


def floors() -> list[str]:
    """The attacks that are floors, by their cards."""
    return [name for name, card in registry.cards("attacks").items() if card["role"] == "floor"]


def plan_floors(inversion: Run, seed: int, precision: str, names: Sequence[str] | None = None) -> list[Run]:
    """The floors an attack's numbers stand on (all, or those named): same target, prior and number of images."""
    target, prior = inversion.parents["target"], inversion.parents["prior"]
    assert isinstance(target, Run) and isinstance(prior, Run)
    asked = inversion.spec["attack"]["settings"]
    found = []
    for name in floors() if names is None else names:
        settings = {"images": asked["images"]}
        if name == "prior_search" and "pool" in asked:
            settings["pool"] = asked["pool"]
        if name == "random_search":
            if inversion.spec["access"] != "black_box":
                continue
            settings["queries"] = queries(inversion)
        if name == "public_search":
            found.append(
                plan_attack(
                    target, name, "default", settings, None, {}, seed, precision, inversion.spec["identities"], None
                )
            )
        else:
            attack = registry.configure("attacks", name, "default", settings)
            found.append(invert.plan(target.root, target, prior, attack, seed, precision, inversion.spec["identities"]))
    return found


def informed(method: str, settings: dict[str, Any], target: Run) -> list[tuple[str, dict[str, Any]]]:
    """What an attacker tries who knows the target's defenses, besides the attack itself; white box only.

    Every entry is an attack and its settings. What an attack cannot do (it has no such setting) is left out.
    """
    if registry.card("attacks", method)["access"] != "white_box":
        return []
    changes = ["+align"]
    for item in target.spec["defenses"]:
        declared = registry.card("defenses", item["name"]).get("adaptive", {})
        changes += [change.format(**item["settings"]) for change in declared]  # he knows the defense's settings too
    known = registry.defaults("attacks", method)
    found: list[tuple[str, dict[str, Any]]] = []
    for change in dict.fromkeys(changes):
        if change.startswith("+"):
            wrapper, *words = change[1:].split()
            if wrapper in registry.wrappers(method):
                continue
            whole = f"{method}+{wrapper}"
            # Two views of each image and half as many steps: as many images as the attack alone asks for.
            views = {"copies": "2", "select": "false"} | parse_settings(words)
            offered = registry.defaults("attacks", whole)
            own = {f"{wrapper}.{key}": value for key, value in views.items() if f"{wrapper}.{key}" in offered}
            found.append((whole, settings | own))
        else:
            key, _, value = change.partition("=")
            if key in known:
                found.append((method, settings | {key: value}))
    return found


def queries(inversion: Run) -> int:
    """What an attack asks of the target for one identity, shared queries included."""
    target, prior = inversion.parents["target"], inversion.parents["prior"]
    assert isinstance(target, Run) and isinstance(prior, Run)
    asked = inversion.spec["attack"]
    attack = registry.configure("attacks", asked["name"], settings=asked["settings"]).plugin
    # How many queries it asks does not depend on what the prior draws, so that an untrained one will do.
    data = artifacts.open_dataset(target.inputs["dataset"])
    recipe = registry.configure("priors", prior.spec["prior"]["name"], settings=prior.spec["prior"]["settings"]).plugin
    untrained = recipe.build(data.image_shape, len(data.classes), data.public)
    cost = attack.cost(untrained, len(data.public))
    asks = cost.queries + cost.shared_queries
    return min(asks, inversion.spec["budget"] or asks)


def plan_images(root: Path, folder: Path, target: str | None, name: str | None) -> Run:
    """The inversion that a folder of another program's images stands for.

    Raises:
        UserError: If no target is named, or see `import_images.plan`.
    """
    known = [run.name + "-" + run.id for run in runs.finished(root, "targets")]
    if target is None:
        offered = f"one of {', '.join(known[:6])}" if known else "train one first: mibench train"
        raise UserError(f"--images needs the target that was attacked; name it with --target: {offered}")
    found = runs.find(root, target)
    if found.kind != "targets":
        raise UserError(f"{found.label} is not a target; --target takes one of {root}/targets")
    return import_images.plan(root, found, folder, name)


def plan_score(inversion: Run, evaluators: str | None, precision: str, training: dict[str, str]) -> Run:
    """The score of one inversion."""
    target = inversion.parents["target"]
    assert isinstance(target, Run)
    judges = choose_evaluators(target.root, data_of(target), target.spec["model"], evaluators, precision, training)
    return score.plan(target.root, inversion, judges, precision)
