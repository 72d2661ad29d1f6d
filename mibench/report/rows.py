"""Parts of a score's flat row, from its scores.json and the runs it builds on.

A rate takes three columns: `open_top1@resnet`, `open_top1_low@resnet`, `open_top1_high@resnet`; what stands behind the
@ is the network whose verdict or features it is.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mibench.report.naming import changes, defense_label, preset, settings_text
from mibench.runs import Run
from mibench.stages.train_target import changed_from_recipe
from mibench.stats.intervals import Interval

__all__ = ["PRDC", "RATES", "bounds", "ceiling", "chance", "cost", "interval", "measured", "origin", "shared", "target"]

RATES = ("open_top1", "open_top5", "closed_top1", "closed_top5", "knn_train", "knn_heldout")
"""What an evaluation model says of each image; every one has an interval."""

DOUBTS = ("calibrated", "gap", "times_real")
"""How much of that is likeness, with intervals; older scores have none of them."""

SETS = ("fid", "kid")
"""What an evaluation model's features say of all images together."""

PRDC = ("precision", "recall", "density", "coverage")
"""How far the images lie among real ones in these features; blank in scores that were made without it."""


def interval(key: str, value: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """A number with its bounds."""
    return {f"{key}{at}": value["value"], f"{key}_low{at}": value["low"], f"{key}_high{at}": value["high"]}


def bounds(key: str, value: Interval | None) -> dict[str, float]:
    """The same of an interval; NaN where there is none."""
    known = value or Interval(math.nan, math.nan, math.nan, 0, 0)
    return {key: known.value, f"{key}_low": known.low, f"{key}_high": known.high}


def _prdc(sets: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """Precision, recall, density, coverage; null where there are too few images, or in an old file."""
    known = sets.get("prdc") or {}
    return {f"{key}@{name}": known.get(key) for key in PRDC}


def _by_evaluator(names: Iterable[str], verdicts: Mapping[str, Any]) -> dict[str, Any]:
    """`open_top1@resnet`, `open_top1_low@resnet`, ... from the `evaluators` or the `ceiling` of a scores.json."""
    flat: dict[str, Any] = {}
    for name in names:
        own = verdicts[name]
        for key in (*RATES, *DOUBTS):
            if key in own:  # the ceiling has no distance to the held-out images: each would find itself
                flat |= interval(key, own[key], f"@{name}")
        flat |= {f"{key}@{name}": own[key] for key in SETS} | _prdc(own, name)
    return flat


def shared(target: Run, scores: Mapping[str, Any], fingerprint: str, names: list[str]) -> dict[str, Any]:
    """What all rows of a protocol have in common: the data, and the evaluation models on real images."""
    data = target.spec["dataset"]
    flat: dict[str, Any] = {
        "dataset": data["name"],
        "dataset_settings": settings_text(changes("data", data["name"], data["settings"])),
        "fingerprint": fingerprint,
        "evaluators": ",".join(names),
        "identities": scores["identities"],
        "classes": scores["classes"],
        "unavailable": "; ".join(item["name"] for item in scores["unavailable"]),
    }
    for name in names:
        own = scores["evaluators"][name]
        for key in ("heldout_accuracy", "heldout_accuracy_open"):
            flat |= interval(key, own[key], f"@{name}")
        flat |= {f"{key}@{name}": own[key] for key in ("distractors", "distractors_are_public", "knn_real_to_real")}
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
        return flat | {"prior": "", "prior_preset": ""}
    learnt = prior.spec["prior"]
    return flat | {"prior": learnt["name"], "prior_preset": preset("priors", learnt["name"], learnt["settings"])}


def measured(scores: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Every verdict and distance of the reconstructions."""
    flat = _by_evaluator(names, scores["evaluators"])
    flat |= interval("target_top1", scores["target"]["top1"])
    flat |= interval("target_confidence", scores["target"]["confidence"])
    for name, value in scores["perceptual"].items():
        if name == "inception":
            flat |= {"fid": value["fid"], "kid": value["kid"]} | _prdc(value, "inception")
        else:
            flat |= interval(name, value)
    for pair, value in scores.get("agreement", {}).items():
        flat |= interval("both", value["both"], f"@{pair}") | {f"kappa@{pair}": value["kappa"]}
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


def chance(scores: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """What guessing gives, which depends on the protocol only."""
    lowest = scores["chance"]
    return {f"closed_top1@{name}": lowest["closed_top1"] for name in names} | {
        key: value for key, value in lowest.items() if key != "closed_top1"
    }


def ceiling(scores: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """What unseen real images of the same people give, which depends on the protocol only."""
    real = scores["ceiling"]
    return {"n": real[names[0]]["open_top1"]["n"]} | _by_evaluator(names, real)
