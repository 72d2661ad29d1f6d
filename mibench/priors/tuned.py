"""A prior whose generator was tuned for single identities; no plug-in, made by attacks (PPDG-MI)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from mibench.core import Prior
from mibench.runtime.rng import Noise

__all__ = ["Tuned", "Weights"]

Weights = dict[str, Tensor]
"""Parameters by name."""


class _Calls(nn.Module):
    """A prior's methods as a forward pass, which is what `functional_call` can run with other weights."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.prior.decode(z, y)


class Tuned(Prior):
    """A prior with a tuned copy of the generator for each identity; where none is named, the prior as it was.

    The copies are weights only, all in memory: identities x generator. The prior itself is never changed.

    Args:
        prior: The prior as it was.
        copies: Tuned weights by name, for each identity that has some.
    """

    def __init__(self, prior: Prior, copies: Mapping[int, Weights]) -> None:
        super().__init__()
        self.prior = prior
        self.copies = copies
        self.latent_dim, self.image_shape = prior.latent_dim, prior.image_shape
        self.critic_kind, self.differentiable = prior.critic_kind, prior.differentiable
        self.conditional, self.slope = prior.conditional, prior.slope
        self.spaces = prior.spaces[:1]
        self._calls = _Calls(prior)
        self._seen: tuple[Tensor, list[tuple[int, Tensor]]] | None = None
        self.training = prior.training

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Each identity's latents through its own copy."""
        if y is None or not self.copies:
            return self.prior.decode(z, y)
        # A search passes the same labels at every step, so the device is asked for them only once.
        if self._seen is None or self._seen[0] is not y:
            rows: dict[int, list[int]] = {}
            for row, label in enumerate(y.tolist()):
                rows.setdefault(label, []).append(row)
            self._seen = y, [(label, torch.tensor(own, device=y.device)) for label, own in rows.items()]
        groups = self._seen[1]
        drawn = [self.with_weights(self.copies.get(label, {}), z[own], y[own]) for label, own in groups]
        return torch.cat(drawn)[torch.cat([own for _, own in groups]).argsort()]

    def with_weights(self, weights: Weights, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"]) -> Tensor:
        """Latents through the generator with these weights, differentiable in both."""
        return functional_call(self._calls, {f"prior.{name}": value for name, value in weights.items()}, (z, y))

    def sample(self, noise: Noise) -> Float[Tensor, "n d"]:
        """The prior's latents."""
        return self.prior.sample(noise)

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The prior's critic, which is not tuned."""
        return self.prior.critic(x)
