"""MI-FACE: gradient descent on pixels, without a prior. The historical baseline.

References:
    | Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures
      (Fredrikson, Jha and Ristenpart, CCS 2015)
    | https://doi.org/10.1145/2810103.2813677
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.search import descend, keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.losses import on_logits
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["MIFace", "doubt"]

CARD = {
    "summary": "gradient descent on pixels: no prior, the historical baseline",
    "title": "Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures",
    "authors": "Fredrikson, Jha and Ristenpart",
    "venue": "CCS",
    "year": 2015,
    "link": "https://doi.org/10.1145/2810103.2813677",
    "access": "white_box",
    "prior": "pixels",
    "cost": [5001, 5000, 0],
    "role": "attack",
    "requires": ["pixels"],
    "toy": {"short": {"steps": 8}},
}

PRESETS = {"paper": {}, "quick": {"images": 2, "steps": 60, "lr": 10.0, "start": "mean", "jitter": 0.05}}


def doubt(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 - p_y, written so that its gradient keeps its digits where p_y is nearly 0: there the search begins."""
    return 1.0 - F.log_softmax(logits, dim=1).gather(1, y[:, None])[:, 0].exp()


@dataclass(frozen=True)
class MIFace(Attack):
    """x <- clamp(x - lr * grad(1 - p_y(x)), 0, 1); the image with the least cost is returned.

    Args:
        images: Reconstructions per identity; they differ only by `jitter`.
        steps: Gradient steps (the paper's alpha).
        lr: Size of a step (the paper's lambda).
        start: zero (the paper's black image) or mean (of the public images).
        jitter: Standard deviation of noise added to the start; 0 in the paper, which makes one image.

    Source: algorithm 1 of the paper, alpha = 5000, lambda = .1, for its softmax and perceptron targets.
    Differs: always takes `steps` steps and keeps the best; the paper stops at a cost of gamma = .99 or when the cost is
    not below the largest of the last beta = 100. Its PROCESS step (denoise and sharpen) is for an auto-encoder target.
    """

    images: int = 1
    steps: int = 5000
    lr: float = 0.1
    start: Literal["zero", "mean"] = "zero"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UserError(f"mi_face: images must be at least 1, got {self.images}")
        if self.images > 1 and self.jitter == 0:
            raise UserError("mi_face: without jitter all images would be the same; use --set jitter=0.05")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One gradient image a step, and one more look at the last image."""
        return Cost(self.images * (self.steps + 1), self.images * self.steps, 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Descend."""
        y, key = keys(labels, self.images)
        looks = oracle.affordable(self.steps + 1, self.images)
        start = torch.zeros(prior.latent_dim, device=labels.device)
        if self.start == "mean":
            public = work.images("mi_face").images
            # Part by part, because torch makes 64-bit integers of all images that it adds up.
            total = sum(part.sum(dim=0) for part in public.split(work.batch))
            start = (total / (255.0 * len(public))).flatten().to(labels.device)

        def part(rows: slice) -> Tensor:
            return self._invert(oracle, prior, start, y[rows], looks, Noise(seed, key[rows]).of("mi_face"), work)

        found = piecewise("mi_face", len(y), oracle, work, part)
        z, failed = found[:, :-1], found[:, -1] > 0
        return Reconstructions(render(prior, z, y, work), y, z, failed)

    def _invert(
        self,
        oracle: Oracle,
        prior: Prior,
        start: Tensor,
        y: Int64[Tensor, " n"],
        looks: int,
        noise: Noise,
        work: AttackContext,
    ) -> Tensor:
        """The best images, and in a last column whether each is only its start."""
        point = Point((start + self.jitter * noise.of("start").normal(prior.latent_dim)).clamp(0.0, 1.0))
        least, first = torch.full((2, len(y)), float("inf"), device=y.device)
        held = Held(best=point.z.detach().clone(), least=least, first=first)
        objective = on_logits(doubt)

        def keep(values: Tensor) -> None:
            held.first = torch.where(held.first.isinf(), values, held.first)
            better = values <= held.least  # where p_y is tiny the cost is 1 at every step, and the last knows most
            held.best = torch.where(better[:, None], point.z.detach(), held.best)
            held.least = torch.where(better, values, held.least)

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            values = oracle.loss(prior.decode(z, y), y, objective, drawn)
            keep(values.detach())
            return values

        @torch.no_grad()
        def clamp(*given: object) -> None:
            point.z.clamp_(0.0, 1.0)

        optimizer = torch.optim.SGD(point.parameters(), lr=self.lr)
        optimizer.register_step_post_hook(clamp)
        descend(point, loss, optimizer, max(0, looks - 1), noise, work=work, states=[held])
        if looks:
            with torch.no_grad():
                keep(oracle.loss(prior.decode(point.z, y), y, objective, noise.of("last")))
        return torch.cat([held.best, (~(held.least < held.first)).float()[:, None]], dim=1)
