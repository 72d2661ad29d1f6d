"""What a service makes of a classifier's scores before it tells them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.models.base import Classifier
from mibench.runtime.rng import Noise, content_keys

__all__ = ["Served", "Shaper"]


class Shaper(nn.Module):
    """Makes of softmax scores what a service tells: non-negative, sums to 1."""

    def forward(self, probs: Float[Tensor, "n k"], noise: Noise) -> Float[Tensor, "n k"]:
        """Scores as served; the noise is keyed by each image's content, so that asking twice gives one answer."""
        raise NotImplementedError


class Served(Classifier):
    """A classifier whose scores pass through a `Shaper`; features and head, which a white-box attacker holds, do not.

    logits = log(shaper(softmax(inner logits))): the softmax of what is served gives the shaped scores back.

    Args:
        inner: The network, perhaps served through other shapers already.
        shaper: What its scores pass through last.
        seed: Of the shaper's noise.
    """

    def __init__(self, inner: Classifier, shaper: Shaper, seed: int) -> None:
        super().__init__(inner.prepare, inner.trunk, inner.head, inner.feature_dim)
        self.inside = (inner,)  # in a tuple: its modules are registered already, as this network's own
        self.shaper = shaper
        self.seed = seed

    def serve(self, features: Float[Tensor, "n d"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logarithms of the shaped scores; a score of 0 is told as 1e-38, because logits must be finite."""
        probs = torch.softmax(self.inside[0].serve(features, x).float(), dim=1)
        shaped: Tensor = self.shaper(probs, Noise(self.seed, content_keys(x)))
        return shaped.clamp(min=torch.finfo(shaped.dtype).tiny).log()

    def around(self, base: Classifier) -> "Served":
        """The same shapers around another network."""
        inner = self.inside[0]
        return Served(inner.around(base) if isinstance(inner, Served) else base, self.shaper, self.seed)
