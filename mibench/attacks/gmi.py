"""Generative Model Inversion: gradient descent on a GAN's latent under the critic and the target.

References:
    | The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks (Zhang et al., CVPR 2020)
    | https://arxiv.org/abs/1911.07135
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.rules import fit_points
from mibench.attacks.parts.search import keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.losses import cross_entropy, on_logits, realism
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["GMI"]

CARD = {
    "summary": "latent descent under a WGAN critic and the target's cross-entropy",
    "title": "The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks",
    "authors": "Zhang, Jia, Pei, Wang, Li and Song",
    "venue": "CVPR",
    "year": 2020,
    "link": "https://arxiv.org/abs/1911.07135",
    "access": "white_box",
    "prior": "wgan_gp",
    "cost": [7500, 7500, 0],
    "role": "attack",
    "requires": ["critic"],
    "toy": {"short": {"steps": 12}},
}

PRESETS = {"paper": {}, "quick": {"images": 2, "steps": 60, "lr": 0.5}}


@dataclass(frozen=True)
class GMI(Attack):
    """min_z -D(G(z)) + identity * CE(T(G(z)), y) by Nesterov descent, z clamped to [-clip, clip] after each step.

    Args:
        images: Restarts, all of them returned. Differs: the paper reports the restart with the largest target logit.
        steps: Gradient steps.
        lr: Learning rate for a loss averaged over `reference_batch` latents, as in the authors' code.
        momentum: Nesterov momentum.
        identity: Weight of the cross-entropy.
        realism: Weight of the critic.
        clip: The latent's box.
        reference_batch: The authors average the loss over this many latents, which divides every step by it; here
            each latent's step is lr / reference_batch times its own gradient, whatever the batch.

    Source: section 3.3 of the paper; values of the authors' code.
    """

    images: int = 5
    steps: int = 1500
    lr: float = 0.02
    momentum: float = 0.9
    identity: float = 100.0
    realism: float = 1.0
    clip: float = 1.0
    reference_batch: int = 100

    def __post_init__(self) -> None:
        if self.images < 1 or self.reference_batch < 1 or self.clip <= 0:
            raise UserError("gmi: images and reference_batch must be at least 1, clip above 0")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One gradient image per restart and step."""
        return Cost(self.images * self.steps, self.images * self.steps, 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Descend from N(0, I); the start is not clamped."""
        y, key = keys(labels, self.images)
        steps = oracle.affordable(self.steps, self.images)

        def loss(x: Tensor, y: Tensor, drawn: Noise) -> Tensor:
            identity = self.identity * oracle.loss(x, y, on_logits(cross_entropy), drawn)
            return identity + self.realism * realism(prior, x) if self.realism else identity

        def part(rows: slice) -> Tensor:
            return fit_points(
                prior,
                y[rows],
                Noise(seed, key[rows]).of("gmi"),
                loss,
                steps,
                self.lr,
                self.momentum,
                self.reference_batch,
                self.clip,
                work,
            )

        z = piecewise("gmi", len(y), oracle, work, part)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))
