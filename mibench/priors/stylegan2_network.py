"""The StyleGAN2 networks: mapping, modulated convolutions, a generator that paints as it grows, a residual critic.

Written from the papers' equations.

References:
    | Analyzing and Improving the Image Quality of StyleGAN (Karras et al., CVPR 2020), the architecture
    | https://arxiv.org/abs/1912.04958
    | Progressive Growing of GANs (Karras et al., ICLR 2018), the equalised learning rate
    | https://arxiv.org/abs/1710.10196
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.priors.gan import levels

__all__ = ["SLOPE", "Mapping", "Modulated", "StyleCritic", "StyleGenerator", "activate"]

SLOPE = 0.2
"""Negative slope of every activation, so also of the one whose outputs are the w."""


def activate(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """sqrt(2) LeakyReLU_.2(x): an input of unit variance leaves with about unit power."""
    return F.leaky_relu(x, SLOPE) * math.sqrt(2.0)


class Linear(nn.Module):
    """x W' / sqrt(inside) + b with W ~ N(0, 1) at the start: every weight learns at the same relative speed.

    `rate` multiplies the learning rate: the stored weight is 1 / rate times as large, what is used is the same.
    """

    def __init__(self, inside: int, outside: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outside, inside) / rate)
        self.bias = nn.Parameter(torch.full((outside,), bias / rate))
        self.gain, self.rate = rate / math.sqrt(inside), rate

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """One row per row."""
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class Conv(nn.Module):
    """A convolution with the equalised learning rate, W ~ N(0, 1) / sqrt(inside * kernel^2)."""

    def __init__(self, inside: int, outside: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outside, inside, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outside)) if bias else None
        self.gain = 1 / math.sqrt(inside * kernel**2)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h w"]:
        """The same size."""
        return F.conv2d(x, self.weight * self.gain, self.bias, padding=self.weight.shape[-1] // 2)


class Mapping(nn.Module):
    """z -> w: z / rms(z), then layers of sqrt(2) LeakyReLU_.2(W x + b). Its last activation gives w its P-space."""

    def __init__(self, latent_dim: int, style_dim: int, layers: int, rate: float) -> None:
        super().__init__()
        sizes = [latent_dim] + [style_dim] * layers
        self.layers = nn.ModuleList([Linear(inside, outside, rate=rate) for inside, outside in pairwise(sizes)])

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Depends on z's direction only."""
        x = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = activate(layer(x))
        return x.float()


class Modulated(nn.Module):
    """A convolution whose input channels are scaled by a style; its outputs are scaled back to unit variance.

    w'_oik = s_i w_oik,  w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + 1e-8),  s = A(w), A's bias 1 at the start.
    The weight is shared by the batch: conv(x; s_i w_oik) = conv(s_i x_i; w_oik), and the division is a scale of the
    output channels, so no image needs a convolution of its own.

    Args:
        inside: Channels in.
        outside: Channels out.
        style_dim: Size of w.
        kernel: Side of the kernel.
        up: Double the side: a transposed convolution of stride 2, then the filter [1, 3, 3, 1].
        demodulate: Scale back; a layer that paints does not.
    """

    kernel: Tensor

    def __init__(
        self, inside: int, outside: int, style_dim: int, kernel: int = 3, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.style = Linear(style_dim, inside, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outside, inside, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outside))
        self.gain = 1 / math.sqrt(inside * kernel**2)
        self.up, self.demodulate = up, demodulate
        tap = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4.0
        self.register_buffer("kernel", tap[:, None] * tap, persistent=False)

    def forward(self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n e"]) -> Float[Tensor, "n o k l"]:
        """Convolution and bias, no activation."""
        style = self.style(w).float()
        weight = self.weight * self.gain
        x = x * style[:, :, None, None].to(x.dtype)
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = F.conv2d(x, self.kernel.to(x.dtype).expand(len(weight), 1, 4, 4), padding=1, groups=len(weight))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            # Elementwise and not a product of matrices, so that it stays float32 under autocast.
            power = (style.square()[:, None] * weight.square().sum(dim=(2, 3))).sum(dim=2)
            x = x * torch.rsqrt(power + 1e-8)[:, :, None, None].to(x.dtype)
        return x + self.bias[:, None, None].to(x.dtype)


class Block(nn.Module):
    """Doubles the features (but for the first block), convolves them, and adds what they paint to the image so far."""

    def __init__(self, inside: int, outside: int, channels: int, style_dim: int, first: bool) -> None:
        super().__init__()
        self.grow = None if first else Modulated(inside, outside, style_dim, up=True)
        self.conv = Modulated(outside, outside, style_dim)
        self.paint = Modulated(outside, channels, style_dim, kernel=1, demodulate=False)
        with torch.no_grad():
            # Almost grey at first: a warm-up then learns the mean image before it learns what differs.
            self.paint.weight.mul_(0.1)

    def forward(
        self, x: Float[Tensor, "n i h w"], image: Float[Tensor, "n c h w"], styles: list[Tensor]
    ) -> tuple[Float[Tensor, "n o k l"], Float[Tensor, "n c k l"]]:
        """Features and image; `styles` are the w of: grow, conv, paint."""
        if self.grow is not None:
            x = activate(self.grow(x, styles[0]))
            image = F.interpolate(image, scale_factor=2.0, mode="bilinear")
        x = activate(self.conv(x, styles[1]))
        return x, image + self.paint(x, styles[2])


class StyleGenerator(nn.Module):
    """z -> w -> a learned constant, grown from 4x4 by blocks that are each told w; (1 + tanh(image)) / 2.

    Channels halve with each doubling, down to `width`, and are at most `most`.
    Layer l of 2 * doublings + 2 hears w_l: 0 the first convolution, then for block k 2k - 1 grow, 2k conv, 2k + 1 paint
    (which is also the next block's grow, as in the original).

    Differs: no noise is added to the features (inversion keeps it constant anyway), and the image is squashed by tanh
    instead of left unbounded, so that it lies in [0, 1] without a clamp that stops gradients.
    """

    centre: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        style_dim: int,
        layers: int,
        width: int,
        most: int,
        rate: float,
    ) -> None:
        super().__init__()
        doublings = levels(image_shape)
        self.channels = image_shape[0]
        self.widths = [min(most, width * 2 ** (doublings - level)) for level in range(doublings + 1)]
        self.mapping = Mapping(latent_dim, style_dim, layers, rate)
        self.constant = nn.Parameter(torch.randn(self.widths[0], 4, 4))
        self.grown = nn.ModuleList(
            [
                Block(self.widths[max(0, level - 1)], outside, self.channels, style_dim, level == 0)
                for level, outside in enumerate(self.widths)
            ]
        )
        self.register_buffer("centre", torch.zeros(style_dim))

    @property
    def layers(self) -> int:
        """How many layers hear a w."""
        return 2 * len(self.grown)

    def skip_size(self, block: int) -> int:
        """How many numbers of the state before a block are the image so far."""
        return self.channels * (4 * 2 ** (block - 1)) ** 2

    def start(self, styles: Float[Tensor, "n l e"]) -> Float[Tensor, "n f"]:
        """The state before block 1: features and the image so far, flattened."""
        return self.advance(styles, torch.zeros(len(styles), 0, device=styles.device), 0)

    def advance(self, styles: Float[Tensor, "n l e"], state: Float[Tensor, "n f"], block: int) -> Float[Tensor, "n g"]:
        """The state after a block."""
        if block == 0:
            x = self.constant.expand(len(styles), -1, -1, -1)
            image = torch.zeros(len(styles), self.channels, 4, 4, device=styles.device)
        else:
            side = 4 * 2 ** (block - 1)
            x, image = state.split([state.shape[1] - self.skip_size(block), self.skip_size(block)], dim=1)
            x, image = x.reshape(len(x), -1, side, side), image.reshape(len(x), -1, side, side)
        x = x.contiguous(memory_format=torch.channels_last)
        x, image = self.grown[block](x, image, [styles[:, max(0, 2 * block - 1 + i)] for i in range(3)])
        return torch.cat([x.flatten(1), image.flatten(1)], dim=1).float()

    def finish(
        self, styles: Float[Tensor, "n l e"], state: Float[Tensor, "n f"], block: int
    ) -> Float[Tensor, "n c h w"]:
        """The image in [0, 1] of the state before block `block`."""
        for level in range(block, len(self.grown)):
            state = self.advance(styles, state, level)
        side = 4 * 2 ** (len(self.grown) - 1)
        image = state[:, -self.channels * side**2 :].reshape(len(state), self.channels, side, side)
        return (1.0 + torch.tanh(image)) / 2.0

    def same(self, w: Float[Tensor, "n e"]) -> Float[Tensor, "n l e"]:
        """One w for all layers."""
        return w[:, None].expand(-1, self.layers, -1)

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1]."""
        styles = self.same(self.mapping(z))
        return self.finish(styles, self.start(styles), 1)


class Halving(nn.Module):
    """Two convolutions and a mean over 2 x 2 between them, beside a straight way; the sum is divided by sqrt(2)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = Conv(inside, inside, 3)
        self.second = Conv(inside, outside, 3)
        self.straight = Conv(inside, outside, 1, bias=False)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o k l"]:
        """Half the side."""
        bent = activate(self.second(F.avg_pool2d(activate(self.first(x)), 2)))
        return (bent + self.straight(F.avg_pool2d(x, 2))) / math.sqrt(2.0)


class StyleCritic(nn.Module):
    """The residual discriminator: 1x1 from the image, halvings down to 4x4, convolution, two linear layers.

    Differs: no minibatch standard deviation, so that an image's score does not depend on its neighbours; 2 x 2 means
    where the original filters with [1, 3, 3, 1].
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, most: int) -> None:
        super().__init__()
        doublings = levels(image_shape)
        widths = [min(most, width * 2**level) for level in range(doublings + 1)]
        self.read = Conv(image_shape[0], widths[0], 1)
        self.halvings = nn.Sequential(*[Halving(a, b) for a, b in pairwise(widths)])
        self.conv = Conv(widths[-1], widths[-1], 3)
        self.hidden = Linear(16 * widths[-1], widths[-1])
        self.score = Linear(widths[-1], 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The logit of being real."""
        x = self.halvings(activate(self.read(2.0 * x - 1.0)))
        return self.score(activate(self.hidden(activate(self.conv(x)).flatten(1))))[:, 0].float()
