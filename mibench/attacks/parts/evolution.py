"""Searches without gradients over one population of latents per identity, all populations scored together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.core import AttackContext, Oracle, Prior
from mibench.core.steps import Held
from mibench.runtime.rng import Noise

__all__ = ["Fitness", "best_distinct", "log_odds", "one_plus_one"]


def log_odds(p: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log p_y - log sum_{j != y} p_j, higher is better.

    It orders images as p_y does, but does not saturate: in float32 every p_y above 1 - 6e-8 is 1, and rounding would
    decide which of them is kept.
    """
    tiny = torch.finfo(p.dtype).tiny
    others = p.scatter(1, y[:, None], 0.0).sum(dim=1)
    return p.gather(1, y[:, None])[:, 0].clamp(min=tiny).log() - others.clamp(min=tiny).log()


@dataclass
class Fitness:
    """How well each member of each identity's population does: one black-box query each.

    Args:
        oracle: Who is asked.
        prior: What makes images of latents.
        y: The identities.
        count: Members that each population has whenever it is scored.
        work: How many images at once.
        score: The target's softmax and the identities to values, higher is better.
    """

    oracle: Oracle
    prior: Prior
    y: Int64[Tensor, " k"]
    count: int
    work: AttackContext
    score: Callable[[Float[Tensor, "n c"], Int64[Tensor, " n"]], Float[Tensor, " n"]] = log_odds

    def __post_init__(self) -> None:
        # Cut once: the oracle reads labels from the device only when it is handed a tensor it has not just seen.
        self._labels = self.y.repeat_interleave(self.count).split(self.work.batch)

    @torch.no_grad()
    def __call__(self, z: Float[Tensor, "k n d"]) -> Float[Tensor, "k n"]:
        """Scores of `count` latents for each identity."""
        rows = zip(z.flatten(0, 1).split(self.work.batch), self._labels, strict=True)
        return torch.cat([self._score(part, y) for part, y in rows]).reshape(z.shape[:2])

    def _score(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.score(self.oracle.probs(self.prior.decode(z, y), y), y)


def best_distinct(
    z: Float[Tensor, "k n d"], fitness: Float[Tensor, "k n"], count: int
) -> tuple[Float[Tensor, "k count d"], Float[Tensor, "k count"]]:
    """Each population's `count` fittest members, best first, no latent twice while there are others; and their fitness.

    Crossover without mutation copies parents, so a population holds the same latent several times.
    """
    left, chosen, values = fitness, [], []
    rows = torch.arange(len(z), device=z.device)
    for _ in range(count):
        place = left.argmax(dim=1)
        chosen.append(z[rows, place])
        values.append(fitness[rows, place])
        left = left.masked_fill((z == chosen[-1][:, None]).all(dim=2), float("-inf"))
    return torch.stack(chosen, dim=1), torch.stack(values, dim=1)


def one_plus_one(
    ask: Callable[[Float[Tensor, "k n d"]], Float[Tensor, "k n"]],
    clip: Callable[[Float[Tensor, "k n d"]], Float[Tensor, "k n d"]],
    start: Float[Tensor, "k n d"],
    best: Float[Tensor, "k n d"],
    value: Float[Tensor, "k n"],
    queries: int,
    sigma: float,
    noise: Noise,
    work: AttackContext | None = None,
) -> tuple[Float[Tensor, "k n d"], Float[Tensor, "k n"]]:
    """(1+1)-ES, each row a search of its own: the best latents asked and their values, `queries` for each row.

    The first query is clip(start), the others clip(best + s N(0, I)). What is at least as good as the best becomes the
    best; s starts at sigma and is doubled by a better value, multiplied by .84 by a worse one and kept by an equal one.
    Since log 2 / -log .84 = 3.98, s stands still where one query in five succeeds.

    Args:
        ask: Values of one latent a row, higher is better.
        clip: Where latents may be.
        start: What is asked first.
        best: What is already known.
        value: How good that is; -inf where nothing is known.
        queries: For each row.
        sigma: The first step size, in the latent's own units.
        noise: A stream for each of the k identities.
        work: Where a killed search goes on; None is nowhere.

    Source: OnePlusOne of nevergrad 0.5.0, https://github.com/facebookresearch/nevergrad, optimizerlib.py, which goes
    back to Schumer and Steiglitz (1968) and Rechenberg (1973).
    """
    held = Held(best=best, value=value, step=torch.full_like(value, sigma))
    for query in range(queries) if work is None else work.steps(queries, held):
        drawn = noise.of("query", query).normal(*start.shape[1:])
        asked = clip(start if query == 0 else held.best + held.step[..., None] * drawn)
        answer = ask(asked)
        held.step = held.step * torch.where(answer > held.value, 2.0, torch.where(answer < held.value, 0.84, 1.0))
        kept = answer >= held.value
        held.best = torch.where(kept[..., None], asked, held.best)
        held.value = torch.where(kept, answer, held.value)
    return held.best, held.value
