"""One evaluation model's verdicts: which person it sees in each image, how near real ones, how all images lie together.

Everything follows from one forward pass: logits and penultimate features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mibench.evaluation.records import Distances
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.fid import Statistics, frechet_distance, statistics
from mibench.metrics.kid import kernel_distance
from mibench.metrics.knn import knn_distance
from mibench.metrics.prdc import K, Manifold, manifold, prdc
from mibench.runtime.engine import Engine

__all__ = ["Answers", "PrivateAnswers", "Reference", "distances", "place_of", "reference", "verdicts"]


class Answers(NamedTuple):
    """A network's answers to labelled images."""

    logits: Float[Tensor, "n k"]
    features: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"]

    def of(self, identities: Int64[Tensor, " m"]) -> "Answers":
        """The answers to images of some people."""
        rows = torch.isin(self.labels, identities)
        return Answers(self.logits[rows], self.features[rows], self.labels[rows])


class PrivateAnswers(NamedTuple):
    """An evaluation model's answers to the private images: those it has learnt, and those nobody has."""

    train: Answers
    heldout: Answers


class Reference(NamedTuple):
    """Real features, and what two sets of images that are compared with them need of them only once.

    `statistics` and `manifold` are null where there are too few images for them.
    """

    features: Float[Tensor, "m d"]
    statistics: Statistics | None
    manifold: Manifold | None


def place_of(engine: Engine) -> torch.device:
    """Where distances of features are taken: the engine's device, unless it has no float64."""
    return engine.device if engine.device.type != "mps" else torch.device("cpu")


def reference(real: Float[Tensor, "m d"]) -> Reference:
    """Statistics and balls of real features."""
    return Reference(real, statistics(real) if len(real) >= 2 else None, manifold(real) if len(real) > K else None)


def distances(real: Float[Tensor, "m d"] | Reference, generated: Float[Tensor, "n d"]) -> Distances:
    """Fréchet and kernel distance, precision, recall, density and coverage of two sets of features, real first.

    Null, never 0, where there are too few images for one. On the features' device, in float64.
    """
    known = real if isinstance(real, Reference) else reference(real)
    fewest = min(len(known.features), len(generated))
    kernel = kernel_distance(known.features, generated) if fewest >= 3 else None
    return Distances(
        frechet_distance(known.statistics, generated) if known.statistics and fewest >= 2 else None,
        kernel.value if kernel else None,
        kernel.error if kernel else None,
        prdc(known.manifold, generated) if known.manifold and fewest > K else None,
        len(generated),
        len(known.features),
    )


def _to_heldout(features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], heldout: Answers) -> Float64[Tensor, " n"]:
    """Squared L2 distance to the person's nearest held-out image; NaN for people who have none, if some have one."""
    known = torch.isin(labels, heldout.labels)
    if known.all() or not known.any():
        return knn_distance(features, labels, heldout.features, heldout.labels)
    distances = torch.full((len(labels),), torch.nan, dtype=torch.float64, device=features.device)
    distances[known] = knn_distance(features[known], labels[known], heldout.features, heldout.labels)
    return distances


def verdicts(answers: Answers, private: PrivateAnswers, classes: int) -> dict[str, Tensor]:
    """What one evaluation model says of each image, by metric; on the CPU.

    Args:
        answers: To the images, with the people they claim to show.
        private: The model's answers to the private images.
        classes: How many private people there are.
    """
    logits, features, labels = answers
    closed = closed_set(logits, classes)
    columns = {
        "open_top1": top_k(logits, labels, 1),
        "open_top5": top_k(logits, labels, min(5, logits.shape[1])),
        "closed_top1": top_k(closed, labels, 1),
        "closed_top5": top_k(closed, labels, min(5, classes)),
        "knn_train": knn_distance(features, labels, private.train.features, private.train.labels),
        "knn_heldout": _to_heldout(features, labels, private.heldout),
    }
    return {name: values.cpu() for name, values in columns.items()}
