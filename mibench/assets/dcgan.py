"""The shipped face generator: a 64 px colour DCGAN trained on renders of people who do not exist.

The data set `digiface` draws its people from it and the prior `dcgan` is it.
Where the weights come from and how they were converted: README.md in this folder.

References:
    | Unsupervised representation learning with deep convolutional generative adversarial networks
      (Radford, Metz and Chintala, 2016), the architecture
    | https://arxiv.org/abs/1511.06434
    | gan-face-generate 1.1.1 (Chien Liu, 2023, MIT), the trained weights
    | https://pypi.org/project/gan-face-generate/1.1.1/
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["DCGAN", "WEIGHTS", "draw", "load_dcgan"]

WEIGHTS = Path(__file__).parent / "digiface_dcgan.safetensors"
"""The shipped weights, 7 MB of float16."""


class DCGAN(nn.Module):
    """G(z) = (tanh(D4 r D3 r D2 r D1 r D0 z) + 1) / 2, with D transposed convolutions and r the ReLU.

    Sides 4, 8, 16, 32, 64; widths 8w, 4w, 2w, w, 3.

    Differs: the batch normalisation of the original is folded into each convolution's weight and bias, so no image
    depends on its batch, whatever mode the network is in.
    """

    def __init__(self, latent_dim: int = 100, width: int = 64) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        widths = [latent_dim, 8 * width, 4 * width, 2 * width, width]
        first = nn.ConvTranspose2d(widths[0], widths[1], 4)
        rest = [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths[1:])]
        self.blocks = nn.ModuleList([first, *rest])
        self.paint = nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1, bias=False)

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n 3 64 64"]:
        """Latents, N(0, I), to images in [0, 1]; differentiable."""
        x = z[:, :, None, None]
        for block in self.blocks:
            x = torch.relu(block(x))
        return (torch.tanh(self.paint(x)) + 1.0) / 2.0


def load_dcgan() -> DCGAN:
    """The shipped generator: float32, frozen, eval mode, on the CPU."""
    network = DCGAN()
    network.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return network.requires_grad_(False).eval()


@torch.no_grad()
def draw(network: DCGAN, z: Float[Tensor, "n d"]) -> Float64[Tensor, "n 3 64 64"]:
    """G(z) in float64, for images that must have the same bytes on every machine.

    Processors round the sums of a convolution differently: in float32 by up to 1e-4 grey levels, which moves some pixel
    of every few images across a rounding boundary; in float64 by less than 1e-12, which moves none that is ever seen.
    torch's own transposed convolution takes 12 ms an image in float64, on one core; as matrix products it takes 5.
    """
    blocks: list[Any] = list(network.blocks)
    first, *rest = blocks
    latents, weight = z.double(), first.weight.double()
    x = (latents @ weight.permute(0, 2, 3, 1).flatten(1)).reshape(len(z), *weight.shape[2:], -1)
    x = torch.relu_(x + first.bias.double())
    for block in rest:
        x = torch.relu_(_doubled(x, block.weight.double()) + block.bias.double())
    return ((torch.tanh(_doubled(x, network.paint.weight.double())) + 1.0) / 2.0).permute(0, 3, 1, 2)


def _doubled(x: Float64[Tensor, "n h w c"], weight: Float64[Tensor, "c o 4 4"]) -> Float64[Tensor, "n 2*h 2*w o"]:
    """The transposed convolution of kernel 4, stride 2 and padding 1: tap (a, b) of input pixel (y, x) is added to
    output pixel (2y + a - 1, 2x + b - 1)."""
    n, h, w, _ = x.shape
    taps = (x.flatten(0, 2) @ weight.permute(0, 2, 3, 1).flatten(1)).reshape(n, h, w, 2, 2, 2, 2, -1)
    padded = x.new_zeros(n, h + 1, 2, w + 1, 2, weight.shape[1])  # a = 2i + r falls on row 2(y + i) + r, one below
    for i in (0, 1):
        for j in (0, 1):
            padded[:, i : i + h, :, j : j + w] += taps[:, :, :, i, :, j].transpose(2, 3)
    return padded.reshape(n, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1]
