"""Adversarial accuracy: the share of images that no small change of the pixels makes the network misclassify.

    robust_i(eps) = 1[ argmax f(x') = y_i for every x' found with |x' - x_i|_inf <= eps, 0 <= x' <= 1 ]

A side effect to report beside a defense: small-eps robustness goes along with what an attack reconstructs, for
defenses that do not merely suppress gradients (as the paper of at_at reports).
The attack is AutoAttack's own APGD (package pyautoattack): PGD from a random start whose step size adapts, on

    DLR = -(l_y - max_{k != y} l_k) / (l_(1) - l_(3)),   l_(j) the j-th largest logit,

which, unlike the cross-entropy, still has a gradient where the softmax is saturated. AutoAttack's other attacks
(cross-entropy, FAB, Square) are left out for their cost, so this is an upper bound on the robust accuracy.

Differs: two classes have no third logit; they are given one, which makes the denominator a constant.

References:
    | Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks (Croce and
      Hein, 2020)
    | https://arxiv.org/abs/2003.01690
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), PGD
    | https://arxiv.org/abs/1706.06083
"""

import logging
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mibench.metrics.accuracy import top_k
from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.runtime.engine import at_once
from mibench.runtime.rng import seed_of
from mibench.stats.intervals import Interval, proportion

__all__ = ["CARD", "METRICS", "adversarial_accuracy", "correct_under_attack", "spread"]

CARD = {
    "summary": "share of private images that no change of at most eps a pixel makes the target misclassify",
    "title": "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    "authors": "Croce and Hein",
    "venue": "ICML",
    "year": 2020,
    "link": "https://arxiv.org/abs/2003.01690",
}

METRICS = (
    Metric(
        "adversarial_accuracy",
        ("PGD", "ε {model}"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of unseen private images that no change of at most ε a pixel makes the target misclassify",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.HELDOUT),
    ),
)

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # a network without any gradient is for `metrics.gradients` to report

CHUNK = 50
"""Images attacked at once: memory for the largest architectures."""


def spread(labels: Int64[Tensor, " n"], limit: int) -> Int64[Tensor, " m"]:
    """Places of at most `limit` images, every identity's first image before any identity's second."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    turn = torch.empty_like(labels)
    turn[order] = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
    return turn.argsort(stable=True)[:limit].sort().values


def correct_under_attack(
    logits_of: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    eps: Sequence[float],
    steps: int = 10,
    seed: int = 0,
) -> Bool[Tensor, "e n"]:
    """Whether each image stays rightly classified under the attack, one row for each eps (in units of [0, 1]).

    An image that falls at one eps falls at every larger one, whose ball contains the smaller; one that is
    misclassified as it is falls at all. Ties fall.

    Args:
        logits_of: Images to logits in float32, differentiable, without randomness; asked in eval mode.
        x: In [0, 1].
        y: True classes.
        eps: Largest changes of a pixel.
        steps: Of the attack.
        seed: Of the random starts.
    """
    from pyautoattack.autopgd_base import APGDAttack

    def padded(images: Tensor) -> Tensor:
        logits = logits_of(images)
        if logits.shape[1] > 2:
            return logits
        most, least = logits.amax(dim=1, keepdim=True), logits.amin(dim=1, keepdim=True)
        return torch.cat([logits, most - 2.0 * (most - least).detach()], dim=1)

    stays = torch.zeros(len(eps), len(x), dtype=torch.bool, device=x.device)
    with torch.random.fork_rng():  # the attack seeds torch's global generator
        chunk = at_once(CHUNK, x.shape, x.device)
        for begin in range(0, len(x), chunk):
            rows = slice(begin, begin + chunk)
            images, labels = x[rows].contiguous(), y[rows]
            with torch.no_grad():
                stands = top_k(logits_of(images), labels)
            for place in sorted(range(len(eps)), key=lambda place: eps[place]):
                left = stands.nonzero()[:, 0]
                if len(left) == 0:
                    break
                attack = APGDAttack(
                    padded, n_iter=steps, eps=eps[place], loss="dlr", seed=seed_of(seed, begin), logger=_LOG
                )
                changed = attack.perturb(images[left], labels[left])
                # Rounding may carry x + eps over the edge of the ball by one unit in the last place.
                changed = images[left] + (changed - images[left]).clamp(-eps[place], eps[place])
                with torch.no_grad():
                    stands[left] = top_k(logits_of(changed), labels[left])
                stays[place, rows] = stands
    return stays


def adversarial_accuracy(
    logits_of: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    eps: Sequence[float] = (0.031, 0.0025, 0.0005),
    steps: int = 10,
    seed: int = 0,
) -> dict[float, Interval]:
    """The share that `correct_under_attack`, for each eps, with its 95% interval clustered by identity."""
    rows = correct_under_attack(logits_of, x, y, eps, steps, seed)
    return {size: proportion(row, y) for size, row in zip(eps, rows, strict=True)}
