"""Muon: momentum whose directions are all made equally long, for the matrices inside a network; AdamW for the rest.

References:
    | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)
    | https://kellerjordan.github.io/posts/muon/
    | Old Optimizer, New Norm: An Anthology (Bernstein and Newhouse, 2024), why: steepest descent in the spectral norm
    | https://arxiv.org/abs/2409.20325
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Muon", "hidden_weights", "orthogonalised"]

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of the published iteration: the steepest at 0 whose singular values stay within about [.7, 1.2]."""

BESIDE = 0.03
"""The rate of AdamW's parameters as a share of the matrices': steps of Muon are orthogonal matrices, which have entries
of about 1 / sqrt(width) where those of Adam have 1."""


def orthogonalised(matrices: Float[Tensor, "*b m n"], iterations: int = 5) -> Float[Tensor, "*b m n"]:
    """U f(S) V^T of each U S V^T, f(s) about 1 for every s well above 0: the nearest orthogonal matrix, roughly.

    Newton-Schulz: X <- a X + (b A + c A^2) X with A = X X^T, from X / |X|_F. A and what acts on X commute, so that all
    of it is done on the small side: the iterations multiply min(m, n)-square matrices, and X is touched twice.

    Args:
        matrices: One or a batch; all-zero ones stay zero.
        iterations: Each multiplies small singular values by 3.4.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices.float()
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    identity = torch.eye(x.shape[-2], device=x.device)
    gram, product = x @ x.mT, identity
    for _ in range(iterations):
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return (x if wide else x.mT).to(matrices.dtype)


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that learn and are matrices inside the network: of linear and convolution layers, without the head.

    A head is what the attribute `head` holds; a network without one has hidden layers only.
    """
    head = getattr(model, "head", None)
    outside = set(head.parameters()) if isinstance(head, nn.Module) else set()
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights: list[Any] = [layer.weight for layer in model.modules() if isinstance(layer, layers)]
    return [weight for weight in dict.fromkeys(weights) if weight.requires_grad and weight not in outside]


class Muon(torch.optim.Optimizer):
    """W <- (1 - lr decay) W - lr sqrt(max(1, m / n)) O(G + mu B), B <- mu B + (1 - mu) G, O as in `orthogonalised`.

    A convolution's kernel (out, in, h, w) is the matrix (out, in h w). Biases, normalisation and the head take AdamW's
    step at `BESIDE` times the rate.

    Args:
        matrices: Parameters of two dimensions or more.
        others: Parameters that AdamW trains.
        lr: Of the matrices.
        weight_decay: Decoupled, of both.
        momentum: mu, of the matrices (Nesterov).
        betas: Of AdamW.
        iterations: Of Newton-Schulz.

    Source: torch.optim.Muon, whose steps these are for parameters of two dimensions. Differs: it orthogonalises in
    bfloat16, one matrix at a time; here in float32, all of one shape together.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        iterations: int = 4,
    ) -> None:
        shared = {"lr": lr, "weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "momentum": momentum, "iterations": iterations, "matrices": True},
            {"params": list(others), "betas": betas, "matrices": False},
        ]
        super().__init__([group for group in groups if group["params"]], shared)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if learning:
                (self._muon if group["matrices"] else self._adamw)(group, learning)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        alike: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1.0 - group["momentum"])
            ahead = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)
            alike.setdefault((ahead.shape[0], ahead.shape[1]), []).append((parameter, ahead))
        for (rows, columns), members in alike.items():
            steps = orthogonalised(torch.stack([ahead for _, ahead in members]), group["iterations"])
            scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
            for (parameter, _), step in zip(members, steps, strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.sub_(step.view(parameter.shape), alpha=scale)

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        rate, (first, second) = BESIDE * group["lr"], group["betas"]
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state |= {"steps": torch.zeros(()), "mean": torch.zeros_like(parameter)}
                state["square"] = torch.zeros_like(parameter)
            state["steps"] += 1
            done = float(state["steps"])
            state["mean"].lerp_(gradient, 1.0 - first)
            state["square"].lerp_(gradient.square(), 1.0 - second)
            size = (state["square"] / (1.0 - second**done)).sqrt_().add_(1e-8)
            parameter.mul_(1.0 - rate * group["weight_decay"])
            parameter.addcdiv_(state["mean"], size, value=-rate / (1.0 - first**done))
