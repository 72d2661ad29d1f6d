"""From an experiment to the graph of runs: targets x attacks x floors x what adaptive attackers try -> scores.

Planning is arithmetic on what was asked and what cards declare: it opens no data set and builds no network.
"""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mibench import models, runs
from mibench.core import Attack, Cost
from mibench.experiments.experiment import Attacker, Experiment, Finished, Images, Target, Targets, Trained
from mibench.experiments.reading import FINISHED, prior_preset
from mibench.plugins import capabilities, registry
from mibench.plugins.registry import Choice
from mibench.plugins.settings import parse_settings
from mibench.runs import Run, canonical
from mibench.runtime.errors import UserError
from mibench.stages import import_images, invert, score, train_prior, train_target, train_verifier
from mibench.zoo import PREFIX, Shelf

__all__ = ["Planner", "adaptive_attacks", "plan"]


def plan(experiment: Experiment, results: Path = Path("results"), zoo: Shelf | None = None) -> list[Run]:
    """The runs that an experiment asks for, each once, the main one last; what they build on are their parents.

    Args:
        results: The folder of all runs. Finished ones are found there; nothing is written.
        zoo: Where networks are taken from that are not finished there; without it all are trained.

    Raises:
        UserError: For whatever a stage would refuse and can be told without data.
    """
    return Planner(experiment, results, zoo).plan()


class Planner:
    """One experiment's runs; what several of them share is settled once.

    Args:
        experiment: What is asked.
        results: The folder of all runs.
        zoo: As of `plan`.
    """

    def __init__(self, experiment: Experiment, results: Path, zoo: Shelf | None = None) -> None:
        self.experiment = experiment
        self.results = results
        self.zoo = zoo
        self._data: dict[str, Choice] = {}
        self._evaluators: dict[tuple[str, str], list[Run]] = {}
        self._verifiers: dict[tuple[str, str], list[Run]] = {}
        self._priors: dict[tuple[str, str], Run] = {}
        self._attackers: dict[str, list[Attacker]] = {}
        self._floors_of: dict[tuple[int, str], list[Attacker]] = {}
        self._known: dict[str, int] = {}

    def plan(self) -> list[Run]:
        """See the function `plan`."""
        goal = self.experiment.goal
        if goal == "prior":
            return [self.prior()]
        if goal in ("target", "training"):
            targets = self.targets
            judges = [
                run for one in targets for run in [*self.evaluators(one), *self.verifiers(one)] if goal == "training"
            ]
            return _once([*judges, *targets])
        inversions = _once(self.inversions())
        return inversions if goal == "inversions" else _once(map(self.score, inversions))

    # --- targets and who judges them

    @property
    def dataset(self) -> Choice:
        """The experiment's data set; what is finished has its own."""
        assert self.experiment.dataset is not None
        return self.experiment.dataset

    @cached_property
    def targets(self) -> list[Run]:
        """The targets to train, or those found in the results folder.

        Raises:
            UserError: There is none, or something else has the name.
        """
        subject = self.experiment.subject
        if isinstance(subject, Targets):
            return _once(self._target(one, seed) for seed in subject.seeds for one in subject.each)
        assert isinstance(subject, Trained)
        if subject.planned:
            return list(subject.planned)
        if subject.names:
            return [self._named(name, "targets") for name in subject.names]
        data = self.dataset
        trained = [
            run
            for run in runs.finished(self.results, "targets")
            if run.spec["dataset"]["name"] == data.name
            and (not subject.same_settings or run.spec["dataset"] == data.spec())
        ]
        if not trained:
            raise UserError(
                f"no trained target of data set '{data.name}' in {self.results}; run first: mibench train --dataset "
                f"{data.name}"
            )
        return trained

    def _target(self, one: Target, seed: int) -> Run:
        data, precision = self.dataset, self.experiment.precision
        defenses, training = list(one.defenses), dict(one.training)
        run = train_target.plan(
            self.results, data, one.model, defenses, seed, precision, training, one.pretrained, one.recipe
        )
        return self._ready(run)

    def _ready(self, run: Run) -> Run:
        """A network to train, or in its place what the zoo has; what was trained here goes first."""
        return run if self.zoo is None or run.done else self.zoo.match(run)

    def _named(self, name: str, kind: str) -> Run:
        if kind == "targets" and os.path.isfile(name):  # unlike Path.is_file it takes any text
            models.family(name)  # which says what to do with a file of a model
        run = self._of_zoo(name) if name.startswith(PREFIX) else runs.find(self.results, name)
        if run.kind != kind:
            what = kind.removesuffix("s")
            raise UserError(
                f"{run.label} is not a{'n' * (what[0] in 'aeiou')} {what}; --{what} takes one of {self.results}/{kind}"
            )
        return run

    def _of_zoo(self, name: str) -> Run:
        run, wanted = Shelf().take(name, self.results), self.experiment.dataset
        trained_on = run.spec["dataset"]["name"]
        if wanted is not None and wanted.name != trained_on:
            raise UserError(f"{name} was trained on '{trained_on}', not on '{wanted.name}'; leave --dataset out")
        return run

    def data_of(self, target: Run) -> Choice:
        """The data set a target is trained on."""
        asked = target.inputs["dataset"]
        key = canonical(dict(asked))
        if key not in self._data:
            planned = isinstance(self.experiment.subject, Targets)
            self._data[key] = (
                self.dataset if planned else registry.configure("data", asked["name"], settings=asked["settings"])
            )
        return self._data[key]

    def evaluators(self, target: Run) -> list[Run]:
        """The runs of the evaluation models for a target.

        Raises:
            UserError: If one is of the target's own family.
        """
        key = (canonical(dict(target.inputs["dataset"])), str(target.spec["model"]))
        if key not in self._evaluators:
            asked, architecture = self.experiment.evaluators, key[1]
            names = asked.names or train_target.evaluator_families(architecture)
            for name in names:
                if not name.startswith(FINISHED):
                    train_target.require_other_family(name, architecture)
            self._evaluators[key] = [
                self._finished_evaluator(name, target)
                if name.startswith(FINISHED)
                else self._ready(
                    train_target.plan_evaluator(
                        target.root,
                        self.data_of(target),
                        name,
                        self.experiment.precision,
                        dict(asked.training),
                        asked.recipe,
                    )
                )
                for name in names
            ]
        return self._evaluators[key]

    def _finished_evaluator(self, name: str, target: Run) -> Run:
        """A finished evaluation model, such as published weights that were brought in.

        Raises:
            UserError: There is none, it is of the target's family, or it knows the people of another data set.
        """
        run = self._named(name, "evaluators")
        train_target.require_other_family(run.spec["model"], target.spec["model"])
        if run.spec["dataset"] != target.spec["dataset"]:
            raise UserError(
                f"{run.label} knows the people of '{run.spec['dataset']['name']}' with other settings than those of "
                f"{target.label}: bring its weights in again with the target's own --dataset and --set data...."
            )
        return run

    def verifiers(self, target: Run) -> list[Run]:
        """The runs of the verifiers for a target, two of other families than its own; none where the data have too few
        people who play no other part."""
        key = (canonical(dict(target.inputs["dataset"])), str(target.spec["model"]))
        if key not in self._verifiers:
            training = dict(self.experiment.evaluators.verifier_training)
            planned = [
                train_verifier.plan(target.root, self.data_of(target), name, self.experiment.precision, training)
                for name in train_target.evaluator_families(key[1])
            ]
            self._verifiers[key] = [self._ready(run) for run in planned if run is not None]
        return self._verifiers[key]

    # --- what is attacked and judged

    def prior(self) -> Run:
        """The prior to learn, with the help of a target where it asks for one."""
        experiment = self.experiment
        assert experiment.prior is not None and isinstance(experiment.subject, Trained)
        helped = experiment.subject.names or experiment.prior.plugin.target_access is not None
        owner = self.targets[0] if helped else None
        data = self.data_of(owner) if owner else self.dataset
        return train_prior.plan(self.results, data, experiment.prior, owner, experiment.seed, experiment.precision)

    def score(self, inversion: Run) -> Run:
        """The score of one inversion."""
        target = inversion.target
        evaluators, verifiers = self.evaluators(target), self.verifiers(target)
        # A target that was trained before anybody said that its pictures show faces is not trained again.
        known = [self.data_of(target), *([self.experiment.dataset] if self.experiment.dataset else [])]
        photographs = any(data.plugin.shows_faces for data in known)
        return score.plan(target.root, inversion, evaluators, self.experiment.precision, verifiers, photographs)

    def inversions(self) -> Iterator[Run]:
        """Every target under every attack: its floors, what adaptive attackers try, then the attack itself."""
        subject = self.experiment.subject
        if isinstance(subject, Images):
            yield self._images(subject)
        elif isinstance(subject, Finished):
            yield from self._finished(subject)
        else:
            for target in self.targets:
                for attacker in self.attackers(target.spec["dataset"]["name"]):
                    yield from self._attacks(target, attacker)

    def attackers(self, data: str) -> list[Attacker]:
        """The experiment's attackers, each with the prior for a data set, given by its name."""
        if data not in self._attackers:
            self._attackers[data] = [attacker.on(data) for attacker in self.experiment.attackers]
        return self._attackers[data]

    def _attacks(self, target: Run, attacker: Attacker) -> Iterator[Run]:
        budget = self.experiment.budget
        main = self._inversion(target, attacker, budget, self.experiment.isolate, self.experiment.shards)
        if registry.card("attacks", attacker.attack.name).get("role", "attack") != "floor":
            for floor in self._floors(target, attacker, main):
                yield self._inversion(target, floor, None)
        if self.experiment.adaptive and (others := adaptive_attacks(attacker.attack, target.spec["defenses"])):
            most = budget or self._queries(target, attacker)
            for other in others:
                yield self._inversion(target, Attacker(other, attacker.prior), most)
        yield main

    def _inversion(
        self, target: Run, attacker: Attacker, budget: int | None, isolate: bool = False, shards: int = 1
    ) -> Run:
        experiment = self.experiment
        if (count := experiment.identities) is not None and count > (known := self._identities(target)):
            raise UserError(f"--identities {count}: the target {target.label} knows {known} identities")
        prior, precision = self._prior_for(target, attacker.prior), experiment.precision
        if shards > (most := count or self._identities(target)):
            raise UserError(
                f"--shards {shards}: only {most} identities of {target.label} are attacked; give at most that"
            )
        return invert.plan(
            target.root, target, prior, attacker.attack, experiment.seed, precision, count, budget, isolate, shards
        )

    def _prior_for(self, target: Run, prior: Choice) -> Run:
        key = (target.id, canonical([prior.name, prior.spec()]))
        if key not in self._priors:
            seed, precision = self.experiment.seed, self.experiment.precision
            learnt = train_prior.plan(target.root, self.data_of(target), prior, target, seed, precision)
            self._priors[key] = self._ready(learnt)
        return self._priors[key]

    def _identities(self, target: Run) -> int:
        if target.id not in self._known:
            known = target.read("metrics.json")["classes"] if target.done else self.data_of(target).shape.classes
            self._known[target.id] = int(known)
        return self._known[target.id]

    def _floors(self, target: Run, attacker: Attacker, main: Run) -> list[Attacker]:
        """The floors of an attack, which are the same on all targets of a data set."""
        key = (id(attacker), canonical(dict(target.inputs["dataset"])))
        if key not in self._floors_of:
            self._floors_of[key] = list(self._floors_on(target, attacker, main))
        return self._floors_of[key]

    def _floors_on(self, target: Run, attacker: Attacker, main: Run) -> Iterator[Attacker]:
        """The floors an attack's numbers stand on: the same target and number of images (the floor's own where the
        attack has no such setting), and the same prior unless the floor's own offers what the attack's cannot.

        A floor that asks for more than the attack is granted says nothing about it, and is left out; so is one that
        spends the attack's own number of queries (it has a setting `queries`) on answers of another kind.
        """
        asked = main.spec["attack"]["settings"]
        for name in self.experiment.floors:
            access = registry.card("attacks", name)["access"]
            if invert.ACCESS[access] > invert.ACCESS[main.spec["access"]]:
                continue
            known = registry.defaults("attacks", name)
            settings: dict[str, Any] = dict(self.experiment.floor_settings.get(name, {}))
            settings |= {key: asked[key] for key in ("images", "pool") if key in asked and key in known}
            if "queries" in known:  # it matches what an attack of its own access asks
                if access != main.spec["access"]:
                    continue
                settings["queries"] = most = self._queries(target, attacker)
                if most < 1:
                    continue
                if "images" in known:  # an attack that has no number of its own may ask for fewer than the floor keeps
                    settings["images"] = min(settings.get("images", known["images"]), most)
            floor = registry.configure("attacks", name, "default", settings)
            prior = attacker.prior
            if "images" in registry.card("attacks", name).get("requires", ()):
                own = registry.card("attacks", name)["prior"]
                prior = registry.configure("priors", own, prior_preset(own, "default"))
            yield Attacker(floor, prior)

    def _queries(self, target: Run, attacker: Attacker) -> int:
        """What an attack asks of the target for one identity, shared queries included."""
        cost = cost_of(attacker, self.data_of(target))
        asks = cost.queries + cost.shared_queries
        return min(asks, self.experiment.budget or asks)

    def _finished(self, subject: Finished) -> list[Run]:
        if subject.names:
            return [self._named(name, "inversions") for name in subject.names]
        inversions = runs.finished(self.results, "inversions")
        if not inversions:
            raise UserError(f"no inversion in {self.results}; run first: mibench invert")
        return inversions

    def _images(self, images: Images) -> Run:
        known = [f"{run.name}-{run.id}" for run in runs.finished(self.results, "targets")]
        if images.target is None:
            offered = f"one of {', '.join(known[:6])}" if known else "train one first: mibench train"
            raise UserError(f"--images needs the target that was attacked; name it with --target: {offered}")
        target = self._named(images.target, "targets")
        return import_images.plan(self.results, target, images.folder, images.name)


def cost_of(attacker: Attacker, data: Choice) -> Cost:
    """What an attack asks of a target, in closed form, from what its prior's card and its data set declare."""
    attack: Attack = attacker.attack.plugin
    blocks = attacker.prior.plugin.blocks_of(data.shape.image_shape)
    return attack.cost(capabilities.declared(attacker.prior.name, blocks), data.shape.public)


def adaptive_attacks(attack: Choice, defenses: list[dict[str, Any]]) -> list[Choice]:
    """What attackers try who know the target's defenses and their settings, besides the attack itself; white box only.

    The attack in `align`, and every change that a defense's card declares (`adaptive`). What an attack cannot do (it
    has no such setting) is left out.

    Args:
        attack: The attack itself.
        defenses: The target's, as its specification names them.
    """
    if registry.card("attacks", attack.name)["access"] != "white_box":
        return []
    changes = ["+align"]
    for item in defenses:
        declared = registry.card("defenses", item["name"]).get("adaptive", {})
        changes += [change.format(**item["settings"]) for change in declared]
    own = attack.spec()["settings"]
    tried = []
    for change in dict.fromkeys(changes):
        if change.startswith("+"):
            wrapper, *words = change[1:].split()
            if wrapper in registry.wrappers(attack.name):
                continue
            whole = f"{attack.name}+{wrapper}"
            # Two views of each image and half as many steps: as many images as the attack alone asks for.
            views = {"copies": 2, "select": False} | parse_settings(words)
            offered = registry.defaults("attacks", whole)
            added = {f"{wrapper}.{key}": value for key, value in views.items() if f"{wrapper}.{key}" in offered}
            tried.append(registry.configure("attacks", whole, attack.preset, own | added))
        else:
            key, _, value = change.partition("=")
            if key in own:
                tried.append(registry.configure("attacks", attack.name, attack.preset, own | {key: value}))
    return tried


def _once(wanted: Iterable[Run]) -> list[Run]:
    return list({run.id: run for run in wanted}.values())
