"""The generator of StyleGAN2 and StyleGAN2-ADA as their authors publish it, with weights that somebody else trained.

Written from the papers' equations; that it draws what the original draws is tested on images that the original drew.

References:
    | Analyzing and Improving the Image Quality of StyleGAN (Karras et al., CVPR 2020), the architecture
    | https://arxiv.org/abs/1912.04958
    | Training Generative Adversarial Networks with Limited Data (Karras et al., NeurIPS 2020), classes, mixed precision
    | https://arxiv.org/abs/2006.06676
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.priors.stylegan2_network import SLOPE, Linear, activate
from mibench.runtime.errors import UserError

__all__ = ["Generator", "Geometry", "Window", "blur", "doubled", "windows"]

NoiseKind = Literal["const", "none", "random"]

ROOT = math.sqrt(2.0)
"""The gain of every activation."""


@dataclass(frozen=True)
class Geometry:
    """The sizes of a generator, and of the discriminator that was trained with it.

    Channels at side s are min(base / s, most).

    Args:
        resolution: Side of its images, a power of two.
        base: Numerator of the channels: 32768 is config F, 16384 the half of it.
        most: Most channels of a layer.
        latent_dim: Of z.
        style_dim: Of w.
        layers: Of the mapping network.
        classes: Of a conditional generator; 0 is unconditional.
        colours: Channels of the images.
        clamp: Every layer's output is clamped to +- this; 0 is not at all. Published with mixed precision: 256.
        half: How many of the highest resolutions were trained in float16; published: 4.
        noisy: Layers have a noise image and its strength.
    """

    resolution: int = 1024
    base: int = 32768
    most: int = 512
    latent_dim: int = 512
    style_dim: int = 512
    layers: int = 8
    classes: int = 0
    colours: int = 3
    clamp: float = 0.0
    half: int = 0
    noisy: bool = True

    def __post_init__(self) -> None:
        if not 8 <= self.resolution <= 2048 or self.resolution & (self.resolution - 1):
            raise UserError(
                f"a StyleGAN2 draws squares of 8, 16, 32, ... 2048 pixels; got a resolution of {self.resolution}"
            )
        sizes = {"base / resolution": self.base // self.resolution, "most": self.most, "colours": self.colours}
        sizes |= {"latent_dim": self.latent_dim, "style_dim": self.style_dim, "layers": self.layers}
        if small := next((name for name, size in sizes.items() if size < 1), None):
            raise UserError(f"a StyleGAN2 needs {small} of at least 1, got {sizes[small]}")

    @property
    def sides(self) -> list[int]:
        """Of each block's images: 4, 8, ... resolution."""
        return [2**power for power in range(2, self.resolution.bit_length())]

    def channels(self, side: int) -> int:
        """Of the features at this side."""
        return min(self.base // side, self.most)


class Window(NamedTuple):
    """What of a block is computed when only a part of the image is wanted; (begin, end) along either side.

    Args:
        inside: Of what flows in.
        grown: Of the doubled features: one pixel more on each side, for the convolution of 3 x 3.
        outside: Of what comes out.
    """

    inside: tuple[int, int]
    grown: tuple[int, int]
    outside: tuple[int, int]


def windows(sides: list[int], crop: int) -> list[Window]:
    """The windows of all blocks for a square of `crop` pixels in the image's middle, which are then exact.

    A pixel p of the doubled features hangs on the pixels ceil((p - 3) / 2) to floor((p + 2) / 2) of what flows in: two
    taps of the transposed convolution, four of the filter. Where a window does not reach the border, what is computed
    at its edge is wrong (there zeros stand where pixels are) and is cut off.

    Args:
        sides: Of the blocks' images, ascending, each twice the one before.
        crop: Side of the square.
    """
    top = round((sides[-1] - crop) / 2)
    wanted = (top, top + crop)
    cut: list[Window] = []
    for side in reversed(sides):
        begin, end = max(0, wanted[0] - 1), min(side, wanted[1] + 1)
        inside = (max(0, (begin - 2) // 2), min(side // 2, (end + 1) // 2 + 1))
        cut.append(Window(inside, (begin, end), wanted))
        wanted = inside
    return cut[::-1]


def cut(x: Float[Tensor, "n c h w"], window: tuple[int, int], first: int) -> Float[Tensor, "n c k l"]:
    """The part of x that a window names, where x begins at pixel `first`."""
    low, high = window[0] - first, window[1] - first
    return x if (low, high) == (0, x.shape[2]) == (0, x.shape[3]) else x[:, :, low:high, low:high]


def blur(x: Float[Tensor, "n c h w"], padding: int, gain: float = 1.0) -> Float[Tensor, "n c k l"]:
    """Every channel filtered with the outer product of [1, 3, 3, 1] / 8, times the gain; zeros beyond the border."""
    tap = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) * (math.sqrt(gain) / 8.0)
    kernel = (tap[:, None] * tap).to(x.dtype).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


def doubled(image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c k l"]:
    """Twice the side: zeros between pixels, then `blur` with gain 4.

    Inside that is bilinear interpolation; at the border the filter meets zeros, which are put there first.
    """
    return F.interpolate(F.pad(image, (1, 1, 1, 1)), scale_factor=2.0, mode="bilinear")[:, :, 2:-2, 2:-2]


class Mapping(nn.Module):
    """(z, class) -> w: [z / rms(z), e / rms(e)] with e the class's embedding, then layers of sqrt(2) LeakyReLU_.2."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        style, embedded = geometry.style_dim, geometry.style_dim if geometry.classes else 0
        self.latent_dim = geometry.latent_dim
        self.embed = Linear(geometry.classes, style) if geometry.classes else None
        sizes = [geometry.latent_dim + embedded] + [style] * geometry.layers
        self.layers = nn.ModuleList([Linear(a, b, rate=0.01) for a, b in pairwise(sizes)])

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Rows are z, and behind it the class as a row of numbers, one of them 1 (any mixture is drawn too)."""
        with torch.autocast(z.device.type, enabled=False):  # it runs seldom, and everything hangs on it
            x, label = z.float().split([self.latent_dim, z.shape[1] - self.latent_dim], dim=1)
            x = _unit(x)
            if self.embed is not None:
                x = torch.cat([x, _unit(self.embed(label))], dim=1)
            for layer in self.layers:
                x = activate(layer(x))
            return x


def _unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class Layer(nn.Module):
    """sqrt(2) LeakyReLU_.2(d_o (W * (s x)) + strength noise + bias), clamped; s = A(w), d_o = 1 / |s_i W_oik|.

    Modulation scales the channels that come in, demodulation those that come out, so that the whole batch shares one
    convolution; the gain sqrt(2) is multiplied into d, noise and bias, as LeakyReLU(a x) = a LeakyReLU(x).
    """

    noise: Tensor

    def __init__(self, inside: int, outside: int, side: int, up: bool, geometry: Geometry) -> None:
        super().__init__()
        self.style = Linear(geometry.style_dim, inside, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outside, inside, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outside))
        self.up, self.clamp = up, geometry.clamp
        if geometry.noisy:
            self.register_buffer("noise", torch.randn(side, side))
            self.strength = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Float[Tensor, "n i h w"],
        w: Float[Tensor, "n e"],
        noise: Float[Tensor, "*m k l"] | None,
        window: tuple[int, int],
        first: int,
    ) -> Float[Tensor, "n o k l"]:
        """Features within a window; x begins at pixel `first`, for a layer that doubles of the doubled features."""
        with torch.autocast(x.device.type, enabled=False):
            style: Tensor = self.style(w.float())
            weight: Tensor = self.weight
            if x.dtype == torch.float16:  # nothing may leave float16's range; demodulation undoes both
                weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel()))
                style = style / style.abs().amax(dim=1, keepdim=True)
            power = style.square() @ weight.square().sum(dim=(2, 3)).T
            scale = (ROOT * torch.rsqrt(power + 1e-8))[:, :, None, None]
        x = x * style[:, :, None, None].to(x.dtype)
        if self.up:
            x = blur(F.conv_transpose2d(x, weight.to(x.dtype).transpose(0, 1), stride=2), 1, 4.0)
        else:
            x = F.conv2d(x, weight.to(x.dtype), padding=1)
        x = torch.addcmul((ROOT * self.bias)[:, None, None].to(x.dtype), cut(x, window, first), scale.to(x.dtype))
        if noise is not None:
            x = x + (ROOT * self.strength * noise).to(x.dtype)
        x = F.leaky_relu(x, SLOPE)
        return x.clamp(-self.clamp, self.clamp) if self.clamp else x


class Paint(nn.Module):
    """Features to colours: a modulated convolution of 1 x 1 that is not demodulated. W s is a small matrix an image."""

    def __init__(self, inside: int, geometry: Geometry) -> None:
        super().__init__()
        self.style = Linear(geometry.style_dim, inside, bias=1.0)
        self.weight = nn.Parameter(torch.randn(geometry.colours, inside))
        self.bias = nn.Parameter(torch.zeros(geometry.colours))
        self.gain, self.clamp = 1 / math.sqrt(inside), geometry.clamp

    def forward(self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n e"]) -> Float[Tensor, "n c h w"]:
        """What is added to the image so far."""
        with torch.autocast(x.device.type, enabled=False):
            weight = (self.weight * (self.gain * self.style(w.float()))[:, None]).to(x.dtype)
            n, _, height, width = x.shape
            pixels = x.permute(0, 2, 3, 1).reshape(n, height * width, -1)  # a view, channels last as x is
            image = torch.baddbmm(self.bias.to(x.dtype)[None, None], pixels, weight.transpose(1, 2))
            image = image.transpose(1, 2).reshape(n, -1, height, width)
            return (image.clamp(-self.clamp, self.clamp) if self.clamp else image).float()


class Block(nn.Module):
    """Doubles the features (but for the first block), convolves them, and adds what they paint to the image so far."""

    def __init__(self, inside: int, outside: int, side: int, first: bool, half: bool, geometry: Geometry) -> None:
        super().__init__()
        self.grow = None if first else Layer(inside, outside, side, True, geometry)
        self.conv = Layer(outside, outside, side, False, geometry)
        self.paint = Paint(outside, geometry)
        self.side, self.halved = side, half


class Generator(nn.Module):
    """z -> w -> a learned constant, grown from 4 x 4 by blocks that are each told w; the middle of the image.

    Layer l of 2 * blocks hears w_l: 0 the first convolution, then for block k 2k - 1 grow, 2k conv, 2k + 1 paint, which
    is also the next block's grow.

    Args:
        geometry: Its sizes.
        crop: Side of the square in the image's middle that is drawn; 0 is all of it.
        noise: What is added to the features: the images that came with the weights (const), or nothing; `random` draws
            new ones at every call, from torch's global generator.
        half: Run the blocks that were trained in float16 in float16, as published.

    Every tensor is in the layout (n, c, h, w), channels last in memory.
    """

    centre: Tensor

    def __init__(self, geometry: Geometry, crop: int = 0, noise: NoiseKind = "const", half: bool = False) -> None:
        super().__init__()
        sides = geometry.sides
        self.geometry, self.colours, self.noise = geometry, geometry.colours, noise
        self.windows = windows(sides, crop or geometry.resolution)
        self.mapping = Mapping(geometry)
        self.constant = nn.Parameter(torch.randn(geometry.channels(4), 4, 4))
        first_half = max(geometry.resolution * 2 // 2**geometry.half, 8) if half else 2 * geometry.resolution
        self.grown = nn.ModuleList(
            [
                Block(geometry.channels(max(side // 2, 4)), geometry.channels(side), side, side == 4, own, geometry)
                for side, own in ((side, side >= first_half) for side in sides)
            ]
        )
        self.register_buffer("centre", torch.zeros(geometry.style_dim))

    @property
    def layers(self) -> int:
        """How many layers hear a w."""
        return 2 * len(self.grown)

    def same(self, w: Float[Tensor, "n e"]) -> Float[Tensor, "n l e"]:
        """One w for all layers."""
        return w[:, None].expand(-1, self.layers, -1)

    def skip_size(self, block: int) -> int:
        """How many numbers of the state before a block are the image so far."""
        begin, end = self.windows[block - 1].outside
        return self.colours * (end - begin) ** 2

    def start(self, styles: Float[Tensor, "n l e"]) -> Float[Tensor, "n f"]:
        """The state before block 1: features and the image so far, flattened."""
        return self.advance(styles, torch.zeros(len(styles), 0, device=styles.device), 0)

    def advance(self, styles: Float[Tensor, "n l e"], state: Float[Tensor, "n f"], block: int) -> Float[Tensor, "n g"]:
        """The state after a block."""
        x, image = self._step(styles, *self._opened(state, block), block)
        return torch.cat([x.float().flatten(1), image.flatten(1)], dim=1)

    def finish(
        self, styles: Float[Tensor, "n l e"], state: Float[Tensor, "n f"], block: int
    ) -> Float[Tensor, "n c h w"]:
        """The drawn part of the image, about in [-1, 1], of the state before block `block`."""
        x, image = self._opened(state, block)
        for level in range(block, len(self.grown)):
            x, image = self._step(styles, x, image, level)
        assert image is not None
        return image

    def synthesise(self, styles: Float[Tensor, "n l e"]) -> Float[Tensor, "n c h w"]:
        """The drawn part of the image, about in [-1, 1]."""
        return self.finish(styles, torch.zeros(len(styles), 0, device=styles.device), 0)

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """The drawn part of the image of z, without truncation; see `Mapping` for the rows of a conditional one."""
        return self.synthesise(self.same(self.mapping(z)))

    def _opened(self, state: Tensor, block: int) -> tuple[Tensor | None, Tensor | None]:
        if block == 0:
            return None, None
        begin, end = self.windows[block - 1].outside
        x, image = state.split([state.shape[1] - self.skip_size(block), self.skip_size(block)], dim=1)
        x, image = (part.reshape(len(part), -1, end - begin, end - begin) for part in (x, image))
        return x.contiguous(memory_format=torch.channels_last), image

    def _step(self, styles: Tensor, x: Tensor | None, image: Tensor | None, level: int) -> tuple[Tensor, Tensor]:
        block, window = self.grown[level], self.windows[level]
        assert isinstance(block, Block) and isinstance(block.conv, Layer)
        w = [styles[:, max(0, 2 * level - 1 + place)] for place in range(3)]
        if x is None:
            x = self.constant.expand(len(styles), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(styles.device.type, enabled=False) if block.halved else nullcontext():
            x, begin = x.half() if block.halved else x, 0
            if isinstance(block.grow, Layer):
                noise = self._noise(block.grow, window.grown, len(x))
                x, begin = block.grow(x, w[0], noise, window.grown, 2 * window.inside[0]), window.grown[0]
            x = block.conv(x, w[1], self._noise(block.conv, window.outside, len(x)), window.outside, begin)
            painted = block.paint(x, w[2])
        if image is not None:
            painted = painted + cut(doubled(image), window.outside, 2 * window.inside[0])
        return x, painted

    def _noise(self, layer: Layer, window: tuple[int, int], count: int) -> Tensor | None:
        if not self.geometry.noisy or self.noise == "none":
            return None
        if self.noise == "random":
            side = window[1] - window[0]
            return torch.randn(count, 1, side, side, device=layer.noise.device)
        return layer.noise[window[0] : window[1], window[0] : window[1]]
