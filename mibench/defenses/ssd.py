"""Stealthy Shield Defense (SSD): scores are moved towards the mean scores of a class, within a budget.

References:
    | Stealthy Shield Defense: A Conditional Mutual Information-Based Approach against Black-Box Model Inversion Attacks
      (Zhuang et al., ICLR 2025)
    | https://openreview.net/forum?id=p0DjhjPXl3
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Defense, Split, Step
from mibench.models.base import Classifier
from mibench.models.served import Served, Shaper
from mibench.runtime.engine import at_once
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Shield", "StealthyShield", "nearest"]

CARD = {
    "summary": "move scores towards a class's mean scores, within a budget (SSD)",
    "title": "Stealthy Shield Defense: A Conditional Mutual Information-Based Approach against Black-Box Model "
    "Inversion Attacks",
    "authors": "Zhuang, Yu, Qiu, Fang, Chen and Xia",
    "venue": "ICLR",
    "year": 2025,
    "link": "https://openreview.net/forum?id=p0DjhjPXl3",
    "strength": "eps",
    "grid": [0.2, 0.5, 1.0],
    "unseen_by": ["white_box"],
    "adaptive": {},
    "zero": {"eps": 0.0},
}

PRESETS = {"paper": {"eps": 0.35, "temperature": 0.1}}
"""IR-152, CelebA: appendix D of the paper."""

FLOOR = 1e-12
CHUNK = 256


def nearest(f: Float[Tensor, "n k"], q: Float[Tensor, "n k"], budget: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """argmin KL(p || q) over the p of the simplex with ||p - f||_1 <= budget; q > 0.

    p_i = clip(f_i, a q_i, b q_i), where the water levels a < 1 < b move half of the budget up and half of it down:
    sum_i max(a q_i - f_i, 0) = sum_i max(f_i - b q_i, 0) = budget / 2. Where q itself lies within the budget, p = q.

    Either sum is the largest, over the classes below (above) some ratio f_i / q_i, of a linear function of its level.
    So with the classes sorted by ratio, a = min_m (budget / 2 + f_1 + .. + f_m) / (q_1 + .. + q_m), and b likewise from
    the other end.
    """
    half = budget[:, None] / 2
    order = (f / q).argsort(dim=1)
    mass, space = f.gather(1, order), q.gather(1, order)
    low = ((half + mass.cumsum(1)) / space.cumsum(1)).amin(dim=1, keepdim=True)
    high = ((mass.flip(1).cumsum(1) - half) / space.flip(1).cumsum(1)).amax(dim=1, keepdim=True)
    p = torch.minimum(torch.maximum(f, low * q), high * q)
    within = (f - q).abs().sum(dim=1, keepdim=True) <= 2 * half
    return torch.where(within, q, p / p.sum(dim=1, keepdim=True))


class Shield(Shaper):
    """y ~ softmax(f / T), then `nearest` to q_y with the budget eps H(f), H the entropy in nats.

    Args:
        means: q, the mean scores of each class; rows positive, summing to 1.
        eps: Share of the entropy that may be moved.
        temperature: T; the scores f themselves are divided by it, not logits.
    """

    means: Tensor

    def __init__(self, means: Float[Tensor, "k k"], eps: float, temperature: float) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.eps = eps
        self.temperature = temperature

    def label(self, probs: Float[Tensor, "n k"], noise: Noise) -> Tensor:
        """The class whose mean scores are the goal, drawn once for each image."""
        total = torch.softmax(probs / self.temperature, dim=1).cumsum(dim=1)
        below = total <= noise.of("label").uniform(1) * total[:, -1:]
        return below.sum(dim=1).clamp(max=probs.shape[1] - 1)

    def forward(self, probs: Float[Tensor, "n k"], noise: Noise) -> Float[Tensor, "n k"]:
        """Scores moved towards the class's."""
        budget = self.eps * torch.special.entr(probs).sum(dim=1)
        return nearest(probs, self.means[self.label(probs, noise)], budget)


@dataclass(frozen=True)
class StealthyShield(Defense):
    """What is served: p = argmin KL(p || q_y), ||p - f||_1 <= eps H(f), y ~ softmax(f / T), f the network's scores.

    q_y is the mean of the scores over the images of class y. Training and the white-box attacker see no difference.
    y is a function of the image's pixels (to 8 bits) and of a key that the attacker does not get, as the authors
    advise: averaging over repeated queries gains nothing.

    Args:
        eps: Share of the entropy (nats) that may be moved, >= 0; 0 serves the scores as they are. The paper's are .35
            (IR-152, CelebA), .5 (IR-152, FaceScrub), .8 (VGG-16, FaceScrub) and 1.5 (224 pixels).
        temperature: T, above 0; the paper's is .1. The largest score's class is drawn with probability at most
            e^(1/T) / (e^(1/T) + K - 1), so T should not exceed 1 / ln(9 K), which gives it nine draws of ten.

    Source: section 4 of the paper; in float64 the scores of https://github.com/ZhuangQu/Stealthy-Shield-Defense.
    Differs: q is measured on the training images, of which the network is surer than of the paper's validation images;
    1e-12 is added to each mean, so that none is 0 and a class without images has a uniform one.
    """

    eps: float = 0.5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise UserError(f"ssd: eps must be >= 0 and finite, got {self.eps}")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"ssd: temperature must be above 0 and finite, got {self.temperature}")

    def memory(self, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """`q`, filled by `finish`, and `key`, the seed of the classes' draws."""
        kept = nn.Module()
        kept.register_buffer("q", torch.full((classes, classes), 1.0 / classes))
        kept.register_buffer("key", torch.randint(1 << 62, ()))
        return kept

    @torch.no_grad()
    def finish(self, step: Step, train: Split) -> dict[str, float]:
        """Measure q."""
        q = step.memory.get_buffer("q")
        sums, counts = torch.zeros_like(q), torch.zeros_like(q[0])
        step.model.eval()
        chunk = at_once(CHUNK, train.images.shape, step.engine.device)
        for images, labels in zip(train.images.split(chunk), train.labels.split(chunk), strict=True):
            with step.engine.autocast():
                logits = step.model(step.engine.images(images))
            member = F.one_hot(labels.to(q.device), len(q)).float()
            sums += member.T @ torch.softmax(logits.float(), dim=1)  # unlike index_add_, the same bits on every run
            counts += member.sum(dim=0)
        means = sums / counts.clamp(min=1)[:, None] + FLOOR
        q.copy_(means / means.sum(dim=1, keepdim=True))
        return {}

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """The model, served through `Shield`."""
        if self.eps == 0:
            return model
        assert isinstance(model, Classifier)
        shaper = Shield(memory.get_buffer("q"), self.eps, self.temperature)
        return Served(model, shaper, int(memory.get_buffer("key")))
