"""Eigenfaces as a prior: public images are Gaussian along their principal components. A complete prior in one file.

References:
    | Eigenfaces for Recognition (Turk and Pentland, Journal of Cognitive Neuroscience 1991)
    | https://doi.org/10.1162/jocn.1991.3.1.71
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.core import Oracle, Prior, PriorTrainer, Split, TrainingContext, to_float
from mibench.runtime.errors import UserError

__all__ = ["EigenfacePrior", "EigenfaceTrainer"]

CARD = {
    "summary": "a Gaussian along the principal components of the public images",
    "title": "Eigenfaces for Recognition",
    "authors": "Turk and Pentland",
    "venue": "Journal of Cognitive Neuroscience",
    "year": 1991,
    "link": "https://doi.org/10.1162/jocn.1991.3.1.71",
    "contract": 1,
    "critic": "none",
    "domain": "public",
    "toy": {"short": {"components": 10}},
}


class EigenfacePrior(Prior):
    """G(z) = clamp(mean + (z * deviation) components), z ~ N(0, I); the buffers are what training fills."""

    def __init__(self, image_shape: tuple[int, int, int], components: int) -> None:
        super().__init__()
        self.image_shape, self.latent_dim = image_shape, components
        pixels = math.prod(image_shape)
        self.register_buffer("mean", torch.full((pixels,), 0.5))
        self.register_buffer("deviation", torch.zeros(components))
        self.register_buffer("components", torch.zeros(components, pixels))

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1], differentiable in z where no pixel is clamped."""
        x = self.get_buffer("mean") + (z * self.get_buffer("deviation")) @ self.get_buffer("components")
        return x.clamp(0.0, 1.0).reshape(-1, *self.image_shape)


@dataclass(frozen=True)
class EigenfaceTrainer(PriorTrainer):
    """The singular value decomposition of the centred public images.

    Args:
        components: Principal components kept, at least 1, fewer than there are public images.
    """

    components: int = 50

    def __post_init__(self) -> None:
        if self.components < 1:
            raise UserError(f"eigenfaces: components must be at least 1, got {self.components}")

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> EigenfacePrior:
        """A grey image, until `train` has seen the public images.

        Raises:
            UserError: Too few public images for so many components.
        """
        if self.components >= len(public):
            raise UserError(
                f"eigenfaces: {self.components} components need more than {len(public)} public images; "
                "lower --set prior.components"
            )
        return EigenfacePrior(image_shape, self.components)

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Fill the buffers; returns the share of the variance that is kept."""
        x = to_float(public.images).flatten(1)
        _, values, directions = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
        prior.get_buffer("mean").copy_(x.mean(dim=0))
        prior.get_buffer("deviation").copy_(values[: self.components] / math.sqrt(len(x) - 1))
        prior.get_buffer("components").copy_(directions[: self.components])
        kept = values[: self.components].square().sum() / values.square().sum()
        return [{"variance_kept": float(kept)}]
