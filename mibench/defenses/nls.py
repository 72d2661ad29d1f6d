"""Negative label smoothing: targets beyond certainty, switched on late, which make the attacker's gradients unstable.

References:
    | Be Careful What You Smooth For: Label Smoothing Can Be a Privacy Shield but Also a Catalyst for Model Inversion
      Attacks (Struppek, Hintersdorf and Kersting, ICLR 2024)
    | https://arxiv.org/abs/2310.06549
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from mibench.core import Batch, Defense, Step
from mibench.defenses.ls import smoothed
from mibench.runtime.errors import UserError

__all__ = ["NegativeLabelSmoothing"]

CARD = {
    "summary": "negative label smoothing from half of the training on",
    "title": "Be Careful What You Smooth For: Label Smoothing Can Be a Privacy Shield but Also a Catalyst for Model "
    "Inversion Attacks",
    "authors": "Struppek, Hintersdorf and Kersting",
    "venue": "ICLR",
    "year": 2024,
    "link": "https://arxiv.org/abs/2310.06549",
    "strength": "alpha",
    "grid": [-0.05, -0.3, -1.0, -3.0],
    "adaptive": {"objective=max_margin": "its gradient does not vanish where the softmax is certain"},
    "conflicts": {"ls": "both rewrite the targets, one softer and one harder; choose one"},
    "zero": {"alpha": 0.0},
}

PRESETS = {"paper": {"alpha": -0.05, "begin": 0.5, "full": 0.75, "ramp": "ref"}}
"""The paper's alpha; epochs 50 and 75 of 100 and the ramp of train_model.py at commit 3087a4f of
https://github.com/LukasStruppek/Plug-and-Play-Attacks."""


@dataclass(frozen=True)
class NegativeLabelSmoothing(Defense):
    """Every row's target becomes (1 - a) t + a / k with a <= 0: 0 at first, then a ramp, then alpha.

    With s = begin E and f = full E of E epochs, a(e) = 0 for e < s, alpha (e + 1 - s) / span for s <= e < f, and alpha
    from f on. The loss has no lower bound: logits keep growing, so that training needs its learning rate to fall.

    Args:
        alpha: At most 0; 0 does nothing. The targets stand at 1 - alpha (1 - 1/k) for the true class.
        begin: Share of the epochs after which smoothing begins.
        full: Share of the epochs after which it is whole.
        ramp: ref (the authors' code: span = E - s, so the ramp ends at half of alpha and then jumps) or continuous
            (span = f - s, so it ends at alpha).

    Raises:
        UserError: alpha above 0, or not 0 <= begin <= full <= 1.

    Source: the authors' schedule, https://github.com/LukasStruppek/Plug-and-Play-Attacks (commit 3087a4f).
    Differs: the authors' epochs 50 and 75 are shares, so that short trainings reach alpha too; dense targets, because
    torch's own `label_smoothing` ignores or refuses a negative value.
    """

    alpha: float = field(default=-0.05, metadata={"signed": True})
    begin: float = 0.5
    full: float = 0.75
    ramp: Literal["ref", "continuous"] = "ref"

    def __post_init__(self) -> None:
        if not (self.alpha <= 0 and math.isfinite(self.alpha)):
            raise UserError(f"nls: alpha must be at most 0, got {self.alpha}: negative smoothing, 0 is none")
        if not 0 <= self.begin <= self.full <= 1:
            raise UserError(f"nls: shares must satisfy 0 <= begin <= full <= 1, got {self.begin} and {self.full}")

    def alpha_at(self, epoch: int, epochs: int) -> float:
        """The smoothing of an epoch, counted from 0."""
        first, last = self.begin * epochs, self.full * epochs
        if epoch < first:
            return 0.0
        if epoch >= last:
            return self.alpha
        span = epochs - first if self.ramp == "ref" else last - first
        # A ramp that begins between two epochs would overshoot in its last one.
        return self.alpha * min(1.0, (epoch + 1 - first) / span)

    def batch(self, batch: Batch, step: Step) -> Batch:
        """Smooth the targets of all rows by this epoch's amount."""
        alpha = self.alpha_at(step.epoch, step.epochs)
        return replace(batch, t=smoothed(batch.t, alpha)) if alpha else batch
