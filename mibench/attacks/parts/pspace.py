"""Where a latent is searched: a named space of the prior, MIRROR's P-space box, and Adam that stays inside it.

StyleGAN's w leaves a LeakyReLU of slope s. P-space undoes it, p = w for w >= 0 and w / s below, so that each coordinate
of p is about Gaussian and a box of mean +- std is a statement about how likely a face is.

References:
    | MIRROR: Model Inversion for Deep Learning Network with High Fidelity (An et al., NDSS 2022)
    | https://github.com/njuaplusplus/mirror
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Prior

__all__ = ["PSpace", "RampedAdam", "ramp", "searched"]


def searched(prior: Prior, name: str) -> Prior:
    """The prior seen through the space called `name`; "auto" is w where the prior has it, else its first.

    Raises:
        UserError: If it has no such space.
    """
    if name == "auto":
        name = "w" if "w" in prior.spaces else prior.spaces[0]
    return prior.space(name)


@dataclass(frozen=True)
class PSpace:
    """p = leaky(w, 1 / slope) with the box mean +- std of the prior's own p, coordinate by coordinate.

    Args:
        slope: The activation's negative slope, in (0, 1]; 1 makes p = w.
        mean: The box's centre, in P-space.
        std: Its half-width, in P-space (population standard deviation, as in the authors' code).
    """

    slope: float
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]

    @classmethod
    def around(cls, w: Float[Tensor, "n d"], slope: float) -> "PSpace":
        """The box of samples of w."""
        p = F.leaky_relu(w, 1.0 / slope)
        return cls(slope, p.mean(dim=0), p.std(dim=0, correction=0))

    def scaled(self, factor: float) -> "PSpace":
        """The box mean +- factor * std."""
        return PSpace(self.slope, self.mean, factor * self.std)

    def features_at(self, w: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """w to p."""
        return F.leaky_relu(w, 1.0 / self.slope)

    def leave(self, p: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """p to w: the activation itself."""
        return F.leaky_relu(p, self.slope)

    def clip(self, p: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """p within the box."""
        return torch.clamp(p, self.mean - self.std, self.mean + self.std)

    def clip_w(self, w: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """w within the box mapped back: the activation is increasing, so the box's image is a box."""
        return torch.clamp(w, self.leave(self.mean - self.std), self.leave(self.mean + self.std))


def ramp(t: float) -> float:
    """The learning rate's multiplier at progress t in [0, 1]: rises over the first 5 %, a cosine over the last 25 %.

    (1/2 - 1/2 cos(pi min(1, (1 - t) / .25))) min(1, t / .05): 0 at both ends.
    """
    return (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / 0.25))) * min(1.0, t / 0.05)


class RampedAdam(torch.optim.Adam):
    """Adam on points w that go back into the box after each step, at a rate of its own for each step.

    Args:
        point: What moves; clipped in place, the moments are not touched.
        lr: The full rate.
        ramps: Its multiplier at each step.
        box: Where points may be.
        eps: Adam's; see `search.adam` where the authors average over a batch.
    """

    def __init__(
        self, point: Float[Tensor, "n d"], lr: float, ramps: Sequence[float], box: PSpace, eps: float = 1e-8
    ) -> None:
        super().__init__([point], lr=lr, eps=eps)
        self.point, self.full, self.ramps, self.box, self.taken = point, lr, ramps, box, 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adam's, and how many steps have been taken."""
        super().load_state_dict(state_dict)
        self.taken = int(self.state[self.point]["step"]) if self.state else 0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step at the rate of its place in the schedule."""
        self.param_groups[0]["lr"] = self.full * self.ramps[self.taken]
        self.taken += 1
        super().step()
        self.point.copy_(self.box.clip_w(self.point))
