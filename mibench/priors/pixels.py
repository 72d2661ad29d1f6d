"""No knowledge about images at all: every picture is as likely as any other. The prior of MI-FACE.

References:
    | Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures
      (Fredrikson, Jha and Ristenpart, CCS 2015)
    | https://doi.org/10.1145/2810103.2813677
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.core import Prior, PriorTrainer, Split
from mibench.runtime.rng import Noise

__all__ = ["PixelPrior", "Pixels"]

CARD = {
    "summary": "raw pixels, for attacks without an image prior (mi_face)",
    "title": "Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures",
    "authors": "Fredrikson, Jha and Ristenpart",
    "venue": "CCS",
    "year": 2015,
    "link": "https://doi.org/10.1145/2810103.2813677",
    "critic": "none",
    "domain": "none",
    "spaces": ["pixels"],
}


class PixelPrior(Prior):
    """A latent is an image, flattened. Its only space is called pixels."""

    spaces = ("pixels",)

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dim = math.prod(image_shape)

    def sample(self, noise: Noise) -> Float[Tensor, "n d"]:
        """U[0, 1) for every pixel: what someone expects who knows nothing."""
        return noise.uniform(self.latent_dim)

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """The latent in the shape of an image, clamped to [0, 1]; no gradient flows from outside of that."""
        # clamp's own gradient is 0 at the bounds, where a search from a black image starts.
        inside = (z >= 0.0) & (z <= 1.0)
        return torch.where(inside, z, z.detach().clamp(0.0, 1.0)).reshape(-1, *self.image_shape)


@dataclass(frozen=True)
class Pixels(PriorTrainer):
    """Nothing to choose, nothing to learn."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> PixelPrior:
        """The prior; the public images are not looked at."""
        return PixelPrior(image_shape)
