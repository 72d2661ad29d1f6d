"""How much of an attack accuracy is likeness: calibrated success, agreement of evaluation models, and distances in
units of another real photograph.

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

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mibench.core import Dataset
from mibench.evaluation.judgement import Answers, PrivateAnswers
from mibench.evaluation.records import Agreement, Calibration, Impostors, Yardstick
from mibench.metrics.agreement import kappa
from mibench.metrics.false_positives import RATE, impostor_scores, threshold
from mibench.metrics.knn import knn_distance, leave_one_out
from mibench.models.base import Classifier
from mibench.runtime.engine import Engine
from mibench.stats.intervals import clustered_interval
from mibench.training import predict

__all__ = ["STRANGERS", "agreement", "calibrate", "yardstick"]

STRANGERS = 500
"""Most images of strangers that an evaluation model is shown: enough for the 99th percentile of thousands of claims."""


def calibrate(network: Classifier, data: Dataset, heldout: Answers, engine: Engine) -> Calibration:
    """The threshold of an evaluation model and where it comes from.

    Args:
        network: The evaluation model, placed.
        data: What it was trained on.
        heldout: Its answers to the private people's held-out images.
        engine: Where the strangers are judged.
    """
    split = data.distractors if data.distractors_are_public else data.public
    chosen = torch.arange(min(STRANGERS, len(split))) * len(split) // max(1, min(STRANGERS, len(split)))
    sets = {"held_out": (heldout.logits.cpu(), heldout.labels.cpu())}
    if len(chosen):
        logits, _ = predict(network, split.take(chosen).images, engine)
        sets["strangers"] = (logits.cpu(), torch.full((len(chosen),), -1))
    scores = {name: impostor_scores(logits, labels, len(data.classes)) for name, (logits, labels) in sets.items()}
    limits = {name: threshold(own) for name, own in scores.items() if len(own)}
    limit = max(limits.values())
    impostors = {
        name: Impostors(len(sets[name][1]), len(scores[name]), own, float((scores[name] > limit).double().mean()))
        for name, own in limits.items()
    }
    kind = "distractors" if data.distractors_are_public else "public"
    return Calibration(limit, RATE, impostors, kind if "strangers" in impostors else None)


def yardstick(private: PrivateAnswers, labels: Int64[Tensor, " n"]) -> Yardstick:
    """Mean distance (L2, not squared) of a real photograph of an attacked person to the nearest held-out one.

    From each held-out image to the other held-out ones of its person; from the training images where nobody has two.
    Null where it is 0 (all real images are copies).
    """
    _, features, owners = private.heldout
    several = torch.isin(owners, labels) & (torch.bincount(owners)[owners] > 1)
    if bool(several.any()):
        real, source = leave_one_out(features[several], owners[several]), "heldout"
    else:
        own = private.train.of(labels)
        real, source = knn_distance(own.features, own.labels, features, owners), "train"
    mean = float(real.sqrt().mean())
    return Yardstick(mean if mean > 0 else None, source)


def agreement(
    hits: Mapping[str, Bool[Tensor, " n"]], families: Mapping[str, str], labels: Int64[Tensor, " n"]
) -> dict[str, Agreement]:
    """Of every two evaluation models of different families, `a+b`: the share of images on which both name the person
    (open-set), with its interval, and Cohen's kappa of their hits, null where both say one thing of all images.

    Args:
        hits: Open-set hits by model.
        families: Architecture family by model.
        labels: The claimed people.
    """
    pairs = {}
    for one, other in combinations(hits, 2):
        if families[one] != families[other]:
            chance_corrected = kappa(hits[one], hits[other])
            both = clustered_interval(hits[one] & hits[other], labels)
            pairs[f"{one}+{other}"] = Agreement(
                both, None if chance_corrected != chance_corrected else chance_corrected
            )
    return pairs
