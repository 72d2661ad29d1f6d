"""Label smoothing: softer targets. It is known to help model inversion, so here it is a control, not a protection.

References:
    | Rethinking the Inception Architecture for Computer Vision (Szegedy et al., CVPR 2016), section 7
    | https://arxiv.org/abs/1512.00567
    | Be Careful What You Smooth For (Struppek, Hintersdorf and Kersting, ICLR 2024), what it does to privacy
    | https://arxiv.org/abs/2310.06549
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from mibench.core import Batch, Defense, Step
from mibench.runtime.errors import UserError

__all__ = ["LabelSmoothing", "smoothed"]

CARD = {
    "summary": "positive label smoothing, a privacy catalyst: it helps the attacker (control)",
    "title": "Rethinking the Inception Architecture for Computer Vision",
    "authors": "Szegedy, Vanhoucke, Ioffe, Shlens and Wojna",
    "venue": "CVPR",
    "year": 2016,
    "link": "https://arxiv.org/abs/1512.00567",
    "strength": "alpha",
    "grid": [0.05, 0.1, 0.2, 0.3],
    "adaptive": {"objective=max_margin": "reads the logits, whose softmax cannot become certain"},
    "role": "control",
    "zero": {"alpha": 0.0},
}

PRESETS = {"paper": {"alpha": 0.1}}
"""ImageNet, section 7 of the paper."""


def smoothed(t: Float[Tensor, "b k"], alpha: float) -> Float[Tensor, "b k"]:
    """t' = (1 - alpha) t + alpha / k: affine in t, so it commutes with mixing; leaves the simplex if alpha < 0."""
    return (1.0 - alpha) * t + alpha / t.shape[1]


@dataclass(frozen=True)
class LabelSmoothing(Defense):
    """Every row's target becomes (1 - alpha) t + alpha / k, in all epochs.

    Args:
        alpha: Share of the target that is spread evenly over the k classes, in [0, 1]; 0 does nothing.

    Raises:
        UserError: alpha outside [0, 1].

    Source: section 7 of the first paper, https://arxiv.org/abs/1512.00567.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"ls: alpha must lie in [0, 1], got {self.alpha}; 0 smooths nothing")

    def batch(self, batch: Batch, step: Step) -> Batch:
        """Smooth the targets of all rows."""
        return replace(batch, t=smoothed(batch.t, self.alpha)) if self.alpha else batch
