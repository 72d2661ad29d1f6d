"""MIRROR, white box: Adam in StyleGAN's w, kept where the prior's own latents lie (a box in P-space).

References:
    | MIRROR: Model Inversion for Deep Learning Network with High Fidelity (An et al., NDSS 2022)
    | https://github.com/njuaplusplus/mirror
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.evolution import log_odds
from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.pspace import PSpace, RampedAdam, ramp, searched
from mibench.attacks.parts.search import best_of_pool, chunks, descend, keys, piecewise, pool_scores, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, augment
from mibench.core.losses import cross_entropy, on_logits
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Mirror", "overlapping"]

CARD = {
    "summary": "Adam from a pool's best, kept in a box where the prior's latents are likely",
    "title": "MIRROR: Model Inversion for Deep Learning Network with High Fidelity",
    "authors": "An, Tao, Xu, Liu, Shen, Yao, Xu and Zhang",
    "venue": "NDSS",
    "year": 2022,
    "link": "https://github.com/njuaplusplus/mirror",
    "access": "white_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [160_008, 160_000, 100_000],
    "requires": ["unconditional"],
    "toy": {"short": {"steps": 12, "pool": 60, "candidates": 3}},
}

PRESETS = {"paper": {}, "quick": {"images": 2, "pool": 2000, "candidates": 2, "steps": 35}}


def overlapping(p: Float[Tensor, "n k"], y: int) -> Int64[Tensor, " n"]:
    """Candidates of one identity in the order in which they are kept.

    First those of the largest group that agree: their best class is y and their other top-5 labels share two labels
    (else one). Then the rest; each part by p_y, best first. A group has at least two members, or the next rule down
    applies: sharing one label, being recognised as y, nothing.
    """
    odds = log_odds(p, torch.full((len(p),), y, device=p.device))
    top = p.topk(min(5, p.shape[1]), dim=1).indices
    hit = top[:, 0] == y
    near = torch.zeros_like(p).scatter(1, top[:, 1:], 1.0) * hit[:, None]
    # How many candidates share labels a and b is (near' near)_ab; its diagonal counts the label a alone.
    shared = near.T @ near
    pairs = shared - torch.diag(shared.diagonal())
    group = hit
    if pairs.max() >= 2:
        a, b = divmod(int(pairs.argmax()), p.shape[1])
        group = (near[:, a] * near[:, b]) > 0
    elif shared.diagonal().max() >= 2:
        group = near[:, int(shared.diagonal().argmax())] > 0
    order = odds.argsort(descending=True, stable=True)
    return order[(~group[order]).to(torch.int8).argsort(stable=True)]


@dataclass(frozen=True)
class Mirror(Attack):
    """Pool -> top candidates by p_y -> min_w 10 CE(T(flip?(G(w))), y) by Adam, clipped to the P-space box -> pick.

    Args:
        images: Reconstructions kept per identity.
        pool: Latents scored once for all identities; they also give the box.
        candidates: Latents optimised per identity.
        steps: Adam steps.
        lr: Adam's learning rate at the schedule's top; see `pspace.ramp`. The k-th of n steps is at t = k / n, so that
            the last one does not move.
        identity: Weight of the cross-entropy. Adam divides it out.
        mirror: Show a mirror image with probability .5 at each step (faces yes, digits no).
        pick: How images are picked among the candidates: overlap (the paper's, see `overlapping`) or confidence.
        space: The prior's latent space; auto is w where the prior has one.

    Source: the authors' code (commit 2730a14).
    Differs: every image is mirrored or not by itself (the authors' whole batch at once); every candidate keeps its own
    best step (theirs keep the step with the best mean of the batch, which couples candidates), and the latent that the
    loss belongs to (theirs the one a step later); candidates are ranked by p_y, not by the logit; no dropout in the
    target; no truncation inside the generator.
    """

    images: int = 1
    pool: int = 100_000
    candidates: int = 8
    steps: int = 20_000
    lr: float = 0.25
    identity: float = 10.0
    mirror: bool = True
    pick: Literal["overlap", "confidence"] = "overlap"
    space: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.images <= self.candidates <= self.pool:
            raise UserError(
                f"mirror: 1 <= images <= candidates <= pool, got {self.images}, {self.candidates} and {self.pool}"
            )
        if self.pool < 2:
            raise UserError("mirror: the box needs a pool of at least 2")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """candidates x (steps with gradient + one look to pick), and the pool once for everybody."""
        gradients = self.candidates * self.steps
        look = self.candidates if self.candidates > self.images else 0
        return Cost(gradients + look, gradients, self.pool)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Search, optimise, pick."""
        prior = searched(prior, self.space)
        pool = prior.sample(Noise(seed, torch.arange(self.pool, device=labels.device)).of("pool"))
        box = PSpace.around(pool, prior.slope)
        scores = work.once("mirror-pool", oracle, lambda: pool_scores(oracle, prior, pool, False, work))
        start = pool[best_of_pool(scores, labels, self.candidates).flatten()]
        y, key = keys(labels, self.candidates)
        steps = oracle.affordable(self.steps, self.candidates)
        look = oracle.affordable(steps + 1, self.candidates) > steps and self.candidates > self.images

        def part(rows: slice) -> Tensor:
            noise = Noise(seed, key[rows]).of("mirror")
            return self._optimise(oracle, prior, box, start[rows], y[rows], steps, noise, work)

        found = piecewise("mirror", len(y), oracle, work, part)
        z, loss, improved = found[:, :-2], found[:, -2], found[:, -1] > 0
        if look:
            kept = self._picked(oracle, prior, z, y, work)
        else:
            kept = loss.reshape(len(labels), -1).argsort(dim=1, stable=True)[:, : self.images]
        kept = (kept + torch.arange(len(labels), device=y.device)[:, None] * self.candidates).flatten()
        z, y = z[kept], y[kept]
        return Reconstructions(render(prior, z, y, work), y, z, ~improved[kept])

    def _optimise(
        self,
        oracle: Oracle,
        prior: Prior,
        box: PSpace,
        start: Tensor,
        y: Int64[Tensor, " n"],
        steps: int,
        noise: Noise,
        work: AttackContext,
    ) -> Float[Tensor, "n d2"]:
        """Each candidate's best latent, its loss there, and whether that is below the loss of the start."""
        point = Point(start)
        lowest = torch.full((len(y),), float("inf"), device=y.device)
        held = Held(best=start.clone(), lowest=lowest, first=None)

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            x = prior.decode(z, y)
            x = augment.flip(x, drawn.of("flip")) if self.mirror else x
            values = self.identity * oracle.loss(x, y, on_logits(cross_entropy), drawn)
            with torch.no_grad():
                better = values < held.lowest
                held.best = torch.where(better[:, None], z, held.best)
                held.lowest = torch.where(better, values, held.lowest)
                if held.first is None:
                    held.first = values.detach()
            return values

        ramps = [ramp((step + 1) / steps) for step in range(steps)]
        # eps is that of the authors' mean over 8 candidates: here losses are summed.
        descend(point, loss, RampedAdam(point.z, self.lr, ramps, box, eps=8e-8), steps, noise, work=work, states=[held])
        improved = torch.zeros_like(y, dtype=torch.bool) if held.first is None else held.lowest < held.first
        return torch.cat([held.best, held.lowest[:, None], improved[:, None].to(start.dtype)], dim=1)

    @torch.no_grad()
    def _picked(
        self, oracle: Oracle, prior: Prior, z: Tensor, y: Int64[Tensor, " n"], work: AttackContext
    ) -> Int64[Tensor, "k images"]:
        """Places among each identity's candidates."""
        p = torch.cat([oracle.probs(prior.decode(z[rows], y[rows]), y[rows]) for rows in chunks(len(y), work.batch)])
        ranks = []
        for own, label in zip(p.split(self.candidates), y[:: self.candidates].tolist(), strict=True):
            if self.pick == "overlap":
                ranks.append(overlapping(own, label))
            else:
                ranks.append(log_odds(own, y.new_full((len(own),), label)).argsort(descending=True, stable=True))
        return torch.stack(ranks)[:, : self.images]
