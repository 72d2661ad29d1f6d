"""What a service makes of a classifier's scores before it tells them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.models.base import Classifier
from mibench.rng import Noise, content_keys

__all__ = ["Served", "Shaper"]


class Shaper(nn.Module):
    """Makes of softmax scores what a service tells: non-negative, sums to 1."""

    def forward(self, probs: Float[Tensor, "n k"], noise: Noise) -> Float[Tensor, "n k"]:
        """Scores as served; the noise is keyed by each image's content, so that asking twice gives one answer."""
        raise NotImplementedError


class Served(Classifier):
    """A classifier whose scores pass through a `Shaper`; features and head, which a white-box attacker holds, do not.

    logits = log(shaper(softmax(head(features)))): the softmax of what is served gives the shaped scores back.

    Args:
        inner: The network, perhaps served through other shapers already.
        shaper: What its scores pass through last.
        seed: Of the shaper's noise.
    """

    shapers: nn.ModuleList
    seeds: list[int]

    def __init__(self, inner: Classifier, shaper: Shaper, seed: int) -> None:
        super().__init__(inner.prepare, inner.trunk, inner.head, inner.feature_dim)
        before, seeds = (list(inner.shapers), inner.seeds) if isinstance(inner, Served) else ([], [])
        self.shapers = nn.ModuleList([*before, shaper])
        self.seeds = [*seeds, seed]

    def serve(self, features: Float[Tensor, "n d"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logarithms of the shaped scores; a score of 0 is -inf."""
        probs = torch.softmax(self.head(features).float(), dim=1)
        keys = content_keys(x)
        for seed, shaper in zip(self.seeds, self.shapers, strict=True):
            probs = shaper(probs, Noise(seed, keys))
        return probs.log()
