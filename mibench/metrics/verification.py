"""Is it the person? What an independent matcher says that knows neither the private people, the attacker's, nor those
that the evaluation models learnt.

A *verifier* is a network that tells apart people who play no other part. Whom an image x claims to show, y, it compares
with the mean direction of the person's real held-out images,

    v(x, y) = < f(x), t_y > / |f(x)|,      t_y = sum_r f(r) / |f(r)|, scaled to length 1,

and accepts x where v(x, y) exceeds a threshold that at most a stated share of *impostor* claims exceed: real images of
others that claim to be y. Attack and verifier share neither images nor people, so that what fools the target's kind of
network on the private people has no reason to fool the verifier.

References:
    | ISO/IEC 19795-1:2021, false accept rate, verification with templates of several images
    | https://www.iso.org/standard/73515.html
    | IARPA Janus Benchmark A (Klare et al., CVPR 2015), templates
    | https://openaccess.thecvf.com/content_cvpr_2015/html/Klare_Pushing_the_Frontiers_2015_CVPR_paper.html
    | Revisiting Model Inversion Evaluation (Ho et al., 2025): evaluation models share the target's false positives
    | https://arxiv.org/abs/2505.03519
"""

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "RATES", "accepted", "area_under_roc", "claims", "similarity", "templates", "without_own"]

CARD = {
    "summary": "an independent matcher's verdict: is the image nearer to the person's real images than 1% of impostors",
    "title": "Revisiting Model Inversion Evaluation: From Misleading Standards to Reliable Privacy Assessment",
    "authors": "Ho, Koh and Cheung",
    "venue": "arXiv",
    "year": 2025,
    "link": "https://arxiv.org/abs/2505.03519",
}

METRICS = (
    Metric(
        "likeness",
        ("like-", "ness"),
        Unit.SHARE,
        Direction.HIGHER,
        "the headline: named as the person by the first evaluation model (open-set) and accepted as the person by the "
        "first verifier at a false-accept rate of 1%; without a verifier, the own-ball gate stands in",
        "[0, 1]",
        needs=(Need.EVALUATOR, Need.HELDOUT, Need.VERIFIER),
    ),
    Metric(
        "verified",
        ("verified", "{model} 1%"),
        Unit.SHARE,
        Direction.HIGHER,
        "accepted as the person by a verifier, at a threshold that 1% of impostor claims pass",
        "[0, 1]",
        needs=(Need.VERIFIER, Need.HELDOUT, Need.STRANGERS),
    ),
    Metric(
        "verified_strict",
        ("verified", "{model} .1%"),
        Unit.SHARE,
        Direction.HIGHER,
        "accepted as the person by a verifier, at a threshold that one in a thousand impostor claims passes",
        "[0, 1]",
        needs=(Need.VERIFIER, Need.HELDOUT, Need.STRANGERS),
    ),
    Metric(
        "similarity",
        ("cosine", "{model}"),
        Unit.NUMBER,
        Direction.HIGHER,
        "cosine of the image and the mean direction of the person's held-out images in a verifier's features",
        "[-1, 1]",
        needs=(Need.VERIFIER, Need.HELDOUT),
    ),
    Metric(
        "face_found",
        ("face", "found"),
        Unit.SHARE,
        Direction.NEITHER,
        "whether a face detector finds a face in the image, so that it is aligned for a face recogniser; where it does "
        "not, the image is cropped as the faces of the real held-out images usually lie",
        "[0, 1]",
        needs=(Need.VERIFIER,),
    ),
    Metric(
        "both_verified",
        ("both", "verifiers"),
        Unit.SHARE,
        Direction.HIGHER,
        "accepted as the person by two verifiers of different families, each at a false-accept rate of 1%",
        "[0, 1]",
        per=Per.SET,
        needs=(Need.VERIFIER, Need.HELDOUT),
    ),
)

RATES = {"verified": 0.01, "verified_strict": 0.001}
"""The share of impostor claims that may pass, by metric."""


def _directions(features: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    require_finite("verification", "features", features)
    return torch.nn.functional.normalize(features.double(), dim=1)


def templates(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int
) -> Float64[Tensor, "{classes} d"]:
    """t_y of every person: the mean direction of the person's images, of length 1; 0 for people without images.

    Raises:
        ValueError: NaN or infinite features.
    """
    total = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    return torch.nn.functional.normalize(total.index_add(0, labels, _directions(features)), dim=1)


def claims(features: Float[Tensor, "n d"], template: Float64[Tensor, "k d"]) -> Float64[Tensor, "n k"]:
    """v(x, y) of every image and every person, in [-1, 1].

    Raises:
        ValueError: NaN or infinite features.
    """
    return _directions(features) @ template.T


def similarity(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], template: Float64[Tensor, "k d"]
) -> Float64[Tensor, " n"]:
    """v(x, y) of each image and the person it claims to show, in [-1, 1].

    Raises:
        ValueError: NaN or infinite features.
    """
    return (_directions(features) * template[labels]).sum(dim=1)


def without_own(features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """v of each real image and the template of the person's *other* images; NaN where the person has no other.

    Raises:
        ValueError: NaN or infinite features.
    """
    own = _directions(features)
    total = torch.zeros(int(labels.max()) + 1, own.shape[1], dtype=torch.float64, device=own.device)
    others = total.index_add(0, labels, own)[labels] - own
    alone = torch.bincount(labels)[labels] < 2
    similarity = (own * torch.nn.functional.normalize(others, dim=1)).sum(dim=1)
    return similarity.masked_fill(alone, torch.nan)


def area_under_roc(genuine: Float64[Tensor, " n"], impostors: Float64[Tensor, " m"]) -> float:
    """P(genuine > impostor) + P(equal) / 2: the area under the ROC curve; 1 tells all apart, 1/2 is chance.

    Raises:
        ValueError: If either is empty.
    """
    if not len(genuine) or not len(impostors):
        raise ValueError(f"area under the ROC curve of {len(genuine)} genuine and {len(impostors)} impostor claims")
    ordered = impostors.sort().values
    below = torch.searchsorted(ordered, genuine, side="left").double()
    upto = torch.searchsorted(ordered, genuine, side="right").double()
    return float(((below + upto) / 2).mean() / len(ordered))


def accepted(similarities: Float64[Tensor, " n"], threshold: float) -> Bool[Tensor, " n"]:
    """Which claims pass: strictly above the threshold, so that ties never let more impostors in than the rate."""
    return similarities > threshold
