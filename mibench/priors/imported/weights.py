"""What is read out of the file of a generator."""

from typing import NamedTuple

from torch import Tensor

from mibench.priors.stylegan2_ada_network import Geometry

__all__ = ["Weights"]


class Weights(NamedTuple):
    """The content of a generator's file.

    Args:
        geometry: Sizes of the networks.
        tensors: By the names that `stylegan2_ada.AdaPrior` gives them.
        format: What kind of file it was.
        licence: What is known of it.
        notes: What a user should know: what was missing, what was left out.
    """

    geometry: Geometry
    tensors: dict[str, Tensor]
    format: str
    licence: str
    notes: tuple[str, ...]

    @property
    def has_critic(self) -> bool:
        """Whether a discriminator came with the generator."""
        return any(name.startswith("critic_network.") for name in self.tensors)
