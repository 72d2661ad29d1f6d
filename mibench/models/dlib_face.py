"""dlib's face recogniser: aligned faces at 150 px to 128 numbers; photographs of one person lie less than .6 apart.

A residual network of 29 convolutions. With con an affine convolution (its batch norm folded to gamma x + beta),

    x_0 = maxpool_3/2(relu(con_7/2(z))),         z = (255 x - (122.782, 117.001, 104.298)) / 256
    x_i = relu(con_3(relu(con_3(x_i-1))) + skip(x_i-1)),        f = W^T mean_hw(x_14)

where skip is the identity, or a 2 x 2 mean where the first convolution has stride 2. What is added is padded with zeros
below, on the right and in channels to the larger of the two sizes. Which layers there are, and how wide, the file says.

The file is read without running anything of it: dlib writes an integer as one byte, its length (plus 128 if negative),
then its bytes, low ones first; a real number as two integers, m 2^e; a text as its length and bytes; a Boolean as '0'
or '1'; a tensor as the integer 2, four sizes and 32-bit little-endian floats. A network is the loss, the version
numbers of all layers from the last to the first, the input, then the layers from the first to the last.

References:
    | Dlib-ml: A Machine Learning Toolkit (King, 2009)
    | https://www.jmlr.org/papers/v10/king09a.html
    | the network, its training set and its accuracy on LFW (99.38%), in the public domain (CC0)
    | https://github.com/davisking/dlib-models
    | Deep Residual Learning for Image Recognition (He et al., 2015)
    | https://arxiv.org/abs/1512.03385
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.models.base import Classifier, Prepare
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_bytes

__all__ = ["DlibTrunk", "Layer", "Network", "build", "read"]

_ONLY_INPUT, _ONLY_LOSS = "input_rgb_image_sized", "loss_metric_2"
_BLOCK = "(?:con affine relu con affine (?:avg_pool )?add_prev relu )"
_GRAMMAR = re.compile(f"con affine relu max_pool {_BLOCK}+avg_pool fc ")


@dataclass(frozen=True)
class Layer:
    """One layer as it stands in the file.

    Args:
        kind: con, affine, relu, max_pool, avg_pool, add_prev or fc.
        window: Height, width, strides and paddings (down, right each) of a convolution or a pool; empty for others.
        weights: Weights of a convolution or of fc, gamma of affine; None for others.
        bias: Bias of a convolution, beta of affine; None for others.
    """

    kind: str
    window: tuple[int, ...] = ()
    weights: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Network:
    """A network as it stands in the file.

    Args:
        mean: Of red, green and blue, in [0, 255]; pixels are divided by 256 after it is taken away.
        size: Height and width of its images.
        layers: From the first to the last.
    """

    mean: tuple[float, float, float]
    size: tuple[int, int]
    layers: tuple[Layer, ...]


class _Damaged(Exception):
    """The bytes are not what dlib writes for such a network."""


class _Reader:
    """dlib's serialisation, from the first byte on."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise _Damaged(f"it ends at byte {len(self.data)}, in the middle of a value")
        self.at += size
        return self.data[self.at - size : self.at]

    def whole(self) -> int:
        head = self.take(1)[0]
        if head & 0x70 or not 1 <= head & 0x0F <= 8:
            raise _Damaged(f"byte {self.at - 1} is {head}, no length of an integer")
        number = int.from_bytes(self.take(head & 0x0F), "little")
        return -number if head & 0x80 else number

    def real(self) -> float:
        mantissa, exponent = self.whole(), self.whole()
        if abs(exponent) > 1000:  # how it marks infinity and NaN
            raise _Damaged(f"the number before byte {self.at} is not finite")
        return math.ldexp(mantissa, exponent)

    def text(self, size: int | None = None) -> str:
        return self.take(self.whole() if size is None else size).decode("latin-1")

    def flags(self, count: int) -> None:
        if set(given := self.take(count)) - set(b"01"):
            raise _Damaged(f"{given!r} before byte {self.at} are no Boolean values")

    def sizes(self, version: int) -> tuple[int, ...]:
        if (known := self.whole()) != version:
            raise _Damaged(f"a tensor before byte {self.at} is of version {known}, not {version}")
        return tuple(self.whole() for _ in range(4))

    def tensor(self) -> Float[Tensor, " n"]:
        count = math.prod(self.sizes(2))
        if count == 0:
            return torch.empty(0)
        data = torch.frombuffer(bytearray(self.take(4 * count)), dtype=torch.float32)
        if not data.isfinite().all():
            raise _Damaged(f"the tensor before byte {self.at} holds NaN or infinity")
        return data

    def layer(self) -> Layer:
        """What a layer says of itself, without the state of training that follows."""
        name = self.text()
        kind, _, version = name.rpartition("_")
        if name in ("con_4", "con_5", "con_6"):
            params, _, window = self.tensor(), self.whole(), tuple(self.whole() for _ in range(6))
            shape, biases = self.sizes(1), self.sizes(1)
            for _ in range(4):
                self.real()
            self.flags(int(version) - 4)
            count = math.prod(shape)
            if params.numel() != count + math.prod(biases):
                raise _Damaged(
                    f"the convolution before byte {self.at} holds {params.numel()} numbers, not {count}+bias"
                )
            return Layer(kind, window, params[:count].view(shape), params[count:])
        if name in ("affine_", "affine_2"):
            params, (_, channels, *_), _, _ = self.tensor(), self.sizes(1), self.sizes(1), self.whole()
            self.flags(name == "affine_2")
            if params.numel() != 2 * channels:
                raise _Damaged(f"the affine layer before byte {self.at} holds {params.numel()} numbers")
            return Layer(kind, (), params[:channels], params[channels:])
        if name in ("max_pool_2", "avg_pool_2"):
            return Layer(kind, tuple(self.whole() for _ in range(6)))
        if name in ("fc_2", "fc_3"):
            outputs, inputs, params = self.whole(), self.whole(), self.tensor()
            self.sizes(1), self.sizes(1), self.whole()
            for _ in range(4):
                self.real()
            self.flags(int(version) - 2)
            if params.numel() != inputs * outputs:
                raise _Damaged(f"its last layer holds {params.numel()} numbers, not {inputs} x {outputs}")
            return Layer(kind, (), params.view(inputs, outputs))
        if name in ("relu_", "relu_2"):
            self.flags(name == "relu_2")
            return Layer(kind)
        if name == "add_prev_":
            return Layer(kind)
        raise _Damaged(f"it has a layer '{name[:30]}', which a face recogniser has not")

    def network(self) -> Network:
        self.whole()
        if (loss := self.text()) != _ONLY_LOSS:
            raise _Damaged(f"its loss is '{loss[:30]}', not {_ONLY_LOSS}")
        self.real(), self.real()
        versions = []
        # Tags have version 1, layers 2 or 3, the last first; the length of the input's name ends the list.
        while (number := self.whole()) <= 3:
            versions += [number] * (number >= 2)
        if (name := self.text(number)) != _ONLY_INPUT:
            raise _Damaged(f"its input is '{name[:30]}', not {_ONLY_INPUT}")
        mean, size, layers = (self.real(), self.real(), self.real()), (self.whole(), self.whole()), []
        for place, version in enumerate(reversed(versions)):
            layers.append(self.layer())
            self.flags(3)
            for _ in range(3):  # gradients and the last output, empty
                self.tensor()
            if place == 0 and version == 3:
                self.whole()  # how often an image is repeated
        if self.at < len(self.data):
            raise _Damaged(f"{len(self.data) - self.at} bytes follow its last layer")
        return Network(mean, size, tuple(layers))


def read(path: Path) -> Network:
    """The network in a .dat file of dlib.

    Raises:
        UserError: If the file cannot be read, is truncated, or holds anything but a face recogniser.
    """
    try:
        network = _Reader(read_bytes(path)).network()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except _Damaged as error:
        raise UserError(
            f"{path} is not dlib's face recogniser: {error}; it wants dlib_face_recognition_resnet_model_v1.dat"
        ) from error
    kinds = "".join(f"{layer.kind} " for layer in network.layers)
    if not _GRAMMAR.fullmatch(kinds) or network.size[0] != network.size[1]:
        raise UserError(
            f"{path} holds another network than dlib's face recogniser ({len(network.layers)} layers, images of "
            f"{network.size}); it wants dlib_face_recognition_resnet_model_v1.dat"
        )
    return network


class DlibTrunk(nn.Module):
    """Prepared images to features: the layers of a file, each affine layer folded into the convolution before it."""

    weight: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        pairs = zip(network.layers, network.layers[1:], strict=False)
        convolutions = [_convolution(one, after) for one, after in pairs if one.kind == "con"]
        self.stem = convolutions[0]
        self.convolutions = nn.ModuleList(convolutions[1:])
        self.pool = next(layer.window for layer in network.layers if layer.kind == "max_pool")
        halves = " ".join(layer.kind for layer in network.layers).split("add_prev")[:-1]
        self.halves = ["avg_pool" in block for block in halves]
        weight = network.layers[-1].weights
        assert weight is not None
        self.register_buffer("weight", weight)

    def forward(self, z: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """f of the module's equation."""
        height, width, down, right, *padding = self.pool
        x = F.max_pool2d(F.relu(self.stem(z)), (height, width), (down, right), tuple(padding))
        for block, halve in enumerate(self.halves):
            inner = self.convolutions[2 * block + 1](F.relu(self.convolutions[2 * block](x)))
            skip = F.avg_pool2d(x, 2) if halve else x
            larger = [max(sizes) for sizes in zip(inner.shape[1:], skip.shape[1:], strict=True)]
            x = F.relu(_padded(inner, larger) + _padded(skip, larger))
        return x.mean(dim=(2, 3)) @ self.weight


def _padded(x: Float[Tensor, "n c h w"], larger: list[int]) -> Float[Tensor, "n c2 h2 w2"]:
    """Zeros below, on the right and in further channels, up to these sizes."""
    c, h, w = (want - have for want, have in zip(larger, x.shape[1:], strict=True))
    return F.pad(x, (0, w, 0, h, 0, c)) if c or h or w else x


def _convolution(con: Layer, affine: Layer) -> nn.Conv2d:
    """gamma (W x + b) + beta as one convolution."""
    assert con.weights is not None and con.bias is not None
    assert affine.weights is not None and affine.bias is not None
    outputs, inputs, height, width = con.weights.shape
    _, _, down, right, below, beside = con.window
    layer = nn.Conv2d(inputs, outputs, (height, width), (down, right), (below, beside))
    layer.weight.data = con.weights * affine.weights.view(-1, 1, 1, 1)
    layer.bias.data = con.bias * affine.weights + affine.bias  # type: ignore[union-attr]
    return layer


def build(network: Network, image_shape: tuple[int, int, int]) -> Classifier:
    """The network for images in [0, 1] of any size, frozen; its features are the descriptors, and so are its logits.

    Args:
        network: From a file.
        image_shape: (channels, height, width) of the images that come in; grey ones are repeated.
    """
    mean = [value / 255 for value in network.mean]
    prepare = Prepare(image_shape, mean, [256 / 255] * 3, network.size[0])
    trunk = DlibTrunk(network)
    return Classifier(prepare, trunk, nn.Identity(), trunk.weight.shape[1]).requires_grad_(False).eval()
