"""The shipped DCGAN as a prior.

On the data set `digiface` it is the attacker's best case, because the private images were drawn from this very
generator; on other faces it is a prior from a shifted distribution.

References:
    | Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
      (Radford, Metz and Chintala, ICLR 2016)
    | https://arxiv.org/abs/1511.06434
"""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.assets.dcgan import load_dcgan
from mibench.core import Prior, PriorRecipe, Split

__all__ = ["DcganPrior", "ShippedDcgan"]

CARD = {
    "summary": "the shipped 64 px face generator; learns nothing (best case on digiface)",
    "title": "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
    "authors": "Radford, Metz and Chintala",
    "venue": "ICLR",
    "year": 2016,
    "link": "https://arxiv.org/abs/1511.06434",
    "critic": "none",
}


class DcganPrior(Prior):
    """G(z), z ~ N(0, I_100), brought to the data set's size and number of channels."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.generator = load_dcgan()
        self.latent_dim = self.generator.latent_dim
        self.image_shape = image_shape

    def decode(
        self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1]; smaller sizes are area averages, grey is the mean of the channels."""
        x = self.generator(z)
        channels, height, width = self.image_shape
        if channels == 1:
            x = x.mean(dim=1, keepdim=True)
        if (height, width) != tuple(x.shape[2:]):
            shrink = height <= x.shape[2] and width <= x.shape[3]
            x = F.interpolate(x, (height, width), mode="area" if shrink else "bilinear")
        return x


@dataclass(frozen=True)
class ShippedDcgan(PriorRecipe):
    """Nothing to choose."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> DcganPrior:
        """The shipped generator."""
        return DcganPrior(image_shape)
