"""What `checks.py` needs to know of a score, read from the runs it builds on."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, reduce
from pathlib import Path

import numpy as np
from safetensors import safe_open

from mibench import models
from mibench.evaluation.checks import QUICK, SAME, Facts, Finding, Floor, Gate, Judge, check_facts
from mibench.report.naming import card, preset
from mibench.report.result import Result
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.runtime.files import checked
from mibench.stages import artifacts
from mibench.stats.pairing import Pairs, pair

__all__ = ["draws", "facts", "findings", "floors"]


@cache
def _classes(path: Path) -> tuple[str, ...] | None:
    """The class names in a checkpoint's header; None where the weights were thrown away to save space."""
    return tuple(artifacts.read_header(path).get("classes", ())) if path.is_file() else None


def _weights(run: Run) -> str | None:
    """The digest of a network's file, as its run wrote it down."""
    digest = run.read("done").get("model.safetensors")
    return None if digest is None else str(digest)


def _family(name: str) -> str:
    try:
        return models.family(name)
    except UserError:  # an architecture of a plug-in that is no longer installed
        return name


@cache
def _saved(path: Path) -> str | None:
    """Digest of the pixels on disk; None where they were thrown away."""
    if not path.is_file():
        return None
    with checked(path) as name, safe_open(name, framework="pt") as file:
        return hashlib.sha256(file.get_tensor("images").numpy().tobytes()).hexdigest()


def _against(result: Result, floors: Iterable[Result], gaps: dict[str, Pairs | None]) -> Floor | None:
    """The attack beside the best of some floors in the headline, paired over people; None without any.

    Args:
        result: The attack.
        floors: Its floors.
        gaps: What it differs by from floors that it was compared with, by their ids; added to.
    """
    for best in sorted(floors, key=lambda one: -one.score.likeness.value):
        if best.run.id not in gaps:
            gaps[best.run.id] = pair(result.hits, best.hits)
        gap = gaps[best.run.id]
        if gap is not None:
            return Floor(best.attack, best.score.likeness, gap.interval)
    return None


def floors(result: Result, among: Iterable[Result]) -> list[Result]:
    """The floors of an attack: on the same target and people, from the same prior or one that is a floor's alone."""
    prior = result.prior
    return [
        one
        for one in among
        if one.role == "floor"
        and (one.target.id, one.protocol) == (result.target.id, result.protocol)
        and (prior is None or one.prior is None or one.prior.id == prior.id or not draws(one))
    ]


def draws(floor: Result) -> bool:
    """Whether a floor searches the prior that it is given, rather than images of its own."""
    return "images" not in card("attacks", floor.attack).get("requires", ())


def _at_random(result: Result, floors: Iterable[Result]) -> list[Result]:
    """Of its floors those that have a number of queries to spend, and spent no more than the attack."""
    if result.prior is None:
        return []
    asked = _queries(result)
    return [one for one in floors if "queries" in one.inversion.spec["attack"]["settings"] and _queries(one) <= asked]


def _queries(result: Result) -> float:
    cost = result.inversion.read("metrics.json")
    return float(cost["queries_per_identity"] + cost["shared_queries"])


def _copies(result: Result) -> int:
    """Reconstructions at no distance from a private image of the person in the features of every evaluation model:
    copies that another program has saved again."""
    every, same = result.columns, None
    for name, known in result.score.facts.items():
        usual = known.knn_real_to_real
        columns = [every[key] for key in (f"knn_train@{name}", f"knn_heldout@{name}") if key in every]
        if not usual or not columns:
            return 0
        near = reduce(np.fmin, columns) < SAME * usual
        same = near if same is None else same & near
    return 0 if same is None else int(same.sum())


def facts(result: Result, among: Sequence[Result] = ()) -> Facts:
    """One score's.

    Args:
        result: The score.
        among: All scores of the report: its floors and rivals are among them.
    """
    rivals = [one for one in among if one.role == "attack" and _beside(one) == _beside(result)]
    return _facts(result, [one for one in among if one.role == "floor"], len({one.attack for one in rivals}), {})


def _beside(result: Result) -> tuple[str, str]:
    """Target and protocol: nothing else is a score's floor or rival."""
    return result.target.id, result.protocol


def _facts(result: Result, among: Sequence[Result], rivals: int, networks: dict[str, Judge]) -> Facts:
    """The same.

    Args:
        result: The score.
        among: Floors, of which some are its own.
        rivals: How many attacks there are on its target.
        networks: What is known of targets and evaluation models, by the ids of their runs; added to.
    """
    target, prior = result.target, result.prior
    beneath = floors(result, among) if result.role == "attack" else []
    gaps: dict[str, Pairs | None] = {}
    evaluators, verifiers = result.score.facts, result.score.verifier_facts
    gates = [
        Gate(f"verifier {name}", own.impostors["strangers"].passing["verified"]) for name, own in verifiers.items()
    ]
    limits = {name: own.calibration for name, own in evaluators.items() if own.calibration is not None}
    gates += [Gate(f"the threshold of {name}", limit.passing) for name, limit in limits.items()]
    attack = result.inversion.spec["attack"]
    named = preset("attacks", attack["name"], attack["settings"]) if prior else ""
    judges = tuple(_network(run, networks) for run in result.evaluators)
    attacked, metrics = _network(target, networks), target.read("metrics.json")
    same = prior is None or prior.spec.get("dataset") == target.spec["dataset"]
    selects = card("attacks", result.inversion.spec["attack"]["name"]).get("selects", "target")
    score = result.score
    saved = _saved(result.inversion.path / "images.safetensors") if score.pixels else None
    return Facts(
        f"{result.inversion.name} on {target.name}-{target.id}",
        attacked.family,
        attacked.weights,
        attacked.classes,
        result.fingerprint,
        judges,
        score.n,
        score.inception is not None,
        None,
        result.fingerprint if same else "another",
        selects,
        score.pixels or None,
        saved,
        score.target.answer_difference,
        score.target.passes,
        role=result.role,
        preset=named,
        likeness=score.likeness,
        floor=_against(result, beneath, gaps),
        random=_against(result, _at_random(result, beneath), gaps) if named == QUICK else None,
        people=score.identities,
        others=min(own.distractors for own in evaluators.values()),
        data=target.spec["dataset"]["name"],
        prior=prior.spec["prior"]["name"] if prior else "",
        prior_draws=card("priors", prior.spec["prior"]["name"]).get("domain") if prior else None,
        gates=tuple(gates),
        named=tuple(Gate(name, limit.named) for name, limit in limits.items()),
        copies=max(score.copies, _copies(result)),
        missing=len(score.missing),
        fit=metrics.get("fit", {}).get("value"),
        converged=metrics.get("convergence", {}).get("converged"),
        imported=target.spec.get("origin") == "imported",
        rivals=rivals,
        cross_fitted=score.identities > 1,
        generators=tuple(result.inversion.read("metrics.json").get("global_generators", ())),
    )


def _network(run: Run, known: dict[str, Judge]) -> Judge:
    """What is known of a target or an evaluation model.

    Args:
        run: Its run.
        known: By id; added to.
    """
    if run.id not in known:
        own = run.read("metrics.json")
        known[run.id] = Judge(
            run.spec["model"],
            _family(run.spec["model"]),
            _weights(run),
            _classes(run.path / "model.safetensors"),
            own["natural_accuracy"]["value"],
            own["dataset_fingerprint"],
        )
    return known[run.id]


def findings(results: Iterable[Result]) -> list[Finding]:
    """What the checks say of all scores."""
    every = list(results)
    floors: dict[tuple[str, str], list[Result]] = defaultdict(list)
    rivals: dict[tuple[str, str], set[str]] = defaultdict(set)
    for result in every:
        if result.role == "floor":
            floors[_beside(result)].append(result)
        elif result.role == "attack":
            rivals[_beside(result)].add(result.attack)
    networks: dict[str, Judge] = {}
    return check_facts(_facts(one, floors[_beside(one)], len(rivals[_beside(one)]), networks) for one in every)
