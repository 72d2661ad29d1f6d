"""How much of an attack accuracy is likeness: calibrated success, the gap between target and evaluation model,
agreement of evaluation models, and distances in units of another real photograph.

The threshold of calibrated success belongs to the evaluation model, not to an attack. Impostors are real images that
it has not learnt: the private people's held-out images, each for everybody else, and images of *strangers*, each for
every private person. Strangers are the public people (at most 500 images, evenly spaced). Where the data are too few to
keep these apart from the distractors, they are the distractors; the evaluation model has learnt those as 'someone
else', so that they hardly pass and the held-out images decide. Each kind gives a threshold, and the higher one counts:
neither the people it knows nor those it does not pass more often than 1%.

Differs:
    Distractors alone would make too low a threshold, because the evaluation model was trained on these very images.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mibench import models
from mibench.core import Dataset
from mibench.metrics.agreement import kappa
from mibench.metrics.false_positives import RATE, impostor_scores, log_odds, threshold
from mibench.metrics.knn import knn_distance, leave_one_out
from mibench.runs import Run
from mibench.runtime.engine import Engine
from mibench.stats.intervals import clustered_interval, paired_interval
from mibench.training import predict

__all__ = ["STRANGERS", "agreement", "calibrate", "measure", "yardstick"]

STRANGERS = 500
"""Most images of strangers that an evaluation model is shown: enough for the 99th percentile of thousands of claims."""

_known: dict[tuple[str, str, str, str], dict[str, Any]] = {}


def calibrate(
    network: nn.Module, evaluator: Run, data: Dataset, private: Mapping[str, Tensor], engine: Engine
) -> dict[str, Any]:
    """The threshold of an evaluation model and where it comes from, once a process.

    Args:
        network: The evaluation model, placed.
        evaluator: Its run.
        data: What it was trained on.
        private: Its answers on the private images, from features.safetensors.
        engine: Where the strangers are judged.

    Returns:
        threshold, rate (at most so many impostors pass), held_out and strangers (of each: images, pairs, the threshold
        they ask for, what share passes the one that counts), strangers_are (public or distractors).
    """
    key = (str(evaluator.path), data.fingerprint(), engine.precision, str(engine.device))
    if key in _known:
        return _known[key]
    split = data.distractors if data.distractors_are_public else data.public
    chosen = torch.arange(min(STRANGERS, len(split))) * len(split) // max(1, min(STRANGERS, len(split)))
    classes = len(data.classes)
    sets = {"held_out": (private["heldout_logits"].cpu(), private["heldout_labels"].cpu())}
    if len(chosen):
        shown, _ = predict(network, split.take(chosen).images, engine)
        sets["strangers"] = (shown.cpu(), torch.full((len(chosen),), -1))
    scores = {name: impostor_scores(logits, labels, classes) for name, (logits, labels) in sets.items()}
    limits = {name: threshold(own) for name, own in scores.items() if len(own)}
    limit = max(limits.values())
    found: dict[str, Any] = {
        name: {
            "images": len(sets[name][1]),
            "pairs": len(scores[name]),
            "threshold": own,
            "pass": float((scores[name] > limit).double().mean()),
        }
        for name, own in limits.items()
    }
    found |= {"rate": RATE, "threshold": limit}
    if "strangers" in found:
        found["strangers_are"] = "distractors" if data.distractors_are_public else "public"
    _known[key] = found
    return found


def yardstick(private: Mapping[str, Tensor], labels: Int64[Tensor, " n"]) -> tuple[float | None, str]:
    """Mean distance (L2, not squared) of a real photograph of an attacked person to the nearest held-out one.

    From each held-out image to the other held-out ones of its person; from the training images where nobody has two.
    Null where it is 0 (all real images are copies).

    Returns:
        The distance, and which images it starts from: heldout or train.
    """
    features, owners = private["heldout_features"], private["heldout_labels"]
    several = torch.isin(owners, labels) & (torch.bincount(owners)[owners] > 1)
    if bool(several.any()):
        real, source = leave_one_out(features[several], owners[several]), "heldout"
    else:
        own = torch.isin(private["train_labels"], labels)
        real = knn_distance(private["train_features"][own], private["train_labels"][own], features, owners)
        source = "train"
    mean = float(real.sqrt().mean())
    return (mean if mean > 0 else None), source


def measure(
    logits: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    columns: Mapping[str, Tensor],
    target_hits: Bool[Tensor, " n"],
    private: Mapping[str, Tensor],
    calibration: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What one evaluation model says against its own hits.

    Args:
        logits: Of the reconstructions.
        labels: Their claimed people.
        columns: The evaluation model's verdicts: open_top1 and knn_heldout are used.
        target_hits: Whether the target itself names the person.
        private: The evaluation model's answers on the private images.
        calibration: From `calibrate`.

    Returns:
        Columns for per_image.csv: calibrated (success), times_real (distance to the nearest held-out image of the
        person, over the yardstick; 1 is as near as another real photograph). And numbers with intervals: calibrated,
        times_real, gap (target_top1 - open_top1, paired over images, in [-1, 1]), threshold, yardstick.
    """
    passed = log_odds(logits.cpu(), labels) > calibration["threshold"]
    real, source = yardstick(private, labels)
    made: dict[str, Tensor] = {"calibrated": passed}
    said: dict[str, Any] = {
        "calibrated": clustered_interval(passed, labels).as_json(),
        "calibration": dict(calibration),
        "gap": paired_interval(target_hits, columns["open_top1"], labels).as_json(),
        "yardstick": {"distance": real, "from": source},
    }
    if real is not None:
        made["times_real"] = columns["knn_heldout"].sqrt() / real
        said["times_real"] = clustered_interval(made["times_real"], labels).as_json()
    return made, said


def agreement(hits: Mapping[str, Bool[Tensor, " n"]], labels: Int64[Tensor, " n"]) -> dict[str, Any]:
    """Of every two evaluation models of different families, `a+b`: the share of images on which both name the person
    (open-set), with its interval, and Cohen's kappa of their hits, null where both say one thing of all images."""
    found = {}
    for one, other in combinations(hits, 2):
        if models.family(one) != models.family(other):
            chance_corrected = kappa(hits[one], hits[other])
            found[f"{one}+{other}"] = {
                "both": clustered_interval(hits[one] & hits[other], labels).as_json(),
                "kappa": None if chance_corrected != chance_corrected else chance_corrected,
            }
    return found
