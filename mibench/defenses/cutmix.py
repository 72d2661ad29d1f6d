"""CutMix: a box of another training image is pasted over each, and the targets are mixed by area (control).

References:
    | CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features (Yun et al., ICCV 2019)
    | https://arxiv.org/abs/1905.04899
"""

from dataclasses import dataclass, replace

import torch

from mibench.core import Batch, Defense, Step
from mibench.defenses.parts.boxes import clipped_boxes
from mibench.runtime.errors import UserError

__all__ = ["CutMix"]

CARD = {
    "summary": "paste a box of another training image, targets mixed by area",
    "title": "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
    "authors": "Yun, Han, Oh, Chun, Choe and Yoo",
    "venue": "ICCV",
    "year": 2019,
    "link": "https://arxiv.org/abs/1905.04899",
    "strength": "p",
    "grid": [0.25, 0.5, 0.78, 1.0],
    "adaptive": {},
    "role": "control",
    "zero": {"p": 0.0},
}

PRESETS = {"paper": {"p": 1.0}}
"""ImageNet."""


@dataclass(frozen=True)
class CutMix(Defense):
    """x' = x (1 - M) + x_partner M and t' = l t + (1 - l) t_partner, l = 1 - mean(M) the area that was really kept.

    M is a box of the image's shape with the relative area a ~ U(0, 1), which is 1 - Beta(1, 1), centred anywhere and
    cut off at the edges. With probability 1 - p an image stays as it is. The mean replaced share is
    p E[(s - s^2 / 4)^2] with s = sqrt(a), which is p (1/2 - 1/5 + 1/48) = .3208 p: at the default p that of `re` at
    its default (.25).

    Partners are a permutation of the batch's own images. Rows that other defenses have added stay as they are.

    Args:
        p: Probability that an image is mixed, in [0, 1]; the paper's is 1 on ImageNet.

    Source: section 3.2 and algorithm 1 of the paper. Differs: area and box are drawn for each image, not for a batch.
    """

    p: float = 0.78

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"cutmix: p must lie in [0, 1], got {self.p}")

    def batch(self, batch: Batch, step: Step) -> Batch:
        """Mix the clean rows."""
        if self.p == 0:
            return batch
        own, t = batch.x[: batch.clean], batch.t[: batch.clean]
        u = step.noise.of("area").uniform(2)
        side = u[:, :1].sqrt() * (u[:, 1:] < self.p)
        height, width = own.shape[2:]
        sides = (side * torch.tensor([height, width], device=own.device)).round().long()
        mask = clipped_boxes(step.noise, sides, height, width)
        partner = step.noise.of("partner").uniform().argsort()
        kept = 1.0 - mask.float().mean(dim=(1, 2))[:, None]
        x = torch.where(mask[:, None], own[partner], own)
        t = kept * t + (1.0 - kept) * t[partner]
        return replace(batch, x=torch.cat([x, batch.x[batch.clean :]]), t=torch.cat([t, batch.t[batch.clean :]]))
