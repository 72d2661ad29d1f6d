"""AT-AT: the network is taught to obey tiny adversarial patterns, so that it leans on features no image prior can draw.

References:
    | Reducing information dependency does not cause training data privacy. Adversarially non-robust features do.
      (Torp, Smith and Breuer, ICLR 2026)
    | https://openreview.net/forum?id=BnEG8pn3pK
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Batch, Defense, Split, Step
from mibench.defenses.parts.adversary import pgd
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["AntiAdversarialTraining", "other_classes"]

CARD = {
    "summary": "AT-AT: adversarial rows labelled as what they imitate (default: 8 times the authors' eps)",
    "title": "Reducing information dependency does not cause training data privacy. Adversarially non-robust features "
    "do.",
    "authors": "Torp, Smith and Breuer",
    "venue": "ICLR",
    "year": 2026,
    "link": "https://openreview.net/forum?id=BnEG8pn3pK",
    "strength": "lam",
    "grid": [0.02, 0.08, 0.2, 0.5],
    "adaptive": {},
    "zero": {"lam": 0.0},
}

PRESETS = {"paper": {"lam": 0.08, "eps": 0.00025, "step": 0.2, "iterations": 5}}
"""configuration/classifier/defense/atat.yaml at commit ec6069a of
https://github.com/BreuerLabs/Anti-Adversarial-Training, whose pixels lie in [-1, 1]: eps 5e-4, steps of 1e-4."""

LEAST_BF16_EPS = 2.0**-9
"""bf16 keeps 8 bits of a pixel in [-1, 1]: half a step of 2^-8 there, in units of [0, 1]."""

PROBED = 256
"""Training images on which `obeyed` is measured."""


def other_classes(y: Int64[Tensor, " b"], classes: int, noise: Noise) -> Int64[Tensor, " b"]:
    """y' ~ U(classes other than y), one draw per stream of the noise."""
    # u < 1 in float32, but u * (classes - 1) may round up to classes - 1.
    ahead = 1 + (noise.uniform(1)[:, 0] * (classes - 1)).long().clamp(max=classes - 2)
    return (y + ahead) % classes


@dataclass(frozen=True)
class AntiAdversarialTraining(Defense):
    """Adds rows (x + delta, y') of weight lam: delta pushes x towards y' ~ U(classes other than y), |delta| <= eps.

    loss = CE(f(x), y) + lam CE(f(x + delta), y'), delta by targeted PGD with a random start, anew at every step. The
    added rows go through the network in a pass of their own, so that batch normalisation takes their statistics apart.

    Reports `obeyed`: the share of training images that, pushed towards another class within eps, are taken for it. A
    network that does not obey has learnt lam's worth of wrong labels and no more.

    Args:
        lam: Weight of an added row, relative to the image's own; the paper's .08. 0 adds none.
        eps: Largest change of a pixel, images being in [0, 1]. The authors' 2.5e-4 (5e-4 on their scale of [-1, 1]) is
            smaller than what bf16 keeps of a pixel: such targets are trained in float32, also where others are not.
        step: Size of a PGD step as a share of eps; the paper's .2.
        iterations: PGD steps.

    Source: the paper's objective; values and passes of the authors' defenses/adversarial_train.py. An image whose
    target is mixed is of its largest class.
    Differs: delta is crafted in eval mode (theirs in train mode, so that batch normalisation learns from what is
    crafted, five times a step); the default eps is 8 times theirs, for bf16.
    """

    lam: float = 0.08
    eps: float = 0.002
    step: float = 0.2
    iterations: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.lam < float("inf"):
            raise UserError(f"at_at: lam must be a finite number >= 0, got {self.lam}")
        if not 0 <= self.eps <= 1 or not 0 < self.step <= 2:
            raise UserError(
                f"at_at: eps must lie in [0, 1] and step (a share of eps) in (0, 2], got {self.eps} and {self.step}"
            )
        if self.iterations < 1:
            raise UserError(f"at_at: iterations must be at least 1, got {self.iterations}")

    def fp32(self) -> bool:
        """Where bf16 would round the patterns away."""
        return self.lam > 0 and self.eps < LEAST_BF16_EPS

    def batch(self, batch: Batch, step: Step) -> Batch:
        """One more row for each of the batch's own images: the row weights then sum to (1 + lam) n."""
        if self.lam == 0:
            return batch
        classes = batch.t.shape[1]
        x, own = batch.x[: batch.clean], batch.w[: batch.clean]
        y = other_classes(batch.t[: batch.clean].argmax(dim=1), classes, step.noise.of("class"))
        crafted = self._pushed(x, y, step, step.noise.of("start"))
        return replace(
            batch,
            x=torch.cat([batch.x, crafted]),
            t=torch.cat([batch.t, F.one_hot(y, classes).to(batch.t.dtype)]),
            w=torch.cat([batch.w, self.lam * own]),
            passes=(*batch.passes, len(batch.x)),
        )

    def _pushed(
        self, x: Float[Tensor, "b c h w"], y: Int64[Tensor, " b"], step: Step, noise: Noise
    ) -> Float[Tensor, "b c h w"]:
        size, autocast = self.step * self.eps, step.engine.autocast
        return pgd(step.model, x, y, self.eps, size, self.iterations, True, noise, autocast)

    def finish(self, step: Step, train: Split) -> dict[str, float]:
        """`obeyed`, on images evenly spread over the training images."""
        if self.lam == 0:
            return {}
        place = torch.linspace(0, len(train) - 1, min(PROBED, len(train)), device=step.engine.device).long()
        x, noise = train.at(place), step.noise.rows(place)
        with torch.no_grad(), step.engine.autocast():
            classes = step.model(x[:1]).shape[1]
        y = other_classes(train.labels[place], classes, noise.of("class"))
        crafted = self._pushed(x, y, step, noise.of("start"))
        with torch.no_grad(), step.engine.autocast():
            return {"obeyed": float((step.model(crafted).argmax(dim=1) == y).float().mean())}
