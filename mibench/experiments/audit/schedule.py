"""What will be done within a budget, and what it costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mibench.core import Access, Cost
from mibench.experiments.audit import costs
from mibench.experiments.audit.fitting import LEAST_PEOPLE, MENU, Fitted, attackers_of, fit
from mibench.experiments.audit.question import Prepared
from mibench.experiments.audit.speeds import Speeds, prior_steps, target_seconds, training_seconds
from mibench.experiments.experiment import Attacker, Experiment, Targets
from mibench.experiments.plan import cost_of, plan
from mibench.experiments.reading import read_evaluators, read_floors, read_target
from mibench.plugins import registry
from mibench.runs import Run
from mibench.runs.executor import pending
from mibench.runtime.engine import Engine
from mibench.stages import imported, train_target
from mibench.stages.invert import ACCESS

__all__ = ["Schedule", "Step", "schedule"]

FLOORS = 1.5
"""Time of an attack with its floors, in that of the attack."""


@dataclass(frozen=True)
class Step:
    """One thing that will be done.

    Args:
        what: In words.
        queries: Of the user's model.
        seconds: Estimated; NaN where that cannot be told.
        done: It stands in the results folder already.
    """

    what: str
    queries: int
    seconds: float
    done: bool


@dataclass(frozen=True)
class Schedule:
    """What will be done.

    Args:
        experiments: On the imported target, then on defended ones.
        runs: The planned runs of all experiments.
        steps: What they cost.
        untried: What is left out, and why, a sentence each.
        people: How many are attacked.
        shown: Pictures that a server was shown to find out what it answers.
        speeds: What the time was estimated from.
    """

    experiments: tuple[Experiment, ...]
    runs: tuple[Run, ...]
    steps: tuple[Step, ...]
    untried: tuple[str, ...]
    people: int
    shown: int
    speeds: Speeds

    @property
    def whole(self) -> int:
        """Queries of the user's model from the finding out to the last score, at most."""
        return self.shown + sum(step.queries for step in self.steps)

    @property
    def queries(self) -> int:
        """Of the user's model, still to be asked at most."""
        return sum(step.queries for step in self.steps if not step.done)

    @property
    def seconds(self) -> float:
        """Still to be spent, as estimated."""
        return sum(step.seconds for step in self.steps if not step.done and math.isfinite(step.seconds))


def schedule(prepared: Prepared, results: Path, engine: Engine) -> Schedule:
    """What will be done within the budget, and what it costs.

    Raises:
        UserError: A setting, attack or defense that does not exist or does not fit; fewer queries than the least audit
            takes.
    """
    asked, target = prepared.asked, prepared.target
    given = {owner: dict(own) for owner, own in asked.settings.items()}
    evaluators = read_evaluators(asked.evaluators, given)
    names = evaluators.names or train_target.evaluator_families(target.spec["model"])
    speeds = Speeds.of(prepared, engine, names, results)
    untried: list[str] = []
    attackers = attackers_of(prepared)
    everybody = prepared.data.shape.classes
    people = min(asked.identities or everybody, everybody)
    if asked.minutes is not None:
        attackers, people = _within(asked.minutes * 60, attackers, prepared, speeds, evaluators.training, untried)
    fitted = Fitted(tuple(attackers), people, read_floors())
    if asked.queries is not None:
        fitted = fit(prepared, attackers, people)
        untried += fitted.untried
    main = fitted.experiment(prepared, evaluators)
    experiments = [main, *_defended(prepared, main, given)]
    runs = {run.id: run for one in experiments for run in plan(one, results)}
    untried += _left_out(prepared)
    steps = _steps(prepared, list(runs.values()), speeds)
    return Schedule(
        tuple(experiments),
        tuple(runs.values()),
        tuple(steps),
        tuple(dict.fromkeys(untried)),
        fitted.people,
        prepared.found.shown,
        speeds,
    )


def _learning(attackers: Sequence[Attacker]) -> float:
    """Training steps of the priors of some attacks, each once."""
    priors = {str(one.prior.spec()): one.prior for one in attackers}
    return math.fsum(prior_steps(one.name, one.spec()["settings"]) for one in priors.values())


def _within(
    seconds: float,
    attackers: list[Attacker],
    prepared: Prepared,
    speeds: Speeds,
    training: Mapping[str, Any],
    untried: list[str],
) -> tuple[list[Attacker], int]:
    """As many of the attacks as fit the time, the first in any case, and on how many people."""
    everybody = min(prepared.asked.identities or prepared.data.shape.classes, prepared.data.shape.classes)
    recipe = train_target.recipe("evaluator", dict(training))
    fixed = 2 * training_seconds(prepared, recipe, speeds)
    left = seconds - fixed - _learning(attackers[:1]) * speeds.step
    first = cost_of(attackers[0], prepared.data)
    count = everybody
    if math.isfinite(speeds.forward):
        shared = FLOORS * target_seconds(Cost(0, 0, first.shared_queries), 1, speeds)
        each = FLOORS * target_seconds(first._replace(shared_queries=0), 1, speeds)
        if prepared.asked.identities is None and each:
            count = int(max(min(everybody, LEAST_PEOPLE), min(everybody, (left - shared) / each)))
        left -= shared + count * each
    kept = [attackers[0]]
    for one in attackers[1:]:
        needs = FLOORS * target_seconds(cost_of(one, prepared.data), count, speeds)
        needs += (_learning([*kept, one]) - _learning(kept)) * speeds.step
        if math.isfinite(needs) and needs <= left:
            kept.append(one)
            left -= needs
        else:
            takes = f"about {needs / 60:.0f} min more" if math.isfinite(needs) else "a server's time is not known"
            untried.append(f"{one.attack.name} ({takes}; --minutes or --method {one.attack.name})")
    if count < everybody:
        untried.append(f"{everybody - count} of {everybody} people, for want of time")
    return kept, count


def _steps(prepared: Prepared, runs: Sequence[Run], speeds: Speeds) -> list[Step]:
    """What all runs cost, in the order in which they can be done."""
    ordered: dict[str, Run] = {}

    def visit(run: Run) -> None:
        for parent in run.ancestors():
            visit(parent)
        ordered.setdefault(run.label, run)

    for run in runs:
        visit(run)
    todo = {run.label for run in pending(list(runs))}
    return [_step(prepared, run, speeds, run.label not in todo) for run in ordered.values()]


def _step(prepared: Prepared, run: Run, speeds: Speeds, done: bool) -> Step:
    """What one run costs."""
    asks = costs.asks(run, prepared)
    queries = int(asks) if math.isfinite(asks) else 0
    seconds = queries * speeds.forward if queries else 0.0
    if run.kind == "targets" and imported.is_imported(run):
        what = "bring the model in and measure it"
    elif run.kind == "targets":
        names = "+".join(one["name"] for one in run.spec["defenses"]) or "none"
        what = f"train {run.spec['model']} with defense {names}"
        seconds = training_seconds(prepared, run.spec["training"], speeds)
    elif run.kind in ("evaluators", "backbones", "verifiers"):
        what = f"train the evaluation model {run.spec['model']}"
        seconds = training_seconds(prepared, run.spec["training"], speeds)
    elif run.kind == "priors":
        prior = run.spec["prior"]
        seconds = prior_steps(prior["name"], prior["settings"]) * speeds.step
        what = f"learn the prior {prior['name']} on the public pictures" if seconds else f"prior {prior['name']}"
    elif run.kind == "inversions":
        mine = run.target.id == prepared.target.id
        people = run.spec["identities"] or prepared.data.shape.classes
        seconds = target_seconds(costs.cost(run, prepared), people, speeds) if mine else math.nan
        floor = registry.card("attacks", run.spec["attack"]["name"]).get("role") == "floor"
        what = f"{'floor' if floor else 'attack'} {run.name}{'' if mine else ' on ' + run.target.name}"
    else:
        what, seconds = f"score {run.name}", seconds + 4 * speeds.step
    return Step(what, queries, seconds, done)


def _left_out(prepared: Prepared) -> list[str]:
    """What an attacker could also try, and this audit does not."""
    lines = []
    for access in Access.strongest_first():
        if access < prepared.access:
            continue
        if access > prepared.access:
            lines.append(f"{access.words} attacks")
    names = [
        name
        for name in registry.attacks("attack")
        if ACCESS[registry.card("attacks", name)["access"]] == prepared.access and name not in MENU[prepared.access]
    ]
    lines.append(f"other {prepared.access.words} attacks: {', '.join(names)} (--method)")
    size, shape = prepared.found.wanted.size, prepared.data.shape.image_shape
    if size > shape[1]:
        lines.append(f"reconstructions larger than {shape[1]} px (--image-size {2 * shape[1]})")
    lines.append("published settings (quick presets are used), other seeds, and better public pictures than yours")
    return lines


def _defended(prepared: Prepared, main: Experiment, given: Mapping[str, Mapping[str, Any]]) -> list[Experiment]:
    """Targets trained on the same data, undefended and with each defense, under the first attack."""
    asked = prepared.asked
    if not asked.defenses:
        return []
    model = asked.defense_model or "cnn"
    names = ["none", *(name for name in asked.defenses if name != "none")]
    owners = {"training": given.get("training", {})}
    each = tuple(
        read_target(model, name, {**owners, **{key: given.get(key, {}) for key in name.split("+")}}) for name in names
    )
    # Its own first attack: the strongest that a white box would take needs nothing of the imported model.
    return [
        replace(main, subject=Targets(each, (asked.seed,)), attackers=main.attackers[:1], title="what defenses buy")
    ]
