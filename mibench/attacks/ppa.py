"""Plug & Play Attacks: search a prior's samples, optimise the best, keep what stays convincing under augmentation.

References:
    | Plug & Play Attacks: Towards Robust and Flexible Model Inversion Attacks (Struppek et al., ICML 2022)
    | https://arxiv.org/abs/2201.12179
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.pspace import searched
from mibench.attacks.parts.search import (
    adam,
    best_of_pool,
    descend,
    keys,
    piecewise,
    pool_scores,
    render,
    robust_confidence,
)
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, augment
from mibench.core.losses import IDENTITY, on_logits
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["PPA"]

CARD = {
    "summary": "search a pool, optimise the best under random views, select by robust confidence",
    "title": "Plug & Play Attacks: Towards Robust and Flexible Model Inversion Attacks",
    "authors": "Struppek, Hintersdorf, De Almeida Correia, Adler and Kersting",
    "venue": "ICML",
    "year": 2022,
    "link": "https://arxiv.org/abs/2201.12179",
    "access": "white_box",
    "prior": "dcgan",
    "cost": [30000, 10000, 4000],
    "role": "attack",
    "requires": ["gradients", "unconditional"],
    "toy": {"short": {"steps": 8, "pool": 60, "selection_views": 4}},
}

# The authors' configurations, files of configs/attacking in LukasStruppek/Plug-and-Play-Attacks at commit 3087a4f.
PRESETS = {
    "paper": {"pool": 2000, "steps": 50},  # FaceScrub_FFHQ.yaml
    "paper_celeba": {"pool": 5000, "steps": 70},  # CelebA_FFHQ.yaml, CelebA_MetFaces.yaml and FaceScrub_MetFaces.yaml
    "paper_dogs": {"pool": 2000, "steps": 100, "lr": 0.01, "view_scale": (0.75, 1.0)},  # Stanford_Dogs_AFHQ.yaml
    "quick": {"images": 2, "pool": 2000, "candidates": 2, "steps": 50, "lr": 0.03, "betas": (0.9, 0.999)},
    # A third of the steps of quick at three times the rate: docs/speed.md has what it reaches and how it was chosen.
    "fast": {"images": 2, "pool": 2000, "candidates": 2, "steps": 15, "lr": 0.1, "betas": (0.9, 0.999)},
    "legacy": {"scored_start": "legacy"},
}


@dataclass(frozen=True)
class PPA(Attack):
    """Pool -> top candidates by mean p_y of {x, mirror} -> Adam on the identity loss -> best by mean p_y of views.

    Args:
        images: Reconstructions kept per identity.
        pool: Latents scored once for all identities.
        candidates: Latents optimised per identity.
        steps: Adam steps.
        lr: Adam's learning rate.
        betas: Adam's decay rates.
        reference_batch: The authors average the loss over this many latents; see `parts.search.adam`.
        objective: The identity loss: poincare (the paper's), max_margin, cross_entropy or nll.
        view_scale: Area of the one random crop each image is shown through at each step.
        mirror: Use mirror images in the pool's scores and in the selection (faces yes, digits no); never at a step.
        latent_penalty: Weight of |z|^2 / d, which keeps z where the prior was trained; 0 in the paper.
        selection_views: Random views per candidate in the final selection.
        space: The latent space that is searched; auto is w if the prior has one, else its first.
        scored_start: same: the latent that was scored is optimised. legacy: as in the authors' code, images are scored
            whose later layers hear an untruncated w, but the truncated w of the first layers, given to all layers, is
            optimised. A prior without the space w+ truncates nothing, and both are one.

    Source: sections 3.2-3.4 of the paper; defaults are the authors' FaceScrub/FFHQ configuration.
    Differs: every image has a crop of its own (the authors draw one for the whole batch).
    """

    images: int = 50
    pool: int = 2000
    candidates: int = 200
    steps: int = 50
    lr: float = 0.005
    betas: tuple[float, float] = (0.1, 0.1)
    reference_batch: int = 25
    objective: Literal["poincare", "max_margin", "cross_entropy", "nll"] = "poincare"
    view_scale: tuple[float, float] = (0.9, 1.0)
    mirror: bool = True
    latent_penalty: float = 0.0
    selection_views: int = 100
    space: str = "auto"
    scored_start: Literal["same", "legacy"] = "same"

    def __post_init__(self) -> None:
        if not 1 <= self.images <= self.candidates <= self.pool:
            raise UserError(
                f"ppa: 1 <= images <= candidates <= pool, got {self.images}, {self.candidates} and {self.pool}"
            )
        if self.reference_batch < 1:
            raise UserError(f"ppa: reference_batch must be at least 1, got {self.reference_batch}")
        if not 0 < self.view_scale[0] <= self.view_scale[1] <= 1:
            raise UserError(f"ppa: view_scale must satisfy 0 < low <= high <= 1, got {self.view_scale}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"ppa: betas must lie in [0, 1), got {self.betas}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """candidates x (steps with gradient + selection views), and the pool once for everybody."""
        gradients = self.candidates * self.steps
        views = self.candidates * self.selection_views if self.candidates > self.images else 0
        return Cost(gradients + views, gradients, self.pool * (2 if self.mirror else 1))

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Search, optimise, select."""
        whole, prior = prior, searched(prior, self.space)
        legacy = self.scored_start == "legacy" and prior.spaces == ("w",) and "w+" in whole.spaces
        scored = whole.space("w+") if legacy else prior
        pool = scored.sample(Noise(seed, torch.arange(self.pool, device=labels.device)).of("pool"))
        scores = work.once("ppa-pool", oracle, lambda: pool_scores(oracle, scored, pool, self.mirror, work))
        pool = pool[:, : prior.latent_dim]  # of w+ the first layer's w
        start = pool[best_of_pool(scores, labels, self.candidates).flatten()]
        y, key = keys(labels, self.candidates)
        steps = oracle.affordable(self.steps, self.candidates)
        views = oracle.affordable(steps + self.selection_views, self.candidates) - steps

        def part(rows: slice) -> Tensor:
            return self._optimise(oracle, prior, start[rows], y[rows], steps, Noise(seed, key[rows]).of("ppa"), work)

        z = piecewise("ppa", len(y), oracle, work, part)
        kept = self._select(oracle, prior, z, y, views, Noise(seed, key).of("ppa-selection"), work)
        z, y = z[kept], y[kept]
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))

    def _optimise(
        self,
        oracle: Oracle,
        prior: Prior,
        start: Tensor,
        y: Int64[Tensor, " n"],
        steps: int,
        noise: Noise,
        work: AttackContext,
    ) -> Tensor:
        point = Point(start)
        optimizer = adam(point.parameters(), self.lr, self.reference_batch, self.betas)
        objective = on_logits(IDENTITY[self.objective])

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            x = augment.random_resized_crop(prior.decode(z, y), drawn.of("view"), self.view_scale)
            return oracle.loss(x, y, objective, drawn) + self.latent_penalty * z.square().mean(dim=1)

        descend(point, loss, optimizer, steps, noise, work=work)
        return point.z.detach()

    def _select(
        self,
        oracle: Oracle,
        prior: Prior,
        z: Tensor,
        y: Int64[Tensor, " n"],
        views: int,
        noise: Noise,
        work: AttackContext,
    ) -> Int64[Tensor, " m"]:
        """Places of each identity's best candidates, identities in their order, best first."""
        if self.candidates == self.images:
            return torch.arange(len(z), device=z.device)

        def confidence() -> Tensor:
            return robust_confidence(
                oracle, lambda rows: prior.decode(z[rows], y[rows]), y, noise, views, self.mirror, work
            )

        confidences = work.once("ppa-selection", oracle, confidence)
        best = confidences.reshape(-1, self.candidates).topk(self.images, dim=1).indices
        return (best + torch.arange(len(best), device=z.device)[:, None] * self.candidates).flatten()
