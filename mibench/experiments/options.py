"""What the options of each command stand for, as an `Experiment`; a grid also for suites."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mibench.experiments.experiment import Experiment, Finished, Images, Targets, Trained
from mibench.experiments.reading import (
    Sets,
    attack_sets,
    defense_sets,
    everybody,
    named,
    prior_preset,
    read_attackers,
    read_evaluators,
    read_floors,
    read_target,
    split_sets,
    variants,
)
from mibench.plugins import registry
from mibench.runtime.errors import UserError, unknown

__all__ = ["FLOORS", "attack", "brought", "grid", "prior", "require_weights", "scoring", "training"]

FLOORS = ("prior_search", "public_search")
"""Of a grid, where nothing else is asked for: the two that no attack may fall below."""


def training(
    goal: Literal["target", "training"] = "training",
    *,
    defense: str = "none",
    model: str = "cnn",
    pretrained: str | None = None,
    recipe: str | None = None,
    evaluators: str | None = None,
    dataset: str = "digiface",
    seed: int = 0,
    sets: Sequence[str] | None = None,
    precision: str = "fp32",
) -> Experiment:
    """A target; with the goal `training` also its evaluation models.

    Raises:
        UserError: For an unknown name or setting, or what cannot be combined.
    """
    judged = ["evaluator", "verifier"] if goal == "training" else []
    given = defense_sets(sets, defense, ["data", "training", *judged])
    return Experiment(
        goal,
        registry.configure("data", dataset, settings=given["data"]),
        Targets((read_target(model, defense, given, pretrained, recipe),), (seed,)),
        evaluators=read_evaluators(evaluators, given, recipe),
        seed=seed,
        precision=precision,
    )


def brought(
    weights: Path,
    *,
    model: str | None = None,
    classes: str | None = None,
    evaluator: bool = False,
    given: Mapping[str, Any] | None = None,
    dataset: str = "digiface",
    results: Path = Path("results"),
    sets: Sequence[str] | None = None,
    precision: str = "fp32",
) -> tuple[Experiment, list[str]]:
    """Weights that somebody else trained, as a target or an evaluation model; and what was found out, a line each.

    Args:
        given: Options that only a training has, each with whether it was given.

    Raises:
        UserError: As `bringing.bring`; an option of a training.
    """
    from mibench.experiments.bringing import bring

    for option, value in (given or {}).items():
        if value:
            raise UserError(
                f"{option} changes how a network is trained, and --weights are trained: leave one of them out"
            )
    settings = split_sets(sets, "none", ["data"])["data"]
    data = registry.configure("data", dataset, settings=settings)
    run, lines = bring(
        weights,
        model,
        data,
        results,
        role="evaluators" if evaluator else "targets",
        classes=classes,
        precision=precision,
    )
    return Experiment("target", data, Trained(planned=(run,)), precision=precision), lines


def require_weights(given: Mapping[str, Any]) -> None:
    """Refuse options that belong to `--weights` where there are none.

    Raises:
        UserError: The first that was given.
    """
    for option, value in given.items():
        if value:
            raise UserError(f"{option} belongs to --weights FILE; give the weights, or leave it out")


def prior(
    *,
    prior: str = "wgan_gp",
    preset: str = "quick",
    target: str | None = None,
    dataset: str = "digiface",
    seed: int = 0,
    sets: Sequence[str] | None = None,
    precision: str = "fp32",
) -> Experiment:
    """A prior, learnt on the public images of a data set or of a target's.

    Raises:
        UserError: For an unknown name or setting.
    """
    given = split_sets(sets, "prior", ["data"])
    if preset not in (presets := registry.presets("priors", prior) | dict.fromkeys(("quick", "paper", "legacy"))):
        raise unknown(f"preset of {prior}", preset, presets)
    return Experiment(
        "prior",
        registry.configure("data", dataset, settings=given["data"]),
        Trained((target,) if target else (), same_settings=bool(given["data"])),
        prior=registry.configure("priors", prior, prior_preset(prior, preset), given["prior"]),
        seed=seed,
        precision=precision,
    )


def attack(
    goal: Literal["inversions", "scores"] = "scores",
    *,
    method: str = "ppa",
    preset: str = "quick",
    target: Sequence[str] | None = None,
    prior: str | None = None,
    adaptive: bool = False,
    identities: int | None = None,
    budget: int | None = None,
    isolate: bool = False,
    shards: int = 1,
    evaluators: str | None = None,
    dataset: str = "digiface",
    seed: int = 0,
    sets: Sequence[str] | None = None,
    precision: str = "fp32",
) -> Experiment:
    """Attacks on finished targets; with the goal `scores` with all floors and scores.

    Raises:
        UserError: For an unknown name or setting, or an attack that cannot use its prior.
    """
    judged = ["evaluator", "verifier"] if goal == "scores" else []
    given = attack_sets(sets, method, ["prior", "data", *judged])
    return Experiment(
        goal,
        registry.configure("data", dataset, settings=given["data"]),
        Trained(tuple(target or ()), same_settings=bool(given["data"])),
        read_attackers(method, preset, given["attack"], prior, given["prior"]),
        adaptive=adaptive,
        floors=read_floors() if goal == "scores" else (),
        identities=identities,
        budget=budget,
        isolate=isolate,
        shards=shards,
        evaluators=read_evaluators(evaluators, given),
        seed=seed,
        precision=precision,
    )


def scoring(
    *,
    inversion: Sequence[str] | None = None,
    images: Path | None = None,
    target: str | None = None,
    name: str | None = None,
    evaluators: str | None = None,
    sets: Sequence[str] | None = None,
    precision: str = "fp32",
) -> Experiment:
    """Scores of finished inversions, or of another program's images.

    Raises:
        UserError: For options that exclude each other, or an unknown name or setting.
    """
    if images is None and (target is not None or name is not None):
        raise UserError("--target and --name belong to --images FOLDER; to score an inversion name it with --inversion")
    if images is not None and inversion:
        raise UserError("--images and --inversion exclude each other; score them one after the other")
    given = split_sets(sets, "evaluator", ["verifier"])
    return Experiment(
        "scores",
        None,
        Finished(tuple(inversion or ())) if images is None else Images(images, target, name),
        evaluators=read_evaluators(evaluators, given),
        precision=precision,
    )


def grid(
    *,
    title: str = "",
    dataset: str = "digiface",
    model: str = "cnn",
    defenses: Sequence[str] = ("none", "re"),
    strengths: str | Sequence[Any] = "grid",
    seeds: Sequence[int] = (0,),
    seed: int = 0,
    methods: Sequence[str] = ("ppa",),
    adaptive: bool = False,
    floors: Sequence[str] = FLOORS,
    preset: str = "quick",
    prior: str | None = None,
    identities: int | None = None,
    budget: int | None = None,
    pretrained: str | None = None,
    recipe: str | None = None,
    evaluators: str | None = None,
    settings: Sets | None = None,
    precision: str = "fp32",
) -> Experiment:
    """Many targets under many attacks: defenses over their strengths, seeds, and attackers who know the defense.

    Args:
        defenses: `none`, `re`, `re+bido`, `re location=torus`, ...; `all` is every defense that is published or a
            control and can change this architecture.
        strengths: grid (the values of each defense's card), default (each defense's own), or a list of values.
        seeds: Of the targets.
        seed: Of attacks and priors.
        methods: `ppa`, `cma_es`, `ppa steps=100`, ...
        floors: Floors to compute for each target; `all` is every one.
        prior: What all attacks search; each one's own if absent.
        pretrained: What targets start from; none, or what the defense or the recipe must have, if absent.
        recipe: A published training recipe by name: of the targets, and of those evaluation models that it fits.
        evaluators: Evaluation models, comma-separated; two of other families if absent.
        settings: `training`, `data`, `prior`, `evaluator` and their fields.

    Raises:
        UserError: For whatever a single command would refuse.
    """
    given = settings or {}
    for owner in given:
        if owner not in (owners := ("training", "data", "prior", "evaluator", "verifier")):
            raise unknown("owner of settings", owner, owners)
    if not methods:
        raise UserError("an experiment needs at least one method")
    if isinstance(strengths, str) and strengths not in ("grid", "default"):
        raise UserError(f"strengths are 'grid', 'default' or a list of values, got '{strengths}'")
    training = given.get("training", {})
    chosen = [text for one in defenses for text in (everybody(model, pretrained) if one == "all" else [one])]
    return Experiment(
        goal="scores",
        dataset=registry.configure("data", dataset, settings=dict(given.get("data", {}))),
        subject=Targets(
            tuple(
                read_target(model, name, {**sets, "training": {**training, **sets["training"]}}, pretrained, recipe)
                for text in dict.fromkeys(chosen)
                for name, sets in variants(text, strengths)
            ),
            tuple(seeds),
        ),
        attackers=tuple(
            attacker
            for method, own in map(named, methods)
            for attacker in read_attackers(method, preset, own, prior, given.get("prior", {}))
        ),
        adaptive=adaptive,
        floors=read_floors(floors),
        identities=identities,
        budget=budget,
        evaluators=read_evaluators(evaluators, given, recipe),
        seed=seed,
        precision=precision,
        title=title,
    )
