"""Names and `field=value`, as typed, become typed choices here and are never text again.

Defenses and attacks of a grid are named with their settings behind them: `re location=torus`, `ppa steps=100`.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from mibench import models
from mibench.experiments.experiment import Attacker, Evaluators, Target
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.plugins.settings import named, parse_settings, typed_settings
from mibench.runtime.errors import UserError, unknown
from mibench.stages import import_prior, train_target
from mibench.stages.train_target import Pretrained
from mibench.training import Training, recipes
from mibench.zoo import PREFIX, Shelf

__all__ = [
    "FINISHED",
    "Sets",
    "attack_sets",
    "defense_sets",
    "everybody",
    "named",
    "prior_preset",
    "read_attackers",
    "read_evaluators",
    "read_floors",
    "read_stack",
    "read_target",
    "split_sets",
    "variants",
]

FINISHED = "evaluators/"
"""What the reference to a finished evaluation model begins with: the folder of the results that it lies in."""

Sets = Mapping[str, Mapping[str, Any]]
"""Settings by what they belong to: `training`, `data`, `prior`, a defense's name."""


def split_sets(sets: Sequence[str] | None, main: str, prefixes: Sequence[str]) -> dict[str, dict[str, str]]:
    """`--set` values by what they belong to: `prefix.field=value`, or a bare field for the command's main subject."""
    owners: dict[str, dict[str, str]] = {name: {} for name in [main, *prefixes]}
    for key, value in parse_settings(list(sets or ())).items():
        owner, dot, name = key.partition(".")
        if not dot:
            if main == "none":
                shown = ", ".join(f"{prefix}.{key}" for prefix in prefixes)
                raise UserError(f"--set {key}=...: without a defense it needs a prefix, one of {shown}")
            owner, name = main, key
        if owner not in owners:
            raise unknown("prefix of --set", owner, owners)
        owners[owner][name] = value
    return owners


def defense_sets(sets: Sequence[str] | None, defense: str, prefixes: Sequence[str]) -> dict[str, dict[str, str]]:
    """`--set` for a stack of defenses: bare fields belong to the only or first one."""
    chosen = [name.strip() for name in defense.split("+")]
    for name in chosen:
        if name not in registry.names("defenses"):
            raise unknown("defense", name, registry.names("defenses"))
    return split_sets(sets, chosen[0], [*chosen[1:], *prefixes])


def attack_sets(sets: Sequence[str] | None, method: str, prefixes: Sequence[str]) -> dict[str, dict[str, str]]:
    """`--set` for an attack: bare fields belong to it, `eot.copies` to a wrapper around it."""
    around = registry.wrappers(method) if "," not in method else []
    owners = split_sets(sets, "attack", [*around, *prefixes])
    for one in around:
        owners["attack"] |= {f"{one}.{key}": value for key, value in owners.pop(one).items()}
    return owners


def read_stack(text: str, settings: Sets) -> tuple[Choice, ...]:
    """`re+bido` with the settings of each.

    Raises:
        UserError: A defense is named twice, or two of them (or one and `none`) cannot be combined.
    """
    chosen = [name.strip() for name in text.split("+")]
    if len(set(chosen)) != len(chosen):
        raise UserError(f"--defense {text} names a defense twice")
    if "none" in chosen and len(chosen) > 1:
        raise UserError(f"--defense {text}: 'none' cannot be combined")
    for one, other in itertools.permutations(chosen, 2):
        why = registry.card("defenses", one).get("conflicts", {}).get(other)
        if why:
            raise UserError(f"--defense {text}: {one} and {other} cannot be combined: {why}")
    return tuple(registry.configure("defenses", name, settings=dict(settings.get(name, {}))) for name in chosen)


def read_target(
    model: str, defense: str, settings: Sets, pretrained: str | None = None, recipe: str | None = None
) -> Target:
    """A target; it starts from a public backbone where a defense must, else from what its published recipe says, where
    nothing else is asked for.

    Args:
        settings: Of each defense, and of the `training`.
        recipe: A published recipe by name.

    Raises:
        UserError: For whatever cannot be built or combined; nothing has been trained by then.
    """
    defenses = read_stack(defense, settings)
    known = recipes.find(recipe, model) if recipe else None
    if pretrained is None:
        pretrained = known.starts_from(model).value if known else "none"
        if pretrained == "none" and any(choice.plugin.start == "public" for choice in defenses):
            pretrained = "public"
    if pretrained not in get_args(Pretrained):
        raise unknown("start of a target", pretrained, get_args(Pretrained))
    models.family(model)
    train_target.require_compatible(model, [one for one in defenses if one.name != "none"], pretrained)
    training = typed_settings(Training, "training", settings.get("training", {}))
    return Target(model, defenses, cast(Pretrained, pretrained), training, recipe)


def read_evaluators(names: str | None, given: Mapping[str, Mapping[str, Any]], recipe: str | None = None) -> Evaluators:
    """`resnet,ir`, or those that suit the target, with their training and that of the verifiers.

    Args:
        names: Architectures of evaluation models, comma-separated; `evaluators/NAME` is a finished one, such as
            published weights that were brought in.
        given: Settings by owner; those of `evaluator` and `verifier` are read.
        recipe: A published recipe by name, for those that it was published for.

    Raises:
        UserError: For an unknown name or setting, or fewer than two families.
    """
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(","))) if names else None
    families = {name if name.startswith(FINISHED) else models.family(name) for name in chosen or ()}
    if chosen is not None and len(families) < 2:
        raise UserError(f"--evaluators needs at least two models of different families, got {', '.join(chosen)}")
    own, verifiers = (typed_settings(Training, owner, given.get(owner, {})) for owner in ("evaluator", "verifier"))
    return Evaluators(chosen, own, verifiers, recipe)


def read_attackers(
    method: str, preset: str, settings: Mapping[str, Any], prior: str | None, prior_settings: Mapping[str, Any]
) -> tuple[Attacker, ...]:
    """`gmi,ppa+eot` or `all,ppa+eot`: the attacks (all that have this preset, no floors or wrappers) with their priors.

    Without a prior each attack gets its card's; where that one is shipped and draws one data set only, also what it
    names to be learnt `elsewhere`.

    Raises:
        UserError: For an unknown name or setting, settings that are for one of several attacks, or a prior that an
            attack cannot use.
    """
    named = registry.attacks("attack")
    every = [name for name in named if preset in registry.presets("attacks", name)] or named
    listed = [name.strip() for name in method.split(",")]
    chosen = list(dict.fromkeys(one for name in listed for one in (every if name == "all" else [name])))
    if len(chosen) > 1 and settings:
        raise UserError(f"--set {next(iter(settings))}=... is for one attack; --method names {len(chosen)}")
    attacks = [registry.configure("attacks", name, preset, dict(settings)) for name in chosen]
    made = []
    for attack in attacks:
        wanted = prior or registry.card("attacks", attack.name)["prior"]
        other = None if prior else registry.card("priors", wanted).get("elsewhere")
        if other is None:
            made.append(Attacker(attack, _prior(wanted, preset, prior_settings)))
            continue
        own = {key: value for key, value in prior_settings.items() if key in registry.defaults("priors", wanted)}
        misplaced = next((key for key in prior_settings if key not in own), "")
        stand_in = _prior(other, preset, prior_settings)
        made.append(Attacker(attack, _prior(wanted, preset, own), stand_in, misplaced))
    return tuple(made)


def _prior(name: str, preset: str, settings: Mapping[str, Any]) -> Choice:
    """A prior by its name, a file or run of an imported one, or `zoo:NAME`: with the settings of that entry, so that on
    its data it is that entry."""
    if import_prior.is_reference(name):
        return import_prior.choose(Path(name), settings)
    if name.startswith(PREFIX):
        run = Shelf().find(name).run
        if run.kind != "priors":
            raise UserError(f"{name} is no prior but one of the {run.kind}")
        learnt = run.spec["prior"]
        return registry.configure("priors", learnt["name"], "default", {**learnt["settings"], **settings})
    return registry.configure("priors", name, prior_preset(name, preset), dict(settings))


def prior_preset(name: str, preset: str) -> str:
    """An attack's preset is its prior's too; where the prior has none of that name it is as published, if anything."""
    offered = registry.presets("priors", name)
    return next(one for one in (preset, "paper", "default") if one in offered)


def read_floors(names: Iterable[str] = ("all",)) -> tuple[str, ...]:
    """Floors by name, checked; `all` is every one."""
    known = registry.attacks("floor")
    chosen = [one for name in names for one in (known if name == "all" else [name])]
    for name in chosen:
        if name not in known:
            raise unknown("floor", name, known)
    return tuple(dict.fromkeys(chosen))


def variants(text: str, strengths: str | Sequence[Any]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """The stacks that one entry of `defenses` stands for: the strength of its first defense goes over the grid."""
    name, given = named(text)
    first = name.split("+")[0]
    sets: dict[str, dict[str, Any]] = dict(
        defense_sets([f"{key}={value}" for key, value in given.items()], name, ["training"])
    )
    card = registry.card("defenses", first)
    strength = card.get("strength")
    if strength is None or strengths == "default" or strength in sets[first]:
        return [(name, sets)]
    values = card["grid"] if isinstance(strengths, str) else strengths
    return [(name, {**sets, first: {**sets[first], strength: value}}) for value in values]


def everybody(model: str, pretrained: str | None) -> list[str]:
    """Every defense that can change this architecture and start from such a network, `none` first."""
    able = []
    for name in registry.names("defenses"):
        choice = registry.configure("defenses", name)
        try:
            train_target.require_compatible(model, [choice], pretrained or choice.plugin.start)
        except UserError:
            continue
        able.append(name)
    return sorted(able, key=lambda name: name != "none")
