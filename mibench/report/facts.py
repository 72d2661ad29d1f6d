"""What `checks.py` needs to know of a score, read from the runs it builds on."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from safetensors import safe_open

from mibench import models
from mibench.evaluation.checks import SAME, Facts, Finding, Floor, Gate, Judge, check_facts
from mibench.report.naming import card, preset
from mibench.report.result import Result
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.runtime.files import checked
from mibench.stages import artifacts
from mibench.stats.pairing import pair

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


def _against(result: Result, floors: Iterable[Result]) -> Floor | None:
    """The attack beside the best of some floors in the headline, paired over people; None without any."""
    known = [(one, gap) for one in floors if (gap := pair(result.hits, one.hits)) is not None]
    if not known:
        return None
    best, gap = max(known, key=lambda one: one[0].score.likeness.value)
    return Floor(best.attack, best.score.likeness, gap.interval)


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
    table, same = result.per_image, None
    for name, known in result.score.facts.items():
        usual = known.knn_real_to_real
        columns = [column for column in (f"knn_train@{name}", f"knn_heldout@{name}") if column in table]
        if not usual or not columns:
            return 0
        near = table[columns].min(axis=1) < SAME * usual
        same = near if same is None else same & near
    return 0 if same is None else int(same.sum())


def facts(result: Result, among: Sequence[Result] = ()) -> Facts:
    """One score's.

    Args:
        result: The score.
        among: All scores of the report: its floors and rivals are among them.
    """
    target, prior = result.target, result.prior
    beneath = floors(result, among) if result.role == "attack" else []
    rivals = [one for one in among if one.role == "attack" and one.protocol == result.protocol]
    evaluators, verifiers = result.score.facts, result.score.verifier_facts
    gates = [
        Gate(f"verifier {name}", own.impostors["strangers"].passing["verified"]) for name, own in verifiers.items()
    ]
    limits = {name: own.calibration for name, own in evaluators.items() if own.calibration is not None}
    gates += [Gate(f"the threshold of {name}", limit.passing) for name, limit in limits.items()]
    attack = result.inversion.spec["attack"]
    judges = tuple(
        Judge(
            run.spec["model"],
            _family(run.spec["model"]),
            _weights(run),
            _classes(run.path / "model.safetensors"),
            own["natural_accuracy"]["value"],
            own["dataset_fingerprint"],
        )
        for run in result.evaluators
        for own in [run.read("metrics.json")]
    )
    same = prior is None or prior.spec.get("dataset") == target.spec["dataset"]
    selects = card("attacks", result.inversion.spec["attack"]["name"]).get("selects", "target")
    score = result.score
    saved = _saved(result.inversion.path / "images.safetensors") if score.pixels else None
    return Facts(
        f"{result.inversion.name} on {target.name}-{target.id}",
        _family(target.spec["model"]),
        _weights(target),
        _classes(target.path / "model.safetensors"),
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
        preset=preset("attacks", attack["name"], attack["settings"]) if prior else "",
        likeness=score.likeness,
        floor=_against(result, beneath),
        random=_against(result, _at_random(result, beneath)),
        people=score.identities,
        others=min(own.distractors for own in evaluators.values()),
        data=target.spec["dataset"]["name"],
        prior=prior.spec["prior"]["name"] if prior else "",
        prior_draws=card("priors", prior.spec["prior"]["name"]).get("domain") if prior else None,
        gates=tuple(gates),
        named=tuple(Gate(name, limit.named) for name, limit in limits.items()),
        copies=max(score.copies, _copies(result)),
        missing=len(score.missing),
        fit=target.read("metrics.json").get("fit", {}).get("value"),
        converged=target.read("metrics.json").get("convergence", {}).get("converged"),
        imported=target.spec.get("origin") == "imported",
        rivals=len({one.attack for one in rivals if one.target.id == target.id}),
        cross_fitted=score.identities > 1,
        generators=tuple(result.inversion.read("metrics.json").get("global_generators", ())),
    )


def findings(results: Iterable[Result]) -> list[Finding]:
    """What the checks say of all scores."""
    every = list(results)
    return check_facts(facts(result, every) for result in every)
