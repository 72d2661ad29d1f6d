"""Attack accuracy: the share of reconstructions that an evaluation model takes for the attacked identity.

    hit_i = 1[ #{ j != y_i : l_ij >= l_iy } < k ]

Open-set (the headline): the logits cover the K private identities and D distractor people, and a hit must
beat them all. Closed-set (as in papers): only the first K logits; someone who is in no class still gets one.

References:
    | The Secret Revealer: Generative Model-Inversion Attacks [...] (Zhang et al., 2020)
    | https://arxiv.org/abs/1911.07135

Differs:
    A tie counts against the attack, where argmax and topk favour whichever class comes first: a constant or
    saturated evaluation model then scores 0, not the share of class 0. Compare float32 logits: bfloat16 makes
    ties.
"""

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "closed_set", "top_k"]

CARD = {
    "summary": "share of reconstructions that the evaluation model takes for the attacked identity",
    "title": "The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks",
    "authors": "Zhang, Jia, Pei, Wang, Li and Song",
    "venue": "CVPR",
    "year": 2020,
    "link": "https://arxiv.org/abs/1911.07135",
}

METRICS = (
    Metric(
        "open_top1",
        ("open-set", "{model}"),
        Unit.SHARE,
        Direction.HIGHER,
        "whether the evaluation model, which can also answer 'someone else', takes the image for the person",
        "[0, 1]",
        needs=(Need.EVALUATOR,),
    ),
    Metric(
        "open_top5",
        ("open-set 5", "{model}"),
        Unit.SHARE,
        Direction.HIGHER,
        "whether the person is among the five likeliest answers of the evaluation model, other people included",
        "[0, 1]",
        needs=(Need.EVALUATOR,),
    ),
    Metric(
        "closed_top1",
        ("closed", "{model}"),
        Unit.SHARE,
        Direction.HIGHER,
        "whether the evaluation model, asked among the private identities alone, takes the image for the person",
        "[0, 1]",
        needs=(Need.EVALUATOR,),
    ),
    Metric(
        "closed_top5",
        ("closed 5", "{model}"),
        Unit.SHARE,
        Direction.HIGHER,
        "whether the person is among the five likeliest answers of the evaluation model among the private identities",
        "[0, 1]",
        needs=(Need.EVALUATOR,),
    ),
    Metric(
        "target_top1",
        ("target", "itself"),
        Unit.SHARE,
        Direction.NEITHER,
        "whether the attacked target itself takes the image for the person: what the attack aimed at, no likeness",
        "[0, 1]",
        needs=(Need.TARGET,),
    ),
    Metric(
        "target_confidence",
        ("target's", "confidence"),
        Unit.SHARE,
        Direction.NEITHER,
        "the probability that the attacked target itself gives the person",
        "[0, 1]",
        needs=(Need.TARGET,),
    ),
    Metric(
        "natural_accuracy",
        ("natural", "accuracy"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of unseen private images that the target recognises: what it is worth to its owner",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.HELDOUT),
    ),
    Metric(
        "fit",
        ("fit", "as trained"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of its own training images, freshly augmented and changed by its defenses as in training, that the "
        "target recognises: below 99% it is not converged, and what looks like a defense may be a lack of training",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.TRAIN),
    ),
    Metric(
        "heldout_accuracy",
        ("held-out", "{model}"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of unseen private images that the evaluation model recognises among the private identities",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.EVALUATOR, Need.HELDOUT),
    ),
    Metric(
        "heldout_accuracy_open",
        ("held-out open", "{model}"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of unseen private images that the evaluation model recognises, other people included",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.EVALUATOR, Need.HELDOUT),
    ),
)


def top_k(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], k: int = 1) -> Bool[Tensor, " n"]:
    """Whether fewer than k other classes score at least as high as the labelled one.

    Raises:
        ValueError: NaN or infinite logits, a label outside the classes, k outside 1..classes.
    """
    require_finite("accuracy", "logits", logits)
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"accuracy: top-{k} of {classes} classes; allowed: 1 to {classes}")
    if bool(((labels < 0) | (labels >= classes)).any()):
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"accuracy: labels go from {span}; allowed: 0 to {classes - 1}")
    own = logits.gather(1, labels[:, None])
    # The labelled class itself is always counted once, hence <= k.
    return (logits >= own).sum(dim=1) <= k


def closed_set(logits: Float[Tensor, "n k"], private_classes: int) -> Float[Tensor, "n p"]:
    """The logits of the private identities alone: the evaluation model may no longer answer 'someone else'.

    Raises:
        ValueError: more private classes than logits, or none.
    """
    if not 1 <= private_classes <= logits.shape[1]:
        raise ValueError(f"accuracy: {private_classes} private classes of {logits.shape[1]} logits")
    return logits[:, :private_classes]
