"""Gradient search over latents, and scoring a pool of latents or images without gradients."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.core import AttackContext, BudgetExhausted, Oracle, Prior, augment
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["adam", "best_of_pool", "descend", "keys", "piecewise", "pool_scores", "render", "robust_confidence"]


@runtime_checkable
class Latents(Protocol):
    """Anything with parameters to move and samples to draw."""

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""

    def draw(self, noise: Noise) -> Float[Tensor, "n d"]:
        """One latent per row."""


def keys(labels: Int64[Tensor, " k"], images: int) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Each label `images` times in a row, and a noise key for each that no other (label, image) has."""
    repeated = labels.repeat_interleave(images)
    return repeated, repeated * images + torch.arange(images, device=labels.device).repeat(len(labels))


def adam(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    reference_batch: int = 1,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Adam:
    """Adam that moves under a sum of losses as torch's does under their mean over `reference_batch` of them.

    m / B / (sqrt(v) / B + eps) = m / (sqrt(v) + B eps): to divide all gradients by B is to multiply eps by B. Authors
    average over a batch; `descend` sums, so that no latent depends on its company.
    """
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=1e-8 * reference_batch)


def descend(
    latents: Latents,
    loss: Callable[[Float[Tensor, "n d"], Noise], Float[Tensor, " n"]],
    optimizer: torch.optim.Optimizer,
    steps: int,
    noise: Noise,
    scale: float = 1.0,
    clamp: float | None = None,
) -> int:
    """Minimise sum_i loss_i * scale by gradient steps; returns the steps taken (fewer where the budget ends).

    The sum keeps latents independent: the gradient of one is what it would get alone. Reference code averages over a
    batch of B instead; `scale` = 1 / B gives SGD's step size, `adam` Adam's. With `clamp`, latents are clamped to
    [-clamp, clamp] after each step, without resetting the momentum.

    Raises:
        UserError: If a loss or gradient stops being finite; names the step and the learning rate.
    """
    parameters = latents.parameters()
    broken = torch.full((), steps, device=parameters[0].device)
    taken = 0
    try:
        for step in range(steps):
            drawn = noise.of("step", step)
            with torch.enable_grad():
                values = loss(latents.draw(drawn), drawn)
                gradients = torch.autograd.grad(values.sum() * scale, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            # Noted on the device and read once at the end: asking at every step would wait for the device each time.
            # The gradients too: at the last step nothing but them would tell that the latents are now NaN.
            finite = torch.stack([part.isfinite().all() for part in (values, *gradients)]).all()
            broken = torch.minimum(broken, torch.where(finite, steps, step))
            optimizer.step()
            if clamp is not None:
                with torch.no_grad():
                    for parameter in parameters:
                        parameter.clamp_(-clamp, clamp)
            taken += 1
    except BudgetExhausted:
        pass
    if int(broken) < steps:
        rate = optimizer.param_groups[0]["lr"]
        raise UserError(
            f"the attack's loss or gradient stopped being finite at step {int(broken)} of {steps} (lr {rate}); lower "
            "it with --set lr=..."
        )
    return taken


@torch.no_grad()
def pool_scores(
    oracle: Oracle, prior: Prior, pool: Float[Tensor, "p d"], mirror: bool, work: AttackContext
) -> Float[Tensor, "p k"]:
    """The target's softmax on every image of a pool, averaged over the image and (if asked) its mirror image."""
    rows = []
    for chunk in pool.split(work.batch):
        images = prior.decode(chunk)
        p = oracle.probs(images, None)
        rows.append((p + oracle.probs(images.flip(3), None)) / 2 if mirror else p)
    return torch.cat(rows)


def best_of_pool(scores: Float[Tensor, "p k"], labels: Int64[Tensor, " j"], count: int) -> Int64[Tensor, "j count"]:
    """For each label the pool's `count` best members by that class's score, best first, none twice.

    Raises:
        UserError: If the pool is smaller than `count`.
    """
    if len(scores) < count:
        raise UserError(f"{count} candidates are wanted from a pool of {len(scores)}; make the pool larger")
    return scores[:, labels].topk(count, dim=0).indices.T


@torch.no_grad()
def robust_confidence(
    oracle: Oracle,
    images: Callable[[slice], Float[Tensor, "m c h w"]],
    labels: Int64[Tensor, " n"],
    noise: Noise,
    views: int,
    mirror: bool,
    work: AttackContext,
    scale: tuple[float, float] = (0.5, 0.9),
    ratio: tuple[float, float] = (0.8, 1.2),
) -> Float[Tensor, " n"]:
    """The target's probability of each image's identity, summed over `views` random crops (mirrored half the time).

    Source: PPA's final selection, RandomResizedCrop of area .5-.9 and ratio .8-1.2. Differs: every image has crops of
    its own; the reference draws one crop for a whole batch, which makes the ranks of different batches incomparable.
    """
    found = []
    for start in range(0, len(labels), work.batch):
        rows = slice(start, start + work.batch)
        x, y = images(rows), labels[rows]
        stream = Noise(noise.seed, noise.keys[rows], noise.purpose)
        total = torch.zeros(len(y), device=x.device)
        for view in range(views):
            seen = augment.random_resized_crop(x, stream.of("view", view), scale, ratio, 0.5 if mirror else 0.0)
            try:
                total += oracle.probs(seen, y).gather(1, y[:, None])[:, 0]
            except BudgetExhausted:
                break  # the views seen so far decide
        found.append(total)
    return torch.cat(found)


def piecewise(
    name: str, count: int, oracle: Oracle, work: AttackContext, part: Callable[[slice], Float[Tensor, "m d"]]
) -> Float[Tensor, "n d"]:
    """A search over `count` independent rows, as many at once as the workspace allows; each piece is kept when done."""
    return torch.cat(
        [
            work.once(f"{name}-{rows.start}-{rows.stop}", oracle, partial(part, rows))
            for rows in chunks(count, work.batch)
        ]
    )


@torch.no_grad()
def render(
    prior: Prior, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"], work: AttackContext
) -> Float[Tensor, "n c h w"]:
    """The images of latents, as many at once as the workspace allows."""
    return torch.cat([prior.decode(z[rows], y[rows]) for rows in chunks(len(z), work.batch)])


def chunks(count: int, size: int) -> list[slice]:
    """Nearly equal slices of at most `size`, so that the last one is not a waste of a launch."""
    pieces = max(1, math.ceil(count / size))
    edges = [round(i * count / pieces) for i in range(pieces + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]
