"""Networks of the priors that denoise: ADM's U-Net, and the best linear prediction from eigenfaces.

References:
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, NeurIPS 2021), the network
    | https://arxiv.org/abs/2105.05233
"""

import math

import torch
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.runtime.errors import UserError

__all__ = ["Attention", "Eigenspace", "ResBlock", "UNet"]


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv, then GroupNorm scaled and shifted by the embedding, SiLU, conv (zero at the start), + x."""

    def __init__(self, inside: int, outside: int, embedding: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(math.gcd(32, inside), inside)
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * outside)
        self.second_norm = nn.GroupNorm(math.gcd(32, outside), outside)
        self.second = zeroed(nn.Conv2d(outside, outside, 3, padding=1))
        self.skip = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Float[Tensor, "n c h w"], embedding: Float[Tensor, "n e"]) -> Float[Tensor, "n c2 h w"]:
        """x + f(x, embedding)."""
        out = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.embed(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        out = self.second_norm(out) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(out))


class Attention(nn.Module):
    """x + projection(softmax(q k' / sqrt(d)) v) over all places of the map; the projection is zero at the start."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels)
        self.mix = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Every place looks at every other."""
        parts = self.mix(self.norm(x)).flatten(2).reshape(len(x), 3, self.heads, -1, x.shape[2] * x.shape[3])
        q, k, v = parts.transpose(3, 4).unbind(dim=1)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.project(seen.reshape(x.shape))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that starts as 0, so that its block starts as the identity."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class UNet(nn.Module):
    """ADM's network: residual blocks down, a middle with attention, residual blocks up with skips, 0 at the start.

    Args:
        image_shape: (channels, height, width).
        num_classes: Identities; one more embedding stands for nobody.
        width: Channels of the first level.
        multipliers: Channels of each level, in widths; each level halves the side.
        blocks: Residual blocks a level.
        attention: Sides of feature maps that get attention (the middle always does).
        heads: Of the attention.
        patch: The network sees squares of patch x patch pixels as one place with more channels; 1 is the paper's.

    Raises:
        UserError: If the side cannot be cut and halved that often.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, across = image_shape
        finest = patch * 2 ** (len(multipliers) - 1)
        if height % finest or across % finest:
            raise UserError(
                f"images of {height} x {across} cannot be cut into patches of {patch} and halved "
                f"{len(multipliers) - 1} times; their sides must be multiples of {finest}"
            )
        self.width, self.patch = width, patch
        embedding = 4 * width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(num_classes + 1, embedding)
        self.enter = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        side, inside, skips = height // patch, width, [width]

        def stage(into: int, outside: int) -> nn.ModuleList:
            extra = [Attention(outside, heads)] if side in attention else []
            return nn.ModuleList([ResBlock(into, outside, embedding), *extra])

        for number, factor in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(stage(inside, factor * width))
                inside = factor * width
                skips.append(inside)
            if number + 1 < len(multipliers):
                self.down.append(nn.ModuleList([nn.Conv2d(inside, inside, 3, stride=2, padding=1)]))
                skips.append(inside)
                side //= 2
        self.middle = nn.ModuleList(
            [ResBlock(inside, inside, embedding), Attention(inside, heads), ResBlock(inside, inside, embedding)]
        )
        for number, factor in reversed(list(enumerate(multipliers))):
            for place in range(blocks + 1):
                layers = stage(inside + skips.pop(), factor * width)
                inside = factor * width
                if place == blocks and number > 0:
                    layers.extend([nn.Upsample(scale_factor=2.0), nn.Conv2d(inside, inside, 3, padding=1)])
                    side *= 2
                self.up.append(layers)
        self.leave = nn.Sequential(
            nn.GroupNorm(math.gcd(32, inside), inside),
            nn.SiLU(),
            zeroed(nn.Conv2d(inside, channels * patch**2, 3, padding=1)),
        )

    def forward(
        self, x: Float[Tensor, "n c h w"], t: Real[Tensor, " n"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """A field of the images' shape; exactly 0 before training."""
        embedding = self.time(waves(t, self.width)) + self.label(y)
        out = self.enter(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = [out]

        def through(stage: nn.ModuleList, out: Tensor) -> Tensor:
            for layer in stage:
                out = layer(out, embedding) if isinstance(layer, ResBlock) else layer(out)
            return out

        for stage in self.down:
            out = through(stage, out)  # type: ignore[arg-type]
            skips.append(out)
        out = through(self.middle, out)
        for stage in self.up:
            out = through(stage, torch.cat([out, skips.pop()], dim=1))  # type: ignore[arg-type]
        return F.pixel_shuffle(self.leave(out), self.patch).float()


def waves(t: Real[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """cos and sin of t at width / 2 frequencies, from 1 down to 1 / 10000. Source: Transformer, as in DDPM."""
    rate = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = t[:, None].float() * rate
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Eigenspace(nn.Module):
    """The best prediction of noise or image, were each identity's images Gaussian: N(m_y, U diag(l) U' + r (I - U U')).

    eps = sqrt(1 - abar) S^-1 (x_t - sqrt(abar) m_y), S = abar Cov + (1 - abar) I, in closed form. All identities share
    the covariance; the last mean is that of nobody in particular.
    """

    def __init__(self, pixels: int, num_classes: int, count: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes + 1, pixels))
        self.register_buffer("faces", torch.zeros(pixels, count))
        self.register_buffer("spread", torch.ones(count))
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n d"], shown: Int64[Tensor, "k top"]) -> None:
        """Means of the identities' images `x[shown]` and of all of them; eigenvectors of the covariance of all.

        `rest` is the mean of the eigenvalues that are left out.
        """
        own = torch.stack([x[places].mean(dim=0) for places in shown])
        mean = own.mean(dim=0)
        centred = (x[shown.unique()] - mean).double()
        n, pixels = centred.shape
        count = self.get_buffer("faces").shape[1]
        # n x n is smaller than d x d: with X X' / n = V diag(l) V', the eigenvectors of the covariance are X' V.
        values, vectors = torch.linalg.eigh(centred @ centred.T / n)
        values, vectors = values.flip(0)[:count].clamp(min=1e-12), vectors.flip(1)[:, :count]
        total = centred.square().sum() / n
        self.get_buffer("means").copy_(torch.cat([own, mean[None]]))
        self.get_buffer("faces").copy_((centred.T @ vectors) / (values * n).sqrt())
        self.get_buffer("spread").copy_(values)
        self.get_buffer("rest").copy_(((total - values.sum()) / (pixels - count)).clamp(min=1e-6))

    def forward(
        self, x: Float[Tensor, "n c h w"], level: Float[Tensor, "n 1 1 1"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """eps for images with abar = level.

        In float32: at the highest levels the sampler divides its rounding by sqrt(abar) = .006.
        """
        with torch.autocast(x.device.type, enabled=False):
            faces, a = self.get_buffer("faces"), level[:, :, 0, 0]
            away = x.flatten(1) - a.sqrt() * self.get_buffer("means")[y]
            rest = 1 / (a * self.get_buffer("rest") + 1 - a)
            inside = (1 / (a * self.get_buffer("spread") + 1 - a) - rest) * (away @ faces)
            return ((1 - a).sqrt() * (rest * away + inside @ faces.T)).reshape(x.shape)

    def clean(
        self, x: Float[Tensor, "n c h w"], t: Float[Tensor, "n 1 1 1"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """E[x_1 | x_t] for x_t = (1 - t) x_0 + t x_1, x_0 ~ N(0, I), t < 1, in float32.

        m_y + t Cov (t^2 Cov + (1 - t)^2 I)^-1 (x_t - t m_y).
        """
        with torch.autocast(x.device.type, enabled=False):
            faces, mean, t = self.get_buffer("faces"), self.get_buffer("means")[y], t[:, :, 0, 0]
            away = x.flatten(1) - t * mean
            spread, rest = (
                t * self.get_buffer(part) / (t.square() * self.get_buffer(part) + (1 - t).square())
                for part in ("spread", "rest")
            )
            inside = (spread - rest) * (away @ faces)
            return (mean + rest * away + inside @ faces.T).reshape(x.shape)
