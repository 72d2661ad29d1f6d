"""Several images of each identity shown to the target in one batch."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mibench.core import AttackContext, Prior

__all__ = ["query_many"]


@torch.no_grad()
def query_many(
    answer: Callable[[Float[Tensor, "m c h w"], Int64[Tensor, " n"]], Shaped[Tensor, "m *a"]],
    prior: Prior,
    z: Float[Tensor, "v n d"],
    y: Int64[Tensor, " n"],
    work: AttackContext,
) -> Shaped[Tensor, "v n *a"]:
    """`answer` (`oracle.probs` or `oracle.labels`) for v latents of each of n identities, a batch of images at once."""
    parts = z.split(max(1, work.batch // len(y)))
    answers = [answer(prior.decode(part.flatten(0, 1), y.repeat(len(part))), y) for part in parts]
    return torch.cat(answers).unflatten(0, (len(z), len(y)))
