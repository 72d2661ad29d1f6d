"""Small face recognisers in the file format of dlib, written here, and what they compute, in plain torch."""

import math
import struct

import torch
from torch import Tensor
from torch.nn import functional as F


def whole(number: int) -> bytes:
    size = max(1, (abs(number).bit_length() + 7) // 8)
    return bytes([size | (0x80 if number < 0 else 0)]) + abs(number).to_bytes(size, "little")


def real(number: float) -> bytes:
    mantissa, exponent = math.frexp(number)
    return whole(int(mantissa * 2**53)) + whole(exponent - 53)


def text(words: str) -> bytes:
    return whole(len(words)) + words.encode()


def sizes(version: int, *shape: int) -> bytes:
    return b"".join(map(whole, (version, *shape)))


def tensor(values: Tensor | None = None) -> bytes:
    if values is None:
        return sizes(2, 0, 0, 0, 0)
    return sizes(2, len(values), 1, 1, 1) + struct.pack(f"<{len(values)}f", *values.tolist())


TRAINING = b"110" + 3 * tensor()
"""What follows each layer: three flags, and tensors that are empty once training is over."""


def convolution(weights: Tensor, bias: Tensor, stride: int, padding: int, version: int = 4) -> bytes:
    window = (len(weights), *weights.shape[2:], stride, stride, padding, padding)
    head = text(f"con_{version}") + tensor(torch.cat([weights.flatten(), bias])) + b"".join(map(whole, window))
    tail = sizes(1, *weights.shape) + sizes(1, 1, len(bias), 1, 1) + 4 * real(1.0)
    return head + tail + b"1" * (version - 4)


def affine(gamma: Tensor, beta: Tensor) -> bytes:
    shape = sizes(1, 1, len(gamma), 1, 1)
    return text("affine_") + tensor(torch.cat([gamma, beta])) + 2 * shape + whole(0)


def pool(kind: str, side: int, stride: int) -> bytes:
    return text(f"{kind}_pool_2") + b"".join(map(whole, (side, side, stride, stride, 0, 0)))


class Small:
    """Random weights of a stem, a block that keeps its size, and one that halves it and doubles the channels."""

    def __init__(self, seed: int = 0, size: int = 31) -> None:
        self.draw, self.size = torch.Generator().manual_seed(seed), size
        self.parts = [self.part(4, 3, 7, 2, 0)]
        self.parts += [self.part(4, 4, 3, 1, 1), self.part(4, 4, 3, 1, 1)]
        self.parts += [self.part(8, 4, 3, 2, 0), self.part(8, 8, 3, 1, 1)]
        self.last = torch.randn(8, 5, generator=self.draw)
        self.mean = (122.782, 117.001, 104.298)

    def part(self, out: int, into: int, side: int, stride: int, padding: int) -> tuple:
        weights = torch.randn(out, into, side, side, generator=self.draw) / math.sqrt(into * side * side)
        bias, gamma, beta = (torch.randn(out, generator=self.draw) for _ in range(3))
        return weights, bias, gamma, beta, stride, padding

    def layers(self) -> list[bytes]:
        made = [[convolution(w, b, s, p), affine(g, beta)] for w, b, g, beta, s, p in self.parts]
        stem, one, two, three, four = made
        relu, add = text("relu_") + b"", text("add_prev_")
        fc = text("fc_2") + whole(5) + whole(8) + tensor(self.last.flatten()) + 2 * sizes(1, 8, 5, 1, 1) + whole(1)
        blocks = [*one, relu, *two, add, relu, *three, relu, *four, pool("avg", 2, 2), add, relu]
        return [*stem, relu, pool("max", 3, 2), *blocks, pool("avg", 0, 1), fc + 4 * real(1.0)]

    def bytes(self, loss: str = "loss_metric_2", layers: list[bytes] | None = None) -> bytes:
        layers = self.layers() if layers is None else layers
        # Outermost first; two tags and a skip stand among the layers.
        versions = b"".join(map(whole, [*[2] * (len(layers) - 8), 1, 1, *[2] * 7, 1, 3]))
        entry = text("input_rgb_image_sized") + b"".join(map(real, self.mean)) + 2 * whole(self.size)
        told = [layer + TRAINING + (whole(1) if not place else b"") for place, layer in enumerate(layers)]
        return whole(1) + text(loss) + real(0.04) + real(0.6) + versions + entry + b"".join(told)

    def features(self, x: Tensor) -> Tensor:
        """The same network in plain torch, layer by layer, for images of its own size in [0, 1]."""

        def step(z: Tensor, place: int) -> Tensor:
            weights, bias, gamma, beta, stride, padding = self.parts[place]
            z = F.conv2d(z, weights, bias, stride, padding)
            return gamma[:, None, None] * z + beta[:, None, None]

        z = (255 * x - torch.tensor(self.mean)[:, None, None]) / 256
        z = F.max_pool2d(step(z, 0).relu(), 3, 2)
        z = (step(step(z, 1).relu(), 2) + z).relu()
        inner, skip = step(step(z, 3).relu(), 4), F.avg_pool2d(z, 2, 2)
        assert inner.shape != skip.shape
        both = torch.zeros(len(x), *(max(pair) for pair in zip(inner.shape[1:], skip.shape[1:], strict=True)))
        for part in (inner, skip):
            c, h, w = part.shape[1:]
            both[:, :c, :h, :w] += part
        return both.relu().mean(dim=(2, 3)) @ self.last
