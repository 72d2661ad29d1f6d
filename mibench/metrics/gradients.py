"""Input gradients: whether an attack that starts here has anything to follow.

    g_i = | d loss(f(x_i), y'_i) / d x_i |_2,   y'_i != y_i

A defense that makes g vanish under one loss only hides what the network knows: an attacker takes another loss, the
logits instead of the softmax (max-margin), or a surrogate. So both losses are reported, and a defense that suppresses
the first and not the second is attacked with the second.

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018)
    | https://arxiv.org/abs/1802.00420
    | Rank Matters: Understanding and Defending Model Inversion Attacks via Low-Rank Feature Filtering (Yu et al.,
      2026), a defense by vanishing gradients
    | https://arxiv.org/abs/2410.05814
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit
from mibench.runtime.engine import at_once
from mibench.runtime.rng import Noise
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "GradientNorm", "gradient_norms", "others", "summary"]

CARD = {
    "summary": "norm of the loss's gradient in the pixels, for another class: what an attacker starts from",
    "title": "Obfuscated Gradients Give a False Sense of Security",
    "authors": "Athalye, Carlini and Wagner",
    "venue": "ICML",
    "year": 2018,
    "link": "https://arxiv.org/abs/1802.00420",
}

METRICS = (
    Metric(
        "gradient_norm",
        ("gradient", "norm"),
        Unit.NUMBER,
        Direction.NEITHER,
        "median norm of another class's loss gradient in the pixels: near 0 hides leakage, it does not stop it",
        "[0, inf)",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.HELDOUT),
        interval=False,
    ),
    Metric(
        "vanishing",
        ("gradient", "vanishes"),
        Unit.SHARE,
        Direction.NEITHER,
        "share of unseen private images at which that gradient is lost in float32 (norm below 1e-8)",
        "[0, 1]",
        per=Per.NETWORK,
        needs=(Need.TARGET, Need.HELDOUT),
        interval=False,
    ),
)

CHUNK = 50
VANISHING = 1e-8
"""A gradient below this norm is lost in float32 once it is added to a latent."""


class GradientNorm(NamedTuple):
    """Median norm over the images, and the share of them whose gradient has vanished (norm below 1e-8)."""

    median: float
    vanishing: float


def others(labels: Int64[Tensor, " n"], classes: int, noise: Noise) -> Int64[Tensor, " n"]:
    """A class that is not the image's own, uniform over the rest; one draw for each stream of the noise."""
    jump = 1 + (noise.uniform(1)[:, 0] * (classes - 1)).long().clamp(max=classes - 2)
    return (labels + jump) % classes


def gradient_norms(
    logits_of: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, " n"]:
    """Norm of d loss / d x over all pixels, one for each image; leaves no gradient in the network.

    Args:
        logits_of: Images to logits in float32, in eval mode.
        x: In [0, 1].
        y: The classes an attacker would want.
        loss: (logits, classes) to one value an image, as in `mibench.objectives`.

    Raises:
        ValueError: NaN or infinite gradients.
    """
    norms = []
    chunk = at_once(CHUNK, x.shape, x.device)
    for images, wanted in zip(x.split(chunk), y.split(chunk), strict=True):
        leaf = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits_of(leaf), wanted).sum(), leaf)
        norms.append(gradient.float().flatten(1).norm(dim=1))
    all_norms = torch.cat(norms)
    require_finite("gradients", "gradient norms", all_norms)
    return all_norms


def summary(norms: Float[Tensor, " n"]) -> GradientNorm:
    """Median and share of vanished gradients."""
    return GradientNorm(float(norms.median()), float((norms < VANISHING).float().mean()))
