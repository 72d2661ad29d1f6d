"""LoFt: a last layer of low rank, so that the scores know less of the features; CALoR's bounded confidence on demand.

References:
    | Rank Matters: Understanding and Defending Model Inversion Attacks via Low-Rank Feature Filtering (Yu et al.,
      KDD 2026)
    | https://arxiv.org/abs/2410.05814 (its first version, CALoR, has the confidence-adapted loss)
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Batch, Defense, Step
from mibench.defenses.parts.heads import linear_head
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError

__all__ = ["LowRank", "adapted"]

CARD = {
    "summary": "low-rank last layer with a tanh (LoFt), optionally bounded confidence (CALoR)",
    "title": "Rank Matters: Understanding and Defending Model Inversion Attacks via Low-Rank Feature Filtering",
    "authors": "Yu, Qiu, Fang, Zhuang, Chen, Yu, Wang, Xia and Xu",
    "venue": "KDD",
    "year": 2026,
    "link": "https://arxiv.org/abs/2410.05814",
    "strength": "rank",
    "grid": [100, 64, 30, 16],
    "adaptive": {"objective=max_margin": "reads the logits, whose gradient a certain softmax does not swallow"},
    "conflicts": {"mid": "both replace the last layer; choose one"},
    "zero": "its head is two layers, at any rank",
}

PRESETS = {
    "paper": {"rank": 50, "tanh": True},
    "calor": {"rank": 40, "tanh": True, "confidence_b": 8.0, "confidence_a": 0.25, "stage2": 0.05},
}
"""Of https://github.com/Chrisqcwx/LoFt, scripts/ffhq256_facescrub224/classifier: loft.py at commit 9d53293 (ResNet-152,
100 epochs), and ca_ft.py at commit 07f1e25 (5 epochs after them)."""


def adapted(t: Float[Tensor, "b k"], logits: Float[Tensor, "b k"], b: float) -> Float[Tensor, " b"]:
    """CALoR's loss sum_k t_k p_k^b ln p_k: for one true class lowest, -1 / (b e), where its p = e^(-1/b)."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return (t * torch.exp(b * log_p) * log_p).sum(dim=1)


@dataclass(frozen=True)
class LowRank(Defense):
    """logits = W_2 tanh(W_1 BN(h) + b_1) + b_2 with `rank` values in between; `features` stay h, before the batch norm.

    With confidence_b > 0 the last epochs (CALoR's stage 2) replace the cross-entropy by a p^b ln p, which pulls the
    true class's score to e^(-1/b) instead of 1: .88 for b = 8, .95 for b = 20. Its gradient is proportional to 1 - p,
    so scores that are certain already hardly come back.

    Args:
        rank: Values between the two layers, at most the features' width.
        tanh: Put a tanh between; without it the head is linear.
        confidence_b: The exponent b; 0 keeps the cross-entropy throughout.
        confidence_a: The factor a, above 0.
        stage2: Share of the epochs, at the end, that train with it.

    Raises:
        UserError: rank below 1, confidence_b below 0, confidence_a not above 0, stage2 outside [0, 1], or (from
            `surgery`) a model whose last layer is not linear or not wider than the rank.

    Source: the head of `NeckWrapper` and the loss `InverseFocalLoss` of the authors' toolbox
    (https://github.com/ffhibnese/Model-Inversion-Attack-ToolBox, branch tomain, models/classifiers/wrappers.py and
    utils/losses.py).
    Differs: their stage 2 fine-tunes a finished network (SGD, rate 2e-5, mirror images only); here the same training
    goes on, at the rate that the recipe ends with.
    """

    rank: int = 64
    tanh: bool = True
    confidence_b: float = 0.0
    confidence_a: float = 0.25
    stage2: float = 0.25

    def __post_init__(self) -> None:
        if not self.rank >= 1:
            raise UserError(f"loft: rank must be at least 1, got {self.rank}")
        if not 0 <= self.confidence_b < float("inf"):
            raise UserError(f"loft: confidence_b must be a finite number >= 0, got {self.confidence_b}")
        if not 0 < self.confidence_a < float("inf"):
            raise UserError(f"loft: confidence_a must be a finite number above 0, got {self.confidence_a}")
        if not 0 <= self.stage2 <= 1:
            raise UserError(f"loft: stage2 must lie in [0, 1], got {self.stage2}")

    def surgery(self, model: nn.Module) -> nn.Module:
        """The last layer becomes a batch norm and two layers with `rank` values in between."""
        assert isinstance(model, Classifier)
        head = linear_head(model, "loft")
        width = model.feature_dim
        if self.rank > width:
            raise UserError(f"loft: rank must be at most the {width} features of this architecture, got {self.rank}")
        layers: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.BatchNorm1d(width), down=nn.Linear(width, self.rank))
        if self.tanh:
            layers["tanh"] = nn.Tanh()
        layers["up"] = nn.Linear(self.rank, head.out_features)
        model.head = nn.Sequential(layers)
        return model

    def penalty(self, batch: Batch, logits: Float[Tensor, "b k"], taps: Sequence[Tensor], step: Step) -> Tensor | None:
        """In stage 2, what makes of the loop's cross-entropy the adapted loss: their difference, over the same rows."""
        if not self.confidence_b or step.time < 1.0 - self.stage2:
            return None
        entropy = -(batch.t * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
        wanted = self.confidence_a * adapted(batch.t, logits, self.confidence_b)
        return (batch.w * (wanted - entropy)).sum() / batch.clean
