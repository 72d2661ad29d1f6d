"""How much of an attack accuracy is likeness: identification above strangers, agreement of evaluation models, and
distances on a scale from a stranger to another photograph.

Strangers are the public people (at most 500 images, evenly spaced): real images of people whom neither target nor
evaluation model has learnt. Where the data are too few to keep these apart from the distractors, they are the
distractors; the evaluation model has learnt those as 'someone else', so that it names fewer of them than it would of
others, and the threshold is too low.
"""

from collections.abc import Mapping
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mibench.core import Dataset, Split
from mibench.evaluation.judgement import PrivateAnswers
from mibench.evaluation.records import Agreement, Calibration, Yardstick
from mibench.metrics.false_positives import RATE, best_claim, threshold
from mibench.metrics.knn import knn_distance, leave_one_out
from mibench.stats.intervals import clustered_interval

__all__ = ["STRANGERS", "agreement", "calibrate", "strangers", "yardstick"]

STRANGERS = 500
"""Most images of strangers that a network is shown: enough for the 95th percentile of images."""


def strangers(data: Dataset) -> Split:
    """Real images of people whom the target has not learnt: public, or distractors where these are the same."""
    split = data.distractors if data.distractors_are_public else data.public
    count = min(STRANGERS, len(split))
    return split.take(torch.arange(count) * len(split) // max(1, count))


def calibrate(logits: Float[Tensor, "n k"], data: Dataset) -> Calibration | None:
    """The threshold of identification at FPIR 5% and where it comes from; None without strangers.

    Args:
        logits: An evaluation model's answers to the images of `strangers(data)`.
        data: What it was trained on.
    """
    if not len(logits):
        return None
    classes = len(data.classes)
    surest, _ = best_claim(logits.cpu(), classes)
    limit = threshold(surest)
    named = float((logits.argmax(dim=1) < classes).double().mean())
    passing = float((surest > limit).double().mean())
    kind = "distractors" if data.distractors_are_public else "public"
    return Calibration(limit, RATE, len(logits), passing, named, kind)


def yardstick(private: PrivateAnswers, strangers: Float[Tensor, "m d"], labels: Int64[Tensor, " n"]) -> Yardstick:
    """Mean distances (L2, not squared) to the nearest held-out image of an attacked person: of another real photograph
    of the person, and of strangers.

    Photographs are the person's other held-out images; the training images where nobody has two. Null where there are
    no strangers or all real images are copies, so that there is no scale.
    """
    _, features, owners = private.heldout
    several = torch.isin(owners, labels) & (torch.bincount(owners)[owners] > 1)
    if bool(several.any()):
        real, source = leave_one_out(features[several], owners[several]), "heldout"
    else:
        own = private.train.of(labels)
        real, source = knn_distance(own.features, own.labels, features, owners), "train"
    attacked = labels.unique()
    shown = strangers.repeat_interleave(len(attacked), dim=0)
    claimed = attacked.repeat(len(strangers))
    far = knn_distance(shown, claimed, features, owners).sqrt() if len(strangers) else torch.zeros(0)
    photograph, stranger = float(real.sqrt().mean()), float(far.mean()) if len(far) else None
    known = stranger is not None and 0 < photograph < stranger
    return Yardstick(photograph, stranger, source) if known else Yardstick(None, None, source)


def agreement(
    hits: Mapping[str, Bool[Tensor, " n"]], families: Mapping[str, str], labels: Int64[Tensor, " n"]
) -> dict[str, Agreement]:
    """Of every two evaluation models of different families, `a+b`: the share of images on which both name the person
    (open-set), with its interval.

    Args:
        hits: Open-set hits by model.
        families: Architecture family by model.
        labels: The claimed people.
    """
    return {
        f"{one}+{other}": Agreement(clustered_interval(hits[one] & hits[other], labels))
        for one, other in combinations(hits, 2)
        if families[one] != families[other]
    }
