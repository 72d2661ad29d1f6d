"""Checkpoints in the formats of the authors' repositories, with numbers made from names: no weight of theirs is here.

Names and shapes are facts of KEDMI's classify.py and evolve.py, and of BiDO/model.py. The networks of those
repositories, filled with these numbers, gave the golden outputs that the tests hold.
"""

import math
from collections.abc import Iterator
from zlib import crc32

import torch
from torch import Tensor

__all__ = ["bido", "facenet", "image", "ir", "vgg"]

Shapes = dict[str, tuple[int, ...]]
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions; 0 is a pooling."""


def numbers(count: int, key: str) -> Tensor:
    """Uniform in [0, 1), the same for the same name."""
    return torch.rand(count, generator=torch.Generator().manual_seed(crc32(key.encode())))


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """Weights of about unit gain, batch norms as after training."""
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        u = numbers(math.prod(shape), name).view(shape)
        if len(shape) > 1:
            value = (u - 0.5) * 5.0 / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("running_var") or (name.endswith("weight") and "running" not in name):
            value = 0.5 + u / 2
        else:
            value = (u - 0.5) / 5
        made[name] = value / 8 if name.endswith("res_layer.4.weight") else value  # sums of 50 units stay small
    return {
        name: value for key, own in made.items() for name, value in ((key, own), *_counter(key)) if value is not None
    }


def _counter(key: str) -> Iterator[tuple[str, Tensor]]:
    if key.endswith("running_var"):
        yield key.replace("running_var", "num_batches_tracked"), torch.tensor(7)


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def vgg(classes: int) -> dict[str, Tensor]:
    """VGG16 of KEDMI: `feature` is torchvision's list of layers."""
    return filled(_vgg([("feature", VGG16)], classes))


def bido(classes: int) -> dict[str, Tensor]:
    """VGG16 of BiDO: five blocks that end in a pooling."""
    ends = [place + 1 for place, width in enumerate(VGG16) if not width]
    blocks = [VGG16[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return filled(_vgg([(f"layer{place}", block) for place, block in enumerate(blocks, start=1)], classes))


def _vgg(blocks: list[tuple[str, tuple[int, ...]]], classes: int) -> Shapes:
    shapes: Shapes = {}
    inputs = 3
    for name, widths in blocks:
        place = 0
        for width in widths:
            if width:
                shapes |= {f"{name}.{place}.weight": (width, inputs, 3, 3), f"{name}.{place}.bias": (width,)}
                shapes |= _norm(f"{name}.{place + 1}", width)
                inputs = width
            place += 3 if width else 1
    return shapes | _norm("bn", 2048) | _linear("fc_layer", classes, 2048)


def ir(units: tuple[int, int, int, int], side: int, classes: int, inside: bool = False) -> dict[str, Tensor]:
    """FaceNet64 and IR152 of KEDMI; with `inside` the head is a part of `feature`, as in the evaluation model."""
    shapes: Shapes = {"feature.input_layer.0.weight": (64, 3, 3, 3)} | _norm("feature.input_layer.1", 64)
    shapes |= {"feature.input_layer.2.weight": (64,)}
    place, inputs = 0, 64
    for count, width in zip(units, (64, 128, 256, 512), strict=True):
        for _ in range(count):
            name = f"feature.body.{place}"
            if inputs != width:
                shapes |= {f"{name}.shortcut_layer.0.weight": (width, inputs, 1, 1)}
                shapes |= _norm(f"{name}.shortcut_layer.1", width)
            shapes |= _norm(f"{name}.res_layer.0", inputs)
            shapes |= {f"{name}.res_layer.1.weight": (width, inputs, 3, 3), f"{name}.res_layer.2.weight": (width,)}
            shapes |= {f"{name}.res_layer.3.weight": (width, width, 3, 3)} | _norm(f"{name}.res_layer.4", width)
            place, inputs = place + 1, width
    head = "feature.output_layer" if inside else "output_layer"
    shapes |= _norm(f"{head}.0", 512) | _linear(f"{head}.3", 512, 512 * side * side) | _norm(f"{head}.4", 512)
    return filled(shapes | _linear("fc_layer", classes, 512))


def facenet(classes: int) -> dict[str, Tensor]:
    """InceptionResnetV1 as facenet-pytorch saves it, a classifier."""
    from facenet_pytorch import InceptionResnetV1

    net = InceptionResnetV1(classify=True, num_classes=classes)
    return filled({name: tuple(value.shape) for name, value in net.state_dict().items() if value.ndim})


def image(side: int, count: int = 2) -> Tensor:
    """Pictures in [0, 1)."""
    return numbers(count * 3 * side * side, "image").view(count, 3, side, side)
