"""LOMMA on KEDMI: a Gaussian of latents per identity under the logit loss and distilled extra models.

References:
    | Re-thinking Model Inversion Attacks Against Deep Neural Networks (Nguyen et al., CVPR 2023)
    | https://arxiv.org/abs/2304.01669
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.latents import DiagonalGaussian
from mibench.attacks.parts.lomma import Lomma, Study
from mibench.attacks.parts.search import descend, keys, piecewise, render
from mibench.core import Cost, Oracle, Prior, Reconstructions, Workspace
from mibench.rng import Noise

__all__ = ["LommaKEDMI"]

CARD = {
    "summary": "KEDMI with a logit loss, a feature regulariser and distilled extra models",
    "title": "Re-thinking Model Inversion Attacks Against Deep Neural Networks",
    "authors": "Nguyen, Chandrasegaran, Abdollahzadeh and Cheung",
    "venue": "CVPR",
    "year": 2023,
    "link": "https://arxiv.org/abs/2304.01669",
    "access": "white_box",
    "prior": "kedmi",
    "role": "attack",
    "cost": [2400, 2400, None],
}

PRESETS = {
    "paper": {"pretrained": True},
    "legacy": {"pretrained": True, "preg": "mean"},
    "quick": {
        "images": 2, "steps": 200, "lr": 0.05, "log_var": -2.0, "students": ["cnn", "cnn"], "student_epochs": 10,
        "student_lr": 0.05, "student_batch": 32, "preg": "mean",
    },
}


@dataclass(frozen=True)
class LommaKEDMI(Lomma):
    """LOMMA's loss by KEDMI's rule: Adam on (mu, log sigma^2), one eps a step, z = clamp(mu + sigma eps) to the end.

    Args:
        log_var: The starting log-variance; mu starts at 0.

    The others are described at `Lomma`.
    """

    log_var: float = field(default=1.0, metadata={"signed": True})

    called: ClassVar[str] = "lomma_kedmi"

    def cost(self, prior: Prior, public: int = 0) -> Cost:
        """One gradient image per identity and step, and the public images once for everybody."""
        return Cost(self.steps, self.steps, public if self.asks else 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: Workspace
    ) -> Reconstructions:
        """Study the public images, fit each identity's Gaussian, then draw from it."""
        known = self.study(oracle, seed, work)
        steps = oracle.affordable(self.steps, 1)

        def part(rows: slice) -> Tensor:
            return self._invert(oracle, prior, known, labels[rows], steps, Noise(seed, labels[rows]).of("kedmi"))

        mu, log_var = piecewise("lomma_kedmi", len(labels), oracle, work, part).chunk(2, dim=1)
        y, key = keys(labels, self.images)
        wide = DiagonalGaussian(mu.repeat_interleave(self.images, 0), log_var.repeat_interleave(self.images, 0))
        with torch.no_grad():
            z = wide.draw(Noise(seed, key).of("kedmi-final")).clamp(-self.clip, self.clip)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))

    def _invert(
        self, oracle: Oracle, prior: Prior, known: Study | None, y: Int64[Tensor, " n"], steps: int, noise: Noise
    ) -> Tensor:
        start = torch.zeros(len(y), prior.latent_dim, device=y.device)
        gaussian = DiagonalGaussian(start, torch.full_like(start, self.log_var))
        optimizer = torch.optim.Adam(gaussian.parameters(), lr=self.lr)

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            x = prior.decode(z.clamp(-self.clip, self.clip), y)
            return self.losses(oracle, prior, known, x, y, drawn)

        descend(gaussian, loss, optimizer, steps, noise)
        return torch.cat(gaussian.parameters(), dim=1).detach()
