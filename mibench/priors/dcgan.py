"""The shipped DCGAN as a prior.

On the data set `digiface` it is the attacker's best case, because the private images were drawn from this very
generator; on other faces it is a prior from a shifted distribution.

References:
    | Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
      (Radford, Metz and Chintala, ICLR 2016)
    | https://arxiv.org/abs/1511.06434
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.assets.dcgan import load_dcgan
from mibench.core import Prior, PriorTrainer, Split

__all__ = ["DcganPrior", "ShippedDcgan"]

CARD = {
    "summary": "the shipped 64 px face generator; learns nothing (best case on digiface)",
    "title": "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
    "authors": "Radford, Metz and Chintala",
    "venue": "ICLR",
    "year": 2016,
    "link": "https://arxiv.org/abs/1511.06434",
    "critic": "none",
    "domain": "digiface",
    "elsewhere": "stylegan2",
    "enterable": True,
}


BLOCKS = 4
"""Of the shipped generator, whose last layer paints the image."""


class DcganPrior(Prior):
    """G(z), z ~ N(0, I_100), brought to the data set's size and number of channels."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.generator = load_dcgan()
        self.latent_dim = self.generator.latent_dim
        self.image_shape = image_shape
        self.blocks = BLOCKS

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1]; smaller sizes are area averages, grey is the mean of the channels."""
        return self._fit(self.generator(z))

    def _fit(self, x: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n c h w"]:
        channels, height, width = self.image_shape
        if channels == 1:
            x = x.mean(dim=1, keepdim=True)
        if (height, width) != tuple(x.shape[2:]):
            shrink = height <= x.shape[2] and width <= x.shape[3]
            x = F.interpolate(x, (height, width), mode="area" if shrink else "bilinear")
        return x

    def features_at(self, z: Float[Tensor, "n d"], block: int) -> Float[Tensor, "n f"]:
        """The features after `block` transposed convolutions, ReLU applied; the last place is before the painting."""
        x = z
        for number in range(block):
            x = self.advance(z, x, number)
        return x

    def advance(self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int) -> Float[Tensor, "n g"]:
        """What flows into block `block + 1` when `inside` flows into block `block`; z itself flows into block 0."""
        return torch.relu(self.generator.blocks[block](self._shaped(inside, block))).float().flatten(1)

    def decode_from(
        self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int
    ) -> Float[Tensor, "n c h w"]:
        """The remaining convolutions; they do not look at z."""
        for number in range(block, self.blocks):
            inside = self.advance(z, inside, number)
        x = self.generator.paint(self._shaped(inside, self.blocks))
        return self._fit((torch.tanh(x.float()) + 1.0) / 2.0)

    def skip_size(self, block: int) -> int:
        """Nothing is painted before the end."""
        return 0

    def _shaped(self, inside: Tensor, block: int) -> Tensor:
        side = 4 * 2 ** (block - 1) if block else 1
        return inside.reshape(len(inside), -1, side, side).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class ShippedDcgan(PriorTrainer):
    """Nothing to choose."""

    def blocks_of(self, image_shape: tuple[int, int, int]) -> int:
        """The same for every size."""
        return BLOCKS

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> DcganPrior:
        """The shipped generator."""
        return DcganPrior(image_shape)
