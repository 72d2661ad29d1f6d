"""Variational Model Inversion: fit a distribution of latents to each identity, kept near the prior's own.

References:
    | Variational Model Inversion Attacks (Wang et al., NeurIPS 2021)
    | https://arxiv.org/abs/2201.10787
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.flow import Flow, FullGaussian
from mibench.attacks.parts.search import descend, keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.losses import cross_entropy, on_logits
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["VMI"]

CARD = {
    "summary": "a flow or Gaussian of latents per identity, cross-entropy plus KL to the prior",
    "title": "Variational Model Inversion Attacks",
    "authors": "Wang, Fu, Li, Khisti, Zemel and Makhzani",
    "venue": "NeurIPS",
    "year": 2021,
    "link": "https://arxiv.org/abs/2201.10787",
    "access": "white_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [200_960, 200_960, 0],
    "requires": ["gradients"],
    "toy": {"short": {"steps": 6, "flow_steps": 2, "flow_hidden": 8}},
}

PRESETS = {
    "paper": {},
    # In 60 steps a distribution as wide as the prior hardly narrows, and its draws hide where its mean should go.
    "quick": {
        "images": 2,
        "steps": 60,
        "samples": 2,
        "lr": 0.01,
        "kl_weight": 0.01,
        "scale": 0.3,
        "flow_steps": 4,
        "flow_hidden": 64,
    },
}


@dataclass(frozen=True)
class VMI(Attack):
    """min_q E_{z ~ q} CE(T(G(z)), y) + kl_weight * KL(q | N(0, I)), then draw from q.

    Args:
        images: Draws from each identity's distribution, all of them returned.
        steps: Gradient steps.
        samples: Draws per identity at each step.
        family: flow or gaussian (full covariance).
        kl_weight: Weight of the KL divergence.
        lr: SGD's learning rate, for the mean over an identity's draws.
        momentum: Of SGD, not Nesterov.
        scale: The starting standard deviation (the authors' 1). A distribution that starts narrow follows its mean.
        flow_steps: Steps of the flow.
        flow_hidden: Width of its coupling nets.
        space: The prior's latent space. In w, q describes (w - mean) / std, both over the prior's own samples.

    Source: section 4 of the paper; values of the authors' code, whose snapshot at step 3,140 is the one they sample.
    Differs: one flow per identity (theirs has one per layer of StyleGAN's w, pushed through the mapping network);
    float32 (float64).
    """

    images: int = 50
    steps: int = 3140
    samples: int = 64
    family: Literal["flow", "gaussian"] = "flow"
    kl_weight: float = 1e-3
    lr: float = 1e-4
    momentum: float = 0.9
    scale: float = 1.0
    flow_steps: int = 10
    flow_hidden: int = 100
    space: Literal["z", "w"] = "z"

    def __post_init__(self) -> None:
        if min(self.images, self.samples, self.flow_steps, self.flow_hidden) < 1:
            raise UserError("vmi: images, samples, flow_steps and flow_hidden must be at least 1")
        if self.scale <= 0:
            raise UserError(f"vmi: scale must be above 0, got {self.scale}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """`samples` gradient images per identity and step, however many are drawn in the end."""
        gradients = self.steps * self.samples
        return Cost(gradients, gradients, 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Fit each identity's distribution and draw from it."""
        prior = prior.space(self.space)
        steps = oracle.affordable(self.steps, self.samples)
        centre, spread = self._scale(prior, seed, labels.device)

        def part(rows: slice) -> Tensor:
            return self._fit(oracle, prior, labels[rows], centre, spread, steps, seed, work)

        # A row of the search is an identity, which shows `samples` images at once.
        narrow = replace(work, batch=max(1, work.batch // self.samples))
        z = piecewise("vmi", len(labels), oracle, narrow, part).reshape(-1, prior.latent_dim)
        y, _ = keys(labels, self.images)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))

    @torch.no_grad()
    def _scale(self, prior: Prior, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the space's own latents; z is standard already."""
        if self.space == "z":
            return torch.zeros(prior.latent_dim, device=device), torch.ones(prior.latent_dim, device=device)
        std, mean = torch.std_mean(prior.sample(Noise(seed, torch.arange(1000, device=device)).of("vmi-scale")), dim=0)
        return mean, std

    def _fit(
        self,
        oracle: Oracle,
        prior: Prior,
        labels: Int64[Tensor, " n"],
        centre: Float[Tensor, " d"],
        spread: Float[Tensor, " d"],
        steps: int,
        seed: int,
        work: AttackContext,
    ) -> Float[Tensor, "n e"]:
        """Each identity's final draws, in one row."""
        q: Flow | FullGaussian
        if self.family == "flow":
            q = Flow(Noise(seed, labels).of("vmi"), prior.latent_dim, self.flow_steps, self.flow_hidden, self.scale)
        else:
            q = FullGaussian(len(labels), prior.latent_dim, labels.device, self.scale)
        optimizer = torch.optim.SGD(q.parameters(), lr=self.lr, momentum=self.momentum)
        y, key = keys(labels, self.samples)

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            x = prior.decode(centre + spread * z, y)
            return oracle.loss(x, y, on_logits(cross_entropy), drawn) + self.kl_weight * q.kl(z, drawn)

        descend(q, loss, optimizer, steps, Noise(seed, key).of("vmi"), scale=1 / self.samples, work=work)
        with torch.no_grad():
            z = centre + spread * q.draw(Noise(seed, keys(labels, self.images)[1]).of("vmi-final"))
        return z.reshape(len(labels), -1)
