"""Files of thin StyleGAN2s as NVIDIA's code pickles them, to rehearse with and to test: of the published resolution,
with a few channels and weights in closed form.

A weight is a function of its name and place, so that golden images of the original implementations need no weights
beside them: `value` was put into the originals, by the names that they give their parameters.
"""

import pickle
import sys
import types
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "SIZES",
    "SOURCE",
    "Pickled",
    "Sizes",
    "discriminator",
    "generator",
    "named",
    "nvidia",
    "part",
    "taps",
    "value",
]

SOURCE = "raise SystemExit('the source in the pickle was executed')"
"""Stands where NVIDIA's files carry the source of their classes."""


class Sizes(NamedTuple):
    """How thin it is.

    Args:
        width: Of z and w.
        layers: Of the mapping network.
        base: Channels at side s are min(base / s, most).
        most: Most channels.
    """

    width: int = 8
    layers: int = 2
    base: int = 128
    most: int = 8

    def channels(self, side: int) -> int:
        """Of the features at this side."""
        return min(self.base // side, self.most)


SIZES = Sizes()


def value(name: str, *shape: int) -> Tensor:
    """sqrt(2) sin(.7 i^2 + c), c the name's checksum: about N(0, 1), scaled as a trained network's of this name."""
    place = torch.arange(int(np.prod(shape, dtype=int)), dtype=torch.float64)
    wave = (2**0.5 * torch.sin(0.7 * place.square() + zlib.crc32(name.encode()) % 1000)).float().reshape(shape)
    if name.endswith(("affine.bias", "modulation.bias")):
        return 1.0 + 0.1 * wave
    if name.endswith(("noise_strength", "noise.weight")):
        return 0.1 * wave
    mapping = "mapping.fc" in name or name.startswith("style.")
    return wave * (
        100.0 if mapping and name.endswith("weight") else 10.0 if mapping else 0.3 if "bias" in name else 1.0
    )


class Pickled:
    """An object as NVIDIA's `persistence` pickles it."""

    def __init__(self, kind: str, state: Mapping[str, Any]) -> None:
        self.kind, self.state = kind, dict(state)

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.kind, "state": self.state}
        return named("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,)


def named(module: str, name: str) -> Any:
    """A function that pickle finds under this name."""
    made = types.FunctionType((lambda *args: None).__code__, {}, name)
    made.__module__, made.__qualname__ = module, name
    for part in (module.partition(".")[0], module):
        sys.modules.setdefault(part, types.ModuleType(part))
    return sys.modules[module].__dict__.setdefault(name, made)


def part(kind: str, modules: Mapping[str, Any] = {}, buffers: Mapping[str, Tensor] = {}, **state: Any) -> Pickled:
    """A module: tensors among `state` are its parameters."""
    tensors = {key: nn.Parameter(one) for key, one in state.items() if isinstance(one, Tensor)}
    own = {key: one for key, one in state.items() if not isinstance(one, Tensor)}
    inside = {"_parameters": OrderedDict(tensors), "_buffers": OrderedDict(buffers), "_modules": OrderedDict(modules)}
    return Pickled(kind, {"training": False, **inside, "_non_persistent_buffers_set": set(), "_init_args": (), **own})


def taps(gain: float = 1.0) -> Tensor:
    """The published filter, [1, 3, 3, 1] / 8 in both directions."""
    tap = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    return gain * tap[:, None] * tap


def _linear(name: str, inside: int, outside: int, rate: float = 1.0) -> Pickled:
    weight, bias = value(f"{name}.weight", outside, inside), value(f"{name}.bias", outside)
    gains = {"weight_gain": np.float64(rate) / np.sqrt(inside), "bias_gain": rate}
    return part("FullyConnectedLayer", weight=weight, bias=bias, activation="lrelu", **gains)


def _conv(name: str, inside: int, outside: int, kernel: int, bias: bool = True) -> Pickled:
    own: dict[str, Any] = {"bias": value(f"{name}.bias", outside)} if bias else {}
    weight = value(f"{name}.weight", outside, inside, kernel, kernel)
    return part("Conv2dLayer", buffers={"resample_filter": taps()}, weight=weight, activation="lrelu", **own)


def generator(resolution: int = 32, classes: int = 0, sizes: Sizes = SIZES, **changed: Any) -> Pickled:
    """`G_ema`; `changed` are attributes of every block."""
    blocks, sides = {}, [2**power for power in range(2, resolution.bit_length())]
    for side in sides:
        inside, outside = sizes.channels(side // 2), sizes.channels(side)
        own: dict[str, Any] = {"architecture": "skip", "use_fp16": False, **changed}
        inner = {}
        for layer in ("conv1",) if side == 4 else ("conv0", "conv1"):
            name, into = f"synthesis.b{side}.{layer}", inside if layer == "conv0" else outside
            inner[layer] = part(
                "SynthesisLayer",
                {"affine": _linear(f"{name}.affine", sizes.width, into)},
                {"resample_filter": taps(), "noise_const": value(f"{name}.noise_const", side, side)},
                weight=value(f"{name}.weight", outside, into, 3, 3),
                noise_strength=value(f"{name}.noise_strength"),
                bias=value(f"{name}.bias", outside),
                activation="lrelu",
                conv_clamp=None,
            )
        name = f"synthesis.b{side}.torgb"
        inner["torgb"] = part(
            "ToRGBLayer",
            {"affine": _linear(f"{name}.affine", sizes.width, outside)},
            weight=value(f"{name}.weight", 3, outside, 1, 1),
            bias=value(f"{name}.bias", 3),
            conv_clamp=None,
        )
        if side == 4:
            own["const"] = value("synthesis.b4.const", outside, 4, 4)
        blocks[f"b{side}"] = part("SynthesisBlock", inner, {"resample_filter": taps()}, **own)
    inner = {"embed": _linear("mapping.embed", classes, sizes.width)} if classes else {}
    widths = [sizes.width * (2 if classes else 1), *[sizes.width] * sizes.layers]
    inner |= {f"fc{i}": _linear(f"mapping.fc{i}", widths[i], widths[i + 1], 0.01) for i in range(sizes.layers)}
    mapping = part("MappingNetwork", inner, {"w_avg": value("mapping.w_avg", sizes.width)})
    return part("Generator", {"synthesis": part("SynthesisNetwork", blocks), "mapping": mapping})


def discriminator(resolution: int = 32, sizes: Sizes = SIZES) -> Pickled:
    """`D`, unconditional."""
    blocks, sides = {}, [2**power for power in range(2, resolution.bit_length())][::-1]
    for side in sides[:-1]:
        own, less, name = sizes.channels(side), sizes.channels(side // 2), f"b{side}"
        inner = {"fromrgb": _conv(f"{name}.fromrgb", 3, own, 1)} if side == resolution else {}
        inner |= {"conv0": _conv(f"{name}.conv0", own, own, 3), "conv1": _conv(f"{name}.conv1", own, less, 3)}
        inner["skip"] = _conv(f"{name}.skip", own, less, 1, bias=False)
        blocks[name] = part("DiscriminatorBlock", inner, {"resample_filter": taps()}, architecture="resnet")
    last = sizes.channels(4)
    inner = {"conv": _conv("b4.conv", last + 1, last, 3), "fc": _linear("b4.fc", 16 * last, last)}
    blocks["b4"] = part("DiscriminatorEpilogue", inner | {"out": _linear("b4.out", last, 1)})
    return part("Discriminator", blocks)


def nvidia(
    path: Path, resolution: int = 32, classes: int = 0, critic: bool = True, sizes: Sizes = SIZES, **changed: Any
) -> Path:
    """A network snapshot."""
    networks: dict[str, Any] = {"training_set_kwargs": {"path": "x"}, "augment_pipe": None}
    networks["G_ema"] = generator(resolution, classes, sizes, **changed)
    if critic and not classes:
        networks["D"] = discriminator(resolution, sizes)
    path.write_bytes(pickle.dumps(networks))
    return path
