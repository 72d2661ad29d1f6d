"""Parts of a score's flat row, from the `Score` and the runs it builds on.

A rate takes three columns: `open_top1@resnet`, `open_top1_low@resnet`, `open_top1_high@resnet`; what stands behind the
@ is the network whose verdict or features it is.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mibench.evaluation.records import Distances, Judgement
from mibench.evaluation.score import Score
from mibench.metrics.prdc import PRDC
from mibench.report.naming import data_settings, defense_label, preset, settings_text
from mibench.runs import Run
from mibench.stages.train_target import changed_from_recipe
from mibench.stats.intervals import Interval

__all__ = ["RATES", "bounds", "ceiling", "chance", "cost", "fit", "judged", "measured", "origin", "shared", "target"]

RATES = ("open_top1", "open_top5", "closed_top1", "closed_top5", "knn_train", "knn_heldout")
"""What an evaluation model says of each image; every one has an interval."""

DOUBTS = ("tpir", "own_ball", "closeness", "gap")
"""How much of that is likeness, with intervals; absent where the data have no strangers."""

VERIFIED = ("verified", "verified_strict", "similarity", "face_found")
"""What a verifier says of each image."""


def bounds(key: str, value: Interval | None, at: str = "") -> dict[str, float]:
    """A number with its bounds; NaN where there is none."""
    known = value or Interval(math.nan, math.nan, math.nan, 0, 0)
    return {f"{key}{at}": known.value, f"{key}_low{at}": known.low, f"{key}_high{at}": known.high}


def _prdc(distances: Distances, name: str) -> dict[str, float | None]:
    """Precision, recall, density, coverage; null where there are too few images, or in an old file."""
    known = distances.prdc
    return {f"{key}@{name}": known and getattr(known, key) for key in PRDC._fields}


def judged(judgements: Mapping[str, Judgement], names: Iterable[str]) -> dict[str, Any]:
    """`open_top1@resnet`, `open_top1_low@resnet`, ... by each evaluation model, of reconstructions or real images."""
    flat: dict[str, Any] = {}
    for name in names:
        own = judgements[name]
        for key in (*RATES, *DOUBTS):
            if key in own.means:  # real images have no distance to the held-out ones: each would find itself
                flat |= bounds(key, own.means[key], f"@{name}")
        flat |= {f"fid@{name}": own.distances.fid, f"kid@{name}": own.distances.kid} | _prdc(own.distances, name)
    return flat


def shared(target: Run, score: Score, fingerprint: str, names: list[str]) -> dict[str, Any]:
    """What all rows of a protocol have in common: the data, and the evaluation models on real images."""
    data = target.spec["dataset"]
    flat: dict[str, Any] = {
        "dataset": data["name"],
        "dataset_settings": settings_text(data_settings(target)),
        "fingerprint": fingerprint,
        "evaluators": ",".join(names),
        "verifiers": ",".join(score.verifiers),
        "gate": score.gate,
        "identities": score.identities,
        "classes": score.classes,
        "unavailable": "; ".join(item.name for item in score.unavailable),
    }
    for name in names:
        own = score.facts[name]
        flat |= bounds("heldout_accuracy", own.heldout_accuracy, f"@{name}")
        flat |= bounds("heldout_accuracy_open", own.heldout_accuracy_open, f"@{name}")
        flat |= {f"distractors@{name}": own.distractors, f"distractors_are_public@{name}": own.distractors_are_public}
        flat |= {f"knn_real_to_real@{name}": own.knn_real_to_real}
        known = own.calibration
        flat |= {f"strangers_named@{name}": known and known.named, f"strangers@{name}": known and known.strangers}
    for name, facts in score.verifier_facts.items():
        flat |= {f"verifier_people@{name}": facts.people, f"verifier_auc@{name}": facts.auc}
        flat |= {f"verifier_trained_on@{name}": facts.trained_on}
    return flat


def target(run: Run) -> dict[str, Any]:
    """Which target it was, and how it was trained."""
    return {
        "target": run.id,
        "model": run.spec["model"],
        "target_seed": run.spec["seed"],
        "start": {True: "from imagenet", "public": "from public"}.get(run.spec.get("pretrained"), ""),
        "training": settings_text(changed_from_recipe(run)),
        "defense": defense_label(run.spec),
    }


def fit(run: Run) -> dict[str, Any]:
    """A target's accuracy on its own training images as trained, and by what its training ended; NaN and blank in older
    runs."""
    metrics = run.read("metrics.json")
    known = metrics.get("fit")
    ended = metrics.get("convergence", {}).get("by", "")
    return bounds("fit", Interval(**known) if known else None) | {"training_ended_by": ended}


def origin(inversion: Run, prior: Run | None) -> dict[str, Any]:
    """How the images were made; the prior is blank where another program made them."""
    attack = inversion.spec["attack"]
    flat = {
        "preset": preset("attacks", attack["name"], attack["settings"]) if prior else attack["name"],
        "access": inversion.spec["access"],
        "seed": inversion.spec["seed"],
        "budget": inversion.spec["budget"],
    }
    if prior is None:
        return flat | {"prior": "", "prior_preset": "", "prior_draws": ""}
    learnt = prior.spec["prior"]
    return flat | {
        "prior": learnt["name"],
        "prior_preset": preset("priors", learnt["name"], learnt["settings"]),
        "prior_draws": prior.read("metrics.json").get("domain", ""),
    }


def measured(score: Score, names: list[str]) -> dict[str, Any]:
    """Every verdict and distance of the reconstructions."""
    flat = bounds("likeness", score.likeness) | judged(score.evaluators, names)
    for name, verified in score.verifiers.items():
        flat |= _verified(verified.means, name)
    if score.both_verified is not None:
        flat |= bounds("both_verified", score.both_verified)
    for name, value in score.truth.items():
        flat |= bounds(name, value)
    flat |= bounds("target_top1", score.target.top1) | bounds("target_confidence", score.target.confidence)
    for name, value in score.perceptual.items():
        flat |= bounds(name, value)
    if score.inception is not None:
        flat |= {"fid": score.inception.fid, "kid": score.inception.kid} | _prdc(score.inception, "inception")
    for pair, agreement in score.agreement.items():
        flat |= bounds("both", agreement.both, f"@{pair}")
    return flat


def _verified(means: Mapping[str, Interval], name: str) -> dict[str, float]:
    """`verified@cnn`, `verified_low@cnn`, ... of reconstructions or real images."""
    flat: dict[str, float] = {}
    for key in VERIFIED:
        if key in means:
            flat |= bounds(key, means[key], f"@{name}")
    return flat


def cost(inversion: Run, prior: Run | None) -> dict[str, Any]:
    """Queries to the target and time; not known (NaN, never 0) of another program's images."""
    if prior is None:
        return dict.fromkeys(COST, math.nan)
    queries, learning = inversion.read("metrics.json"), prior.read("metrics.json")
    searched, learnt = (run.read("run.json")["provenance"] for run in (inversion, prior))
    values = (
        queries["queries_per_identity"],
        queries["gradient_images_per_identity"],
        queries["shared_queries"],
        learning.get("target_queries", 0),
        learning.get("target_gradients", 0),
        searched["seconds"],
        searched.get("cpu_seconds"),
        learnt.get("cpu_seconds"),
    )
    return dict(zip(COST, values, strict=True))


COST = (
    *("queries", "gradient_images", "shared_queries", "prior_queries", "prior_gradients"),
    *("seconds", "cpu_seconds", "prior_cpu_seconds"),
)


def chance(score: Score, names: list[str]) -> dict[str, float]:
    """What guessing gives, which depends on the protocol only; likeness has no chance level of its own."""
    closed = {f"closed_top1@{name}": score.chance["closed_top1"] for name in names}
    return closed | {key: value for key, value in score.chance.items() if key != "closed_top1"}


def ceiling(score: Score, names: list[str]) -> dict[str, Any]:
    """What unseen real images of the same people give, which depends on the protocol only."""
    flat: dict[str, Any] = {"n": score.likeness_ceiling.n}
    flat |= bounds("likeness", score.likeness_ceiling) | judged(score.ceiling, names)
    for name, facts in score.verifier_facts.items():
        flat |= _verified(facts.genuine, name)
    return flat
