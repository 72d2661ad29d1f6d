"""Gradient search over latents, and scoring a pool of latents or images without gradients."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mibench.core import AttackContext, BudgetExhausted, Oracle, Prior, augment
from mibench.core.steps import Held, Stateful
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = [
    "adam",
    "best_of_pool",
    "descend",
    "gathered",
    "keys",
    "piecewise",
    "pool_scores",
    "render",
    "robust_confidence",
]


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
    work: AttackContext | None = None,
    states: Sequence[Stateful] = (),
) -> int:
    """Minimise sum_i loss_i * scale by gradient steps; returns the steps taken (fewer where the budget ends).

    The sum keeps latents independent: the gradient of one is what it would get alone. Reference code averages over a
    batch of B instead; `scale` = 1 / B gives SGD's step size, `adam` Adam's. With `clamp`, latents are clamped to
    [-clamp, clamp] after each step, without resetting the momentum.

    With `work`, a killed search goes on from its last checkpoint (see `AttackContext.steps`) of the latents, the
    optimiser and `states`, which are whatever else `loss` leaves from one step for the next.

    Raises:
        UserError: If a loss or gradient stops being finite; names the step and the learning rate.
    """
    parameters = latents.parameters()
    held = Held(moved=parameters, broken=torch.full((), steps, device=parameters[0].device), taken=0)
    try:
        for step in range(steps) if work is None else work.steps(steps, held, optimizer, *states):
            drawn = noise.of("step", step)
            with torch.enable_grad():
                values = loss(latents.draw(drawn), drawn)
                gradients = torch.autograd.grad(values.sum() * scale, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            # Noted on the device and read once at the end: asking at every step would wait for the device each time.
            # The gradients too: at the last step nothing but them would tell that the latents are now NaN.
            finite = torch.stack([part.isfinite().all() for part in (values, *gradients)]).all()
            held.broken = torch.minimum(held.broken, torch.where(finite, steps, step))
            optimizer.step()
            if clamp is not None:
                with torch.no_grad():
                    for parameter in parameters:
                        parameter.clamp_(-clamp, clamp)
            held.taken += 1
    except BudgetExhausted:
        pass
    if int(held.broken) < steps:
        rate = optimizer.param_groups[0]["lr"]
        raise UserError(
            f"the attack's loss or gradient stopped being finite at step {int(held.broken)} of {steps} (lr {rate}); "
            "lower it with --set lr=..."
        )
    return int(held.taken)


@torch.no_grad()
def pool_scores(
    oracle: Oracle, prior: Prior, pool: Float[Tensor, "p d"], mirror: bool, work: AttackContext
) -> Float[Tensor, "p k"]:
    """The target's softmax on every image of a pool, averaged over the image and (if asked) its mirror image."""

    def scores(chunk: Float[Tensor, "m d"]) -> Float[Tensor, "m k"]:
        images = prior.decode(chunk)
        p = oracle.probs(images, None)
        return (p + oracle.probs(images.flip(3), None)) / 2 if mirror else p

    return gathered(pool.split(work.batch), scores, work)


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

    def confidence(rows: slice) -> Float[Tensor, " m"]:
        x, y = images(rows), labels[rows]
        stream = Noise(noise.seed, noise.keys[rows], noise.purpose)
        total = torch.zeros(len(y), device=x.device)
        for view in range(views):
            seen = augment.random_resized_crop(x, stream.of("view", view), scale, ratio, 0.5 if mirror else 0.0)
            try:
                total += oracle.probs(seen, y).gather(1, y[:, None])[:, 0]
            except BudgetExhausted:
                break  # the views seen so far decide
        return total

    parts = [slice(start, start + work.batch) for start in range(0, len(labels), work.batch)]
    return gathered(parts, confidence, work)


Piece = TypeVar("Piece")


def gathered(
    pieces: Sequence[Piece], answer: Callable[[Piece], Shaped[Tensor, "m *a"]], work: AttackContext
) -> Shaped[Tensor, "n *a"]:
    """What is answered to each piece, one behind the other; within `once` a killed process goes on where it was."""
    held = Held(rows=[])
    for step in work.steps(len(pieces), held):
        held.rows = [*held.rows, answer(pieces[step])]
    return torch.cat(held.rows)


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
