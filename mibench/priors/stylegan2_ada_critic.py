"""The discriminator of StyleGAN2 and StyleGAN2-ADA as their authors publish it, with weights of somebody else.

References:
    | Analyzing and Improving the Image Quality of StyleGAN (Karras et al., CVPR 2020), the residual discriminator
    | https://arxiv.org/abs/1912.04958
    | Progressive Growing of GANs (Karras et al., ICLR 2018), the minibatch standard deviation
    | https://arxiv.org/abs/1710.10196
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.priors.stylegan2_ada_network import Geometry, blur
from mibench.priors.stylegan2_network import Conv, Linear, activate

__all__ = ["Critic"]


class Halving(nn.Module):
    """Two convolutions, of which the second has stride 2 after a filter, beside a straight way; 1 / sqrt(2) of both."""

    def __init__(self, inside: int, outside: int, clamp: float) -> None:
        super().__init__()
        self.first = Conv(inside, inside, 3)
        self.second = Conv(inside, outside, 3)
        self.straight = Conv(inside, outside, 1, bias=False)
        self.clamp = clamp

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o k l"]:
        """Half the side."""
        kept = F.conv2d(blur(x, 1)[:, :, ::2, ::2], self.straight.weight * self.straight.gain)
        x = limited(activate(self.first(x)), self.clamp)
        x = F.conv2d(blur(x, 2), self.second.weight * self.second.gain, self.second.bias, stride=2)
        x = limited(activate(x), self.clamp)
        return (kept + x) / math.sqrt(2.0)


def limited(x: Float[Tensor, "*s"], clamp: float) -> Float[Tensor, "*s"]:
    """Clamped to +- `clamp`; 0 is not at all."""
    return x.clamp(-clamp, clamp) if clamp else x


class Critic(nn.Module):
    """1 x 1 from the image, halvings down to 4 x 4, the minibatch standard deviation, a convolution, two linear layers.

    Of an unconditional network: a conditional one judges an image and its class together.

    Differs: every image is a minibatch of its own, so that its score does not depend on its neighbours; its standard
    deviation is sqrt(1e-8), as for the original on a batch of one.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        sides, last = geometry.sides[::-1], geometry.channels(4)
        self.clamp = geometry.clamp
        self.read = Conv(geometry.colours, geometry.channels(sides[0]), 1)
        self.halvings = nn.Sequential(
            *[Halving(geometry.channels(side), geometry.channels(side // 2), geometry.clamp) for side in sides[:-1]]
        )
        self.conv = Conv(last + 1, last, 3)
        self.hidden = Linear(16 * last, last)
        self.score = Linear(last, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The logit of being real, of images in [-1, 1]."""
        x = self.halvings(limited(activate(self.read(x)), self.clamp))
        alone = torch.full_like(x[:, :1], 1e-4)
        x = limited(activate(self.conv(torch.cat([x, alone], dim=1))), self.clamp)
        return self.score(activate(self.hidden(x.flatten(1))))[:, 0].float()
