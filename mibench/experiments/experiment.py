"""What is asked for, typed and whole: options, suites and Python calls all become an `Experiment` before any planning.

An experiment says what, never where: the results folder and the device belong to whoever plans and executes it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mibench.isolation import guard
from mibench.plugins import capabilities, registry
from mibench.plugins.registry import Choice
from mibench.runs import Run
from mibench.runtime.errors import UserError, unknown
from mibench.stages.invert import ACCESS
from mibench.stages.train_target import EVALUATOR_SEED, Pretrained

__all__ = ["Attacker", "Evaluators", "Experiment", "Finished", "Goal", "Images", "Target", "Targets", "Trained"]

Goal = Literal["target", "training", "prior", "inversions", "scores"]
"""How far it goes: a target; a target and its evaluation models; a prior; reconstructions; their scores."""


@dataclass(frozen=True)
class Target:
    """A target to train, but for its seed.

    Args:
        model: Its architecture.
        defenses: A stack, in order; the defense `none` alone if it is undefended.
        pretrained: What it starts from.
        training: What differs from the recipe, typed.
        recipe: The published recipe by name; mibench's own if absent.
    """

    model: str
    defenses: tuple[Choice, ...]
    pretrained: Pretrained = "none"
    training: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None


@dataclass(frozen=True)
class Targets:
    """Targets to train: each of these with each seed."""

    each: tuple[Target, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.each or not self.seeds:
            raise UserError("an experiment needs at least one defense and one seed")
        if min(self.seeds) < 0:
            raise UserError(f"seeds must not be negative, got {min(self.seeds)}")
        if EVALUATOR_SEED in self.seeds:
            raise UserError(f"seed {EVALUATOR_SEED} is the evaluation models'; a target needs another one")


@dataclass(frozen=True)
class Trained:
    """Targets that stand in the results folder: those named, or every one of the data set.

    Args:
        names: Ids, directories' names or paths.
        same_settings: Without names: only those whose data set has the very settings of the experiment's.
        planned: Runs that will stand there by the time they are attacked, in the place of names.
    """

    names: tuple[str, ...] = ()
    same_settings: bool = False
    planned: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Finished:
    """Inversions that stand in the results folder: those named, or all."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images:
    """Another program's images of a finished target's identities.

    Args:
        folder: A sub-folder for each identity.
        target: What was attacked.
        name: What the report calls them; the folder's name if absent.
    """

    folder: Path
    target: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Attacker:
    """An attack and the prior it searches; together they can work.

    Args:
        attack: The attack.
        prior: What it searches.
        elsewhere: What it searches in the place of a shipped prior on data that this one does not draw; None where the
            prior was asked for by name, or learns from the data anyway.
        misplaced: A setting that only `elsewhere` has; empty if there is none.

    Raises:
        UserError: The prior lacks what the attack requires, or learns from more of the target than the attack is
            granted.
    """

    attack: Choice
    prior: Choice
    elsewhere: Choice | None = None
    misplaced: str = ""

    def __post_init__(self) -> None:
        card, asks = registry.card("attacks", self.attack.name), self.prior.plugin.target_access
        if card.get("role", "attack") == "attack" and asks is not None and asks > ACCESS[card["access"]]:
            raise UserError(
                f"{self.attack.name} is granted {card['access']} access; the prior '{self.prior.name}' learns from "
                f"more of the target ({asks.name.lower()}): choose another with --prior, or leave it out for "
                f"{card['prior']}"
            )
        capabilities.require(self.attack.plugin, capabilities.declared(self.prior.name))

    def on(self, data: str) -> "Attacker":
        """The attack with the prior for a data set, given by its name: nobody is attacked with pictures of something
        else unless that was asked for.

        Raises:
            UserError: For a setting that this prior does not have.
        """
        if self.elsewhere is None:
            return self
        if not capabilities.in_domain(self.prior.name, data):
            return Attacker(self.attack, self.elsewhere)
        if self.misplaced:
            raise unknown(f"setting of {self.prior.name}", self.misplaced, registry.defaults("priors", self.prior.name))
        return Attacker(self.attack, self.prior)


@dataclass(frozen=True)
class Evaluators:
    """The models that judge, and the independent verifiers beside them.

    Args:
        names: Evaluation models' architectures, at least two families; None is two of other families than the target's.
        training: What differs from their recipe, typed.
        verifier_training: What differs from the verifiers' recipe, typed.
        recipe: The published recipe by name, of those evaluation models that it was published for.
    """

    names: tuple[str, ...] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    verifier_training: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None


@dataclass(frozen=True)
class Experiment:
    """What is to be trained, how it is attacked, and who judges.

    Args:
        goal: How far it goes.
        dataset: The data set; of finished targets only which of them are meant, of finished inversions none.
        subject: What is trained, attacked or judged.
        attackers: Attacks, each with its prior.
        prior: What the goal `prior` learns.
        adaptive: Add what attackers try who know the target's defenses, at the attack's own budget.
        floors: Floors that each attack's numbers stand on, by name.
        floor_settings: Of floors, where they are not the defaults; what a floor has in common with its attack is that
            of the attack all the same.
        identities: Only the first so many are attacked.
        budget: Most target queries per identity.
        isolate: Run the attacks (not their floors) in sealed processes.
        shards: Split each attack (not its floors) by identity into so many runs; no part of what is asked.
        evaluators: Who judges.
        seed: Of attacks and priors.
        precision: fp32 or bf16; decides numbers, so that it is part of every run.
        title: What it is about.

    Raises:
        UserError: An attack is to be isolated that cannot be.
    """

    goal: Goal
    dataset: Choice | None
    subject: Targets | Trained | Finished | Images
    attackers: tuple[Attacker, ...] = ()
    prior: Choice | None = None
    adaptive: bool = False
    floors: tuple[str, ...] = ()
    floor_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    identities: int | None = None
    budget: int | None = None
    isolate: bool = False
    shards: int = 1
    evaluators: Evaluators = Evaluators()
    seed: int = 0
    precision: str = "fp32"
    title: str = ""

    def __post_init__(self) -> None:
        for one in self.attackers if self.isolate else ():
            guard.possible(ACCESS[registry.card("attacks", one.attack.name)["access"]])

    def describe(self) -> dict[str, Any]:
        """The experiment as JSON values."""
        shown: dict[str, Any] = {
            "title": self.title,
            "goal": self.goal,
            "dataset": {"name": self.dataset.name, "settings": asdict(self.dataset.plugin)} if self.dataset else None,
        }
        if isinstance(self.subject, Targets):
            shown["seeds"] = list(self.subject.seeds)
            shown["targets"] = [
                {
                    "model": one.model,
                    "defenses": [choice.spec() for choice in one.defenses],
                    "pretrained": one.pretrained,
                    "training": dict(one.training),
                    **({"recipe": one.recipe} if one.recipe else {}),
                }
                for one in self.subject.each
            ]
        else:
            shown[type(self.subject).__name__.lower()] = {name: str(one) for name, one in vars(self.subject).items()}
        return shown | {
            "attacks": [{"attack": one.attack.spec(), "prior": one.prior.spec()} for one in self.attackers],
            "prior": self.prior.spec() if self.prior else None,
            "adaptive": self.adaptive,
            "floors": list(self.floors),
            **({"floor_settings": dict(self.floor_settings)} if self.floor_settings else {}),
            "identities": self.identities,
            "budget": self.budget,
            "isolate": self.isolate,
            "evaluators": {"names": self.evaluators.names, "training": dict(self.evaluators.training)},
            "seed": self.seed,
            "precision": self.precision,
        }
