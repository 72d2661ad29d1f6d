"""dlib's face recogniser: a small network in the true file format against plain torch, refusals, and the real one."""

import math
import re
import struct
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mibench.models import dlib_face
from mibench.runtime.errors import UserError

# --- dlib's serialisation, written ----------------------------------------------------------------------------------


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


@pytest.fixture
def small() -> Small:
    return Small()


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "net.dat"
    path.write_bytes(data)
    return path


# --- a small network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [31, 27])  # the mean's map is the smaller of the two, or the larger
def test_a_file_gives_the_network_that_plain_torch_computes(tmp_path: Path, size: int) -> None:
    small = Small(1, size)
    network = dlib_face.build(dlib_face.read(saved(tmp_path, small.bytes())), (3, size, size))
    x = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(network.features(x), small.features(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(network(x), network.features(x)) and not any(p.requires_grad for p in network.parameters())


def test_gradients_reach_the_image_as_in_plain_torch(tmp_path: Path, small: Small) -> None:
    network = dlib_face.build(dlib_face.read(saved(tmp_path, small.bytes())), (3, 31, 31))
    x = torch.rand(2, 3, 31, 31, generator=torch.Generator().manual_seed(3)).requires_grad_()
    own, plain = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (network.features, small.features))
    assert float(own.abs().max()) > 0
    torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-5)


def test_grey_images_are_repeated_and_other_sizes_resized(tmp_path: Path, small: Small) -> None:
    read = dlib_face.read(saved(tmp_path, small.bytes()))
    grey = torch.rand(2, 1, 31, 31, generator=torch.Generator().manual_seed(4))
    colour = dlib_face.build(read, (3, 31, 31)).features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(dlib_face.build(read, (1, 31, 31)).features(grey), colour)
    larger = F.interpolate(grey, (62, 62), mode="bilinear", antialias=True)
    again = F.interpolate(larger, (31, 31), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    wanted = dlib_face.build(read, (3, 31, 31)).features(again)
    torch.testing.assert_close(dlib_face.build(read, (1, 62, 62)).features(larger), wanted, rtol=1e-4, atol=1e-5)


def test_newer_versions_of_layers_hold_the_same_network(tmp_path: Path, small: Small) -> None:
    layers = small.layers()
    newer = list(layers)
    w, b, _, _, s, p = small.parts[0]
    newer[0] = convolution(w, b, s, p, version=6)
    newer[1] = layers[1].replace(text("affine_"), text("affine_2")) + b"0"
    newer[2] = text("relu_2") + b"0"
    newer[-1] = layers[-1].replace(text("fc_2"), text("fc_3")) + b"1"
    old, new = (dlib_face.read(saved(tmp_path, small.bytes(layers=one))) for one in (layers, newer))
    x = torch.rand(2, 3, 31, 31)
    one, two = (dlib_face.build(network, (3, 31, 31)).features(x) for network in (old, new))
    assert torch.equal(one, two)


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        dlib_face.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, small: Small) -> None:
    whole_file = small.bytes()
    for end in range(0, len(whole_file), 211):
        assert "not dlib's face recogniser" in refused(saved(tmp_path, whole_file[:end]))
    assert "bytes follow" in refused(saved(tmp_path, whole_file + b"\x01\x00"))


def test_other_networks_and_other_files_are_refused(tmp_path: Path, small: Small) -> None:
    layers = small.layers()
    assert "its loss is 'loss_mmod'" in refused(saved(tmp_path, small.bytes(loss="loss_mmod")))
    assert "'bn_con2'" in refused(saved(tmp_path, small.bytes(layers=[layers[0], text("bn_con2"), *layers[2:]])))
    relu = text("relu_")
    assert "another network" in refused(saved(tmp_path, small.bytes(layers=[*layers[:-1], relu, layers[-1]])))
    assert "no length of an integer" in refused(saved(tmp_path, b"PK\x03\x04" + bytes(100)))
    assert "cannot be read" in refused(tmp_path / "nowhere.dat")


def test_numbers_that_are_none_are_refused(tmp_path: Path, small: Small) -> None:
    small.parts[0][1][0] = torch.nan
    assert "NaN or infinity" in refused(saved(tmp_path, small.bytes()))


# --- the real one ---------------------------------------------------------------------------------------------------


def test_the_published_network_answers_what_dlib_answers() -> None:
    # Golden: face_recognition_model_v1.compute_face_descriptor of dlib 20.0.1 on this drawn image.
    try:
        files = distribution("face-recognition-models").files or []
    except PackageNotFoundError:
        pytest.skip("the extra `faces` is not installed")
    path = next(Path(str(f.locate())) for f in files if f.name == "dlib_face_recognition_resnet_model_v1.dat")
    network = dlib_face.build(dlib_face.read(path), (3, 150, 150))
    y, x = torch.meshgrid(torch.arange(150), torch.arange(150), indexing="ij")
    drawn = torch.stack([x * 255 // 149, y * 255 // 149, (x + y) * 255 // 298])[None] / 255
    golden = torch.tensor(GOLDEN)
    told = network.features(drawn)[0]
    torch.testing.assert_close(told[: len(golden)], golden, rtol=0, atol=2e-6)
    assert told.shape == (128,) and float(told.norm()) == pytest.approx(1.3063282, abs=1e-5)


GOLDEN = [-0.05097774, 0.12098702, 0.06010887, 0.01423589, -0.05570291, -0.0460848]
