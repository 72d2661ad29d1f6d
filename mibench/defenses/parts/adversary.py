"""Inner optimisations of a defense: gradients through the network in training that leave no trace in it.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., ICLR 2018), the descent
    | https://arxiv.org/abs/1706.06083
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.runtime.rng import Noise

__all__ = ["calm", "pgd"]


@contextmanager
def calm(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; afterwards each one's flag is again what it was. Nothing else is touched.

    So batch normalisation neither mixes rows nor learns from what is crafted, and dropout is off.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False  # not eval(), which a layer that is kept frozen may have overridden
        yield
    finally:
        for module, training in flags:
            module.training = training


def pgd(
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    y: Int64[Tensor, " b"],
    eps: float,
    step: float,
    iterations: int,
    targeted: bool,
    noise: Noise,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Float[Tensor, "b c h w"]:
    """x_0 = x + U[-eps, eps]; x_{i+1} = P(x_i -+ step sign grad CE(f(x_i), y)), P the projection on the allowed images.

    Allowed is what lies in [0, 1] and within eps of x at every pixel. Targeted goes down towards y, untargeted up, away
    from it. Rows never influence each other; one pass of the whole batch for each iteration.

    Args:
        model: Images in [0, 1] to logits; in eval mode meanwhile, and left as it was (flags, buffers, gradients).
        x: Images in [0, 1].
        y: The class whose cross-entropy is followed.
        eps: In pixel units of [0, 1], as `step`.
        step: How far every pixel moves in one iteration.
        iterations: Gradient steps.
        targeted: Towards y, or away from it.
        noise: Of the random start: one stream per image.
        autocast: The precision of the forward pass (`Engine.autocast`); gradients of x are float32.

    Source: section 2.1 of the paper; the random start of its experiments.
    """
    low, high = (x - eps).clamp(min=0.0), (x + eps).clamp(max=1.0)
    moved = torch.clamp(x + eps * (2.0 * noise.uniform(*x.shape[1:]) - 1.0), low, high)
    towards = -step if targeted else step
    with calm(model):
        for _ in range(iterations):
            moved.requires_grad_()
            with torch.enable_grad():
                with autocast():
                    logits = model(moved)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), y, reduction="sum"), moved)
            moved = torch.clamp(moved.detach() + towards * gradient.sign(), low, high)
    return moved.detach()
