"""MID: the head sees the features through a noisy channel, and training pays for what passes through it.

References:
    | Improving Robustness to Model Inversion Attacks via Mutual Information Regularization (Wang, Zhang and Jia,
      AAAI 2021)
    | https://arxiv.org/abs/2009.05241
    | Deep Variational Information Bottleneck (Alemi et al., ICLR 2017), the bound that is minimised
    | https://arxiv.org/abs/1612.00410
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Batch, Defense, Step
from mibench.defenses.parts.heads import linear_head
from mibench.models.base import Classifier
from mibench.models.served import Served
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, content_keys

__all__ = ["Bottleneck", "MutualInformation", "NoisyServed", "divergence", "spread"]

CARD = {
    "summary": "variational bottleneck before the last layer (MID)",
    "title": "Improving Robustness to Model Inversion Attacks via Mutual Information Regularization",
    "authors": "Wang, Zhang and Jia",
    "venue": "AAAI",
    "year": 2021,
    "link": "https://arxiv.org/abs/2009.05241",
    "strength": "beta",
    "grid": [0.003, 0.01, 0.03, 0.1],
    "adaptive": {
        "+eot": "draws the code's noise in the loss, as the training did",
        "objective=max_margin": "reads the logits, which a Poincaré loss first scales to shares",
    },
    "zero": "its head is a bottleneck even when what passes through costs nothing",
}

PRESETS = {"paper": {"beta": 0.003, "serve": "noise"}}
"""VGG-16, CelebA: gmi/target/train_vib.py at commit 23dc853 of https://github.com/Jiachen-T-Wang/mi-defense."""

OFFSET = 5.0
"""s = softplus(r - 5): a new head starts with little noise, s = .0067."""


class Bottleneck(nn.Module):
    """(mu, r) = encode(h); logits = decode(mu + softplus(r - 5) eps), eps ~ N(0, I) in training and 0 in eval mode.

    In float32 under any precision: bfloat16 keeps too little of s.

    Args:
        features: d, the width of h.
        k: Width of the code z.
        classes: Number of logits.
    """

    def __init__(self, features: int, k: int, classes: int) -> None:
        super().__init__()
        self.k = k
        self.encode = nn.Linear(features, 2 * k)
        self.decode = nn.Linear(k, classes)

    def forward(self, h: Float[Tensor, "n d"], eps: Float[Tensor, "n k"] | None = None) -> Float[Tensor, "n classes"]:
        """Logits; eps, where given, is the noise in either mode."""
        with torch.autocast(h.device.type, enabled=False):
            mu, r = self.encode(h.float()).chunk(2, dim=1)
            if eps is None and self.training:
                eps = torch.randn_like(mu)
            if eps is not None:
                mu = mu + spread(r)[0] * eps
            out: Tensor = self.decode(mu)
            return out

    def draw(self, features: Float[Tensor, "n d"], noise: Noise) -> Float[Tensor, "n classes"]:
        """Logits of one draw of the code, as in training, eps from the noise: for attackers who hold the weights."""
        return self(features, noise.of("code").normal(self.k))


def spread(r: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """s = softplus(r - 5) and ln s; below r - 5 = -15 s underflows, and ln s is r - 5 to 1e-7."""
    u = r - OFFSET
    log_s = torch.where(u < -15.0, u, F.softplus(u.clamp(min=-15.0)).log())
    return F.softplus(u), log_s


def divergence(code: Float[Tensor, "n k2"]) -> Float[Tensor, " n"]:
    """KL(N(mu, s^2) || N(0, 1)) in nats, summed over the dimensions of z: sum 1/2 (mu^2 + s^2 - 1) - ln s.

    Args:
        code: mu and r side by side, as `encode` gives them.
    """
    mu, r = code.float().chunk(2, dim=1)
    s, log_s = spread(r)
    return (0.5 * (mu.square() + s.square() - 1.0) - log_s).sum(dim=1)


class NoisyServed(Classifier):
    """Serves decode(mu + s eps) with eps keyed by the image's content: asking twice gives one answer.

    Features and head, which a white-box attacker holds, are the mean network.

    Args:
        inner: A network whose head is a `Bottleneck`.
        seed: Of the noise.
    """

    def __init__(self, inner: Classifier, seed: int) -> None:
        super().__init__(inner.prepare, inner.trunk, inner.head, inner.feature_dim)
        self.seed = seed

    def serve(self, features: Float[Tensor, "n d"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of one draw of the code."""
        assert isinstance(self.head, Bottleneck)
        eps = Noise(self.seed, content_keys(x)).normal(self.head.k)
        out: Tensor = self.head(features, eps)
        return out


@dataclass(frozen=True)
class MutualInformation(Defense):
    """loss + beta KL(q(z | h) || N(0, I)), z a noisy linear code of the penultimate features h.

    The scores are made of z alone, and the KL bounds I(h; z), so it bounds what they tell about the image. `features`
    stay h, before the bottleneck.

    Args:
        beta: Nats' price. The KL is a sum over the k dimensions of z (4.5 nats each at the start), so beta means little
            without k; see per_dim.
        k: Width of z; None is half of the features' width.
        per_dim: Divide the KL by k, so that one beta serves nets of different widths.
        serve: What callers get: mean (z = mu) or noise (z drawn, from the image's content and a key that attackers do
            not get). A white-box attacker holds the mean network in both cases.

    Raises:
        UserError: beta below 0 or not finite, k below 1, or (from `surgery`) a model whose last layer is not linear.

    Source: the paper; head, noise and loss of the authors' gmi/target/model.py and engine.py.
    Differs: the reference draws noise at inference too, from a stateful generator, and lets a white-box attacker meet
    it; that only masks gradients, which averaging undoes.
    """

    beta: float = 0.01
    k: int | None = None
    per_dim: bool = False
    serve: Literal["mean", "noise"] = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise UserError(f"mid: beta must be a finite number >= 0, got {self.beta}")
        if self.k is not None and self.k < 1:
            raise UserError(f"mid: k must be at least 1 (or none for half of the features), got {self.k}")

    def surgery(self, model: nn.Module) -> nn.Module:
        """The last layer becomes a `Bottleneck`."""
        assert isinstance(model, Classifier)
        head = linear_head(model, "mid")
        width = model.feature_dim
        model.head = Bottleneck(width, self.k or max(1, width // 2), head.out_features)
        return model

    def memory(self, classes: int, image_shape: tuple[int, int, int]) -> nn.Module | None:
        """`key`, the seed of the noise that is served, if any."""
        if self.serve == "mean":
            return None
        kept = nn.Module()
        kept.register_buffer("key", torch.randint(1 << 62, ()))
        return kept

    def taps(self, model: nn.Module) -> Sequence[nn.Module]:
        """The code, mu and r."""
        head = model.head
        assert isinstance(head, Bottleneck)
        return (head.encode,) if self.beta else ()

    def penalty(self, batch: Batch, logits: Float[Tensor, "b k"], taps: Sequence[Tensor], step: Step) -> Tensor | None:
        """beta sum_i w_i KL_i / clean, and divided by the width of z if per_dim."""
        if not self.beta:
            return None
        (code,) = taps
        price = self.beta / (code.shape[1] // 2) if self.per_dim else self.beta
        return price * (batch.w * divergence(code)).sum() / batch.clean

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """As it is, or noisy; what other defenses make of the scores comes after the noise."""
        if self.serve == "mean":
            return model
        assert isinstance(model, Classifier)
        noisy = NoisyServed(model, int(memory.get_buffer("key")))
        return model.around(noisy) if isinstance(model, Served) else noisy
