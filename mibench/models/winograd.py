"""Winograd's convolution, F(2x2, 3x3): 3x3 convolutions with 16 multiplications where the definition needs 36.

Each 4x4 patch d of the padded image (they overlap by 2) gives 2x2 outputs, A'[(G g G') * (B'd B)]A, * elementwise:
B'd = (d0 - d2, d1 + d2, d2 - d1, d1 - d3), G g = (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2),
A'm = (m0 + m1 + m2, m1 - m2 - m3). Summed over channels the products are 16 matrix products. The kernels' transform is
computed once, for the image's gradient too: that is the convolution with the kernels turned around.

References:
    | Fast Algorithms for Convolutional Neural Networks (Lavin and Gray, 2015)
    | https://arxiv.org/abs/1509.09308, section 4.1
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.runtime.engine import Engine

__all__ = ["Winograd", "winograd"]

WIDE = 256
"""Channels from which the multiplications saved outweigh the additions spent (measured on AVX-512)."""

PIECE = 2**22
"""Transformed numbers at once: more would not stay in a CPU's cache."""


def winograd(model: nn.Module, engine: Engine) -> nn.Module:
    """Swap wide 3x3 convolutions of a frozen model, in place, where that is faster: on CPUs without matrix units.

    A GPU's library chooses such algorithms by itself, and AMX multiplies so fast that the additions would cost more.
    Nothing but rounding changes. Convolutions that learn, or that someone watches, are left alone.
    """
    if engine.device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return model
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Conv2d and min(layer.in_channels, layer.out_channels) >= WIDE and _plain(layer):
            model.set_submodule(path, Winograd(layer, engine.precision == "bf16"))
    return model


def _plain(layer: nn.Conv2d) -> bool:
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    frozen = not any(part.requires_grad for part in layer.parameters())
    return frozen and not any(hooks) and geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


class Winograd(nn.Module):
    """A frozen 3x3 convolution of stride 1 and padding 1; images with an odd side go through the layer itself.

    Args:
        layer: The convolution.
        half: Multiply in bfloat16, as autocast would.
    """

    there: Tensor
    back: Tensor

    def __init__(self, layer: nn.Conv2d, half: bool) -> None:
        super().__init__()
        self.layer = layer
        precision = torch.bfloat16 if half else torch.float32
        kernels = layer.weight.detach()
        self.register_buffer("there", _kernels(kernels).to(precision), persistent=False)
        self.register_buffer("back", _kernels(kernels.flip(2, 3).transpose(0, 1)).to(precision), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        """As the layer does, up to rounding; channels last."""
        if x.shape[2] % 2 or x.shape[3] % 2:
            return self.layer(x)
        out: Tensor = _Convolution.apply(x.to(self.there.dtype), self.there, self.back, self.layer.bias)
        return out


class _Convolution(torch.autograd.Function):
    """Its backward is the same convolution with the other kernels, so that it can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(there, back)
        n, c, h, w = x.shape
        y = torch.empty((n, there.shape[2], h, w), dtype=x.dtype, memory_format=torch.channels_last)
        size = max(1, PIECE // (4 * c * h * w))
        for part, out in zip(x.split(size), y.split(size), strict=True):
            _convolve(part.permute(0, 2, 3, 1), there, bias, out.permute(0, 2, 3, 1))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        there, back = ctx.saved_tensors
        return _Convolution.apply(gradients[0], back, there, None), None, None, None


def _kernels(weight: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "16 c o"]:
    g = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], device=weight.device)
    return torch.einsum("ai,ocij,bj->abco", g, weight, g).flatten(0, 1).contiguous()


def _convolve(
    x: Float[Tensor, "n h w c"], kernels: Float[Tensor, "16 c o"], bias: Tensor | None, y: Float[Tensor, "n h w o"]
) -> None:
    """Write the convolution of x to y."""
    n, h, w, c = x.shape
    o = kernels.shape[2]
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    rows = x.new_empty(4, n, h // 2, w + 2, c)
    _patches([x[:, i : i + h - 1 : 2] for i in range(4)], rows)
    patches = x.new_empty(4, 4, n, h // 2, w // 2, c)
    _patches([rows[:, :, :, i : i + w - 1 : 2] for i in range(4)], patches.transpose(0, 1))
    products = torch.bmm(patches.view(16, -1, c), kernels).view(4, 4, n, h // 2, w // 2, o)
    if bias is not None:
        products[1, 1] += bias  # the one product that each of the four outputs counts once, with a plus
    pairs = y.view(n, h // 2, 2, w // 2, 2, o)
    above, below = (products[1] + products[2]).add_(products[0]), (products[1] - products[2]).sub_(products[3])
    for row, m in enumerate((above, below)):
        torch.add(m[1] + m[2], m[0], out=pairs[:, :, row, :, 0])
        torch.sub(m[1] - m[2], m[3], out=pairs[:, :, row, :, 1])


def _patches(d: list[Tensor], out: Tensor) -> None:
    """B'd along one axis."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])
