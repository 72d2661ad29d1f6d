"""BiDO: hidden layers are trained to depend less on the image and more on the label.

References:
    | Bilateral Dependency Optimization: Defending Against Model-inversion Attacks (Peng et al., KDD 2022)
    | https://arxiv.org/abs/2206.05483
    | Kernel Measures of Conditional Dependence (Fukumizu et al., NeurIPS 2007), the normalised HSIC
    | https://papers.nips.cc/paper/3340-kernel-measures-of-conditional-dependence
    | Kernel Constrained Covariance for Dependence Measurement (Gretton et al., AISTATS 2005), COCO
    | https://proceedings.mlr.press/r5/gretton05a.html
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Batch, Defense, Step
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError

__all__ = ["BilateralDependency", "centred", "coco", "gaussian", "hsic", "linear", "shrunk", "stages"]

CARD = {
    "summary": "less dependence of hidden layers on the image, more on the label (BiDO, HSIC or COCO)",
    "title": "Bilateral Dependency Optimization: Defending Against Model-inversion Attacks",
    "authors": "Peng, Liu, Zhang, Lan, Ye, Liu and Han",
    "venue": "KDD",
    "year": 2022,
    "link": "https://arxiv.org/abs/2206.05483",
    "strength": "lambda_x",
    "grid": [0.05, 0.5, 2.0, 5.0],
    "adaptive": {},
    "zero": {"lambda_x": 0.0},
}

PRESETS = {
    "paper": {"lambda_x": 0.05, "ratio": 10.0, "normalise": False},
    "coco": {"lambda_x": 1.0, "ratio": 50.0, "measure": "coco"},
}

"""The pairs (lambda_x, lambda_y) that checkpoints of https://github.com/AlanPeng0897/Defend_MI (commit 2a3f25f) are
named for. paper: HSIC, VGG-16, CelebA, (.05, .5); coco: MNIST, (1, 50)."""

RIDGE = 1e-5


def gaussian(rows: Float[Tensor, "m d"], sigma: float) -> Float[Tensor, "m m"]:
    """exp(-|a - b|^2 / (2 sigma^2 d)) - 1 for every pair of rows.

    The 1 vanishes when the matrix is centred; without it float32 keeps the small differences that carry the signal.
    """
    rows = rows.float()
    rows = rows - rows.mean(dim=0).detach()  # distances stay the same and lose fewer digits
    squares = rows.square().sum(dim=1)
    distances = (squares[:, None] + squares - 2.0 * rows @ rows.T).clamp(min=0.0)
    return torch.expm1(distances / (-2.0 * sigma**2 * rows.shape[1]))


def linear(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m m"]:
    """Inner products of the rows."""
    rows = rows.float()
    return rows @ rows.T


def centred(gram: Float[Tensor, "*t m m"]) -> Float[Tensor, "*t m m"]:
    """H K H with H = I - 11'/m."""
    gram = gram - gram.mean(dim=-1, keepdim=True)
    return gram - gram.mean(dim=-2, keepdim=True)


def shrunk(gram: Float[Tensor, "*t m m"]) -> Float[Tensor, "*t m m"]:
    """R = K (K + e m I)^-1 of centred K, e = 1e-5: directions well above the ridge count 1, those below it nothing.

    R = I - e m (K + e m I)^-1 by Cholesky, without asking the device whether it succeeded: the ridge is a hundred times
    what float32 can round K by.
    """
    m = gram.shape[-1]
    identity = torch.eye(m, device=gram.device, dtype=gram.dtype)
    ridge = RIDGE * m
    factor = torch.linalg.cholesky_ex(gram + ridge * identity).L
    return identity - ridge * torch.cholesky_solve(identity.expand_as(gram), factor)


def hsic(one: Float[Tensor, "*t m m"], other: Float[Tensor, "m m"]) -> Float[Tensor, "*t"]:
    """Normalised HSIC, tr(R_1 R_2), of two `shrunk` matrices: from 0 to at most m - 1."""
    return (one * other).sum(dim=(-2, -1))


def coco(one: Float[Tensor, "*t m m"], other: Float[Tensor, "m m"]) -> Float[Tensor, "*t"]:
    """sqrt(|K_1 K_2|_F) / m of two `centred` matrices.

    Differs: constrained covariance takes the largest singular value; the authors' code the Frobenius norm, as here.
    """
    # Clamped: the root's slope at 0, where a layer is constant, is infinite.
    return (one @ other).square().sum(dim=(-2, -1)).clamp(min=1e-30) ** 0.25 / one.shape[-1]


def stages(trunk: nn.Module) -> list[nn.Module]:
    """The parts of a trunk whose outputs are its hidden layers.

    Its children that hold convolutions; if there is only one, that one's; in a flat chain of layers (VGG) the poolings.
    None if nothing convolves but a patch embedding: then only the features are left.
    """
    children = list(trunk.children())
    holding = [child for child in children if any(isinstance(part, nn.Conv2d) for part in child.modules())]
    if len(holding) == 1:
        return stages(holding[0])
    blocks = [child for child in holding if not isinstance(child, nn.Conv2d)]
    return blocks or [child for child in children if isinstance(child, nn.MaxPool2d)] or holding


@dataclass(frozen=True)
class BilateralDependency(Defense):
    """loss + sum_j lambda_x d(Z_j, X) - lambda_y d(Z_j, Y), over hidden layers Z_j, X the images, Y the targets.

    Gaussian kernels of width sigma for Z and X, a linear one for Y. All of it sees the batch's own images (the first
    `clean` rows) as the network saw them, erased ones for example. Batch-coupled: the values depend on the batch size
    and on how many images of a person are in it, so that weights mean little across samplers.

    Args:
        lambda_x: Weight of the dependence on the image; 0 does nothing.
        ratio: lambda_y / lambda_x. Without the label's term training collapses.
        measure: hsic (normalised) or coco; their values differ by orders of magnitude, and so must the weights.
        sigma: Width of the Gaussian kernels, in units of sqrt(values per row).
        normalise: Divide hsic by m - 1, its largest value, so that weights survive a change of batch size; coco is a
            mean already.
        pool_to: Mean-pool wider maps to at most so many pixels a side first; None keeps them.

    Raises:
        UserError: A weight below 0 or not finite, sigma not above 0, pool_to below 1.

    Source: the paper; BiDO/hsic.py and engine.py of https://github.com/AlanPeng0897/Defend_MI. The authors'
    weights (.05, ratio 10, hsic not divided) belong to batches of 64, where (3.15, ratio 10) is the same divided by
    m - 1; the default, .5, is a sixth of it. Their `--measure=COCO` trained HSIC.
    Differs: their CelebA batches are 16 people with 4 images each, ours are shuffled, so that d(Z_j, Y) is up to four
    times as large with as many people as images (57 instead of 14 at m = 64); matrices are centred on both sides (the
    same value), and stay on the device.
    """

    lambda_x: float = 0.5
    ratio: float = 10.0
    measure: Literal["hsic", "coco"] = "hsic"
    sigma: float = 5.0
    normalise: bool = True
    pool_to: int | None = None

    def __post_init__(self) -> None:
        for name in ("lambda_x", "ratio"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"bido: {name} must be a finite number >= 0, got {getattr(self, name)}")
        if not 0 < self.sigma < float("inf"):
            raise UserError(f"bido: sigma must be a finite number above 0, got {self.sigma}")
        if self.pool_to is not None and self.pool_to < 1:
            raise UserError(f"bido: pool_to must be at least 1 (or none for whole maps), got {self.pool_to}")

    def taps(self, model: nn.Module) -> Sequence[nn.Module]:
        """The stages of the trunk, and the trunk itself, whose output is the features."""
        assert isinstance(model, Classifier)
        return [*stages(model.trunk), model.trunk] if self.lambda_x else ()

    def penalty(self, batch: Batch, logits: Float[Tensor, "b k"], taps: Sequence[Tensor], step: Step) -> Tensor | None:
        """lambda_x sum_j d(Z_j, X) - lambda_y sum_j d(Z_j, Y), in float32."""
        if not self.lambda_x:
            return None
        m = batch.clean
        layers = [gaussian(self._rows(tap[:m]), self.sigma) for tap in taps]
        grams = centred(torch.stack([gaussian(batch.x[:m].flatten(1), self.sigma), linear(batch.t[:m]), *layers]))
        if self.measure == "hsic":
            grams, measure = shrunk(grams), hsic
        else:
            measure = coco
        x, y, z = grams[0], grams[1], grams[2:]
        scale = 1.0 / max(m - 1, 1) if self.normalise and self.measure == "hsic" else 1.0
        return self.lambda_x * scale * (measure(z, x) - self.ratio * measure(z, y)).sum()

    def _rows(self, out: Tensor) -> Float[Tensor, "m d"]:
        out = out.float()
        if self.pool_to is not None and out.ndim == 4:
            window = [-(-side // self.pool_to) for side in out.shape[2:]]
            out = F.avg_pool2d(out, window, ceil_mode=True)
        return out.flatten(1)
