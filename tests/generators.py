"""Files of small StyleGAN2s as NVIDIA's code and rosinality's write them, with weights in closed form.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SOURCE = "raise SystemExit('the source in the pickle was executed')"
WIDTH, LAYERS, BASE, MOST = 8, 2, 128, 8


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


def _taps(gain: float = 1.0) -> Tensor:
    tap = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    return gain * tap[:, None] * tap


def _linear(name: str, inside: int, outside: int, rate: float = 1.0) -> Pickled:
    weight, bias = value(f"{name}.weight", outside, inside), value(f"{name}.bias", outside)
    gains = {"weight_gain": np.float64(rate) / np.sqrt(inside), "bias_gain": rate}
    return part("FullyConnectedLayer", weight=weight, bias=bias, activation="lrelu", **gains)


def _conv(name: str, inside: int, outside: int, kernel: int, bias: bool = True) -> Pickled:
    own = {"bias": value(f"{name}.bias", outside)} if bias else {}
    weight = value(f"{name}.weight", outside, inside, kernel, kernel)
    return part("Conv2dLayer", buffers={"resample_filter": _taps()}, weight=weight, activation="lrelu", **own)


def channels(side: int) -> int:
    """Of the features at this side."""
    return min(BASE // side, MOST)


def generator(resolution: int = 32, classes: int = 0, **changed: Any) -> Pickled:
    """`G_ema`; `changed` are attributes of every block."""
    blocks, sides = {}, [2**power for power in range(2, resolution.bit_length())]
    for side in sides:
        inside, outside = channels(side // 2), channels(side)
        own: dict[str, Any] = {"architecture": "skip", "use_fp16": False, **changed}
        inner = {}
        for layer in ("conv1",) if side == 4 else ("conv0", "conv1"):
            name, into = f"synthesis.b{side}.{layer}", inside if layer == "conv0" else outside
            inner[layer] = part(
                "SynthesisLayer",
                {"affine": _linear(f"{name}.affine", WIDTH, into)},
                {"resample_filter": _taps(), "noise_const": value(f"{name}.noise_const", side, side)},
                weight=value(f"{name}.weight", outside, into, 3, 3),
                noise_strength=value(f"{name}.noise_strength"),
                bias=value(f"{name}.bias", outside),
                activation="lrelu",
                conv_clamp=None,
            )
        name = f"synthesis.b{side}.torgb"
        inner["torgb"] = part(
            "ToRGBLayer",
            {"affine": _linear(f"{name}.affine", WIDTH, outside)},
            weight=value(f"{name}.weight", 3, outside, 1, 1),
            bias=value(f"{name}.bias", 3),
            conv_clamp=None,
        )
        if side == 4:
            own["const"] = value("synthesis.b4.const", outside, 4, 4)
        blocks[f"b{side}"] = part("SynthesisBlock", inner, {"resample_filter": _taps()}, **own)
    inner = {"embed": _linear("mapping.embed", classes, WIDTH)} if classes else {}
    sizes = [WIDTH * (2 if classes else 1), *[WIDTH] * LAYERS]
    inner |= {f"fc{i}": _linear(f"mapping.fc{i}", sizes[i], sizes[i + 1], 0.01) for i in range(LAYERS)}
    mapping = part("MappingNetwork", inner, {"w_avg": value("mapping.w_avg", WIDTH)})
    return part("Generator", {"synthesis": part("SynthesisNetwork", blocks), "mapping": mapping})


def discriminator(resolution: int = 32) -> Pickled:
    """`D`, unconditional."""
    blocks, sides = {}, [2**power for power in range(2, resolution.bit_length())][::-1]
    for side in sides[:-1]:
        own, less, name = channels(side), channels(side // 2), f"b{side}"
        inner = {"fromrgb": _conv(f"{name}.fromrgb", 3, own, 1)} if side == resolution else {}
        inner |= {"conv0": _conv(f"{name}.conv0", own, own, 3), "conv1": _conv(f"{name}.conv1", own, less, 3)}
        inner["skip"] = _conv(f"{name}.skip", own, less, 1, bias=False)
        blocks[name] = part("DiscriminatorBlock", inner, {"resample_filter": _taps()}, architecture="resnet")
    last = channels(4)
    inner = {"conv": _conv("b4.conv", last + 1, last, 3), "fc": _linear("b4.fc", 16 * last, last)}
    blocks["b4"] = part("DiscriminatorEpilogue", inner | {"out": _linear("b4.out", last, 1)})
    return part("Discriminator", blocks)


def nvidia(path: Path, resolution: int = 32, classes: int = 0, critic: bool = True, **changed: Any) -> Path:
    """A network snapshot."""
    networks: dict[str, Any] = {"training_set_kwargs": {"path": "x"}, "augment_pipe": None}
    networks["G_ema"] = generator(resolution, classes, **changed)
    if critic and not classes:
        networks["D"] = discriminator(resolution)
    path.write_bytes(pickle.dumps(networks))
    return path


def rosinality(path: Path, resolution: int = 32, **more: Any) -> Path:
    """A checkpoint of the generator, whose channels follow no law of theirs but ours."""
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[name] = value(name, *shape)

    def modulated(name: str, inside: int, outside: int, kernel: int) -> None:
        put(f"{name}.weight", 1, outside, inside, kernel, kernel)
        put(f"{name}.modulation.weight", inside, WIDTH)
        put(f"{name}.modulation.bias", inside)

    def styled(name: str, inside: int, outside: int, up: bool) -> None:
        modulated(f"{name}.conv", inside, outside, 3)
        put(f"{name}.noise.weight", 1)
        put(f"{name}.activate.bias", outside)
        if up:
            state[f"{name}.conv.blur.kernel"] = _taps(4.0)

    def colours(name: str, inside: int) -> None:
        modulated(f"{name}.conv", inside, 3, 1)
        put(f"{name}.bias", 1, 3, 1, 1)

    for place in range(LAYERS):
        put(f"style.{place + 1}.weight", WIDTH, WIDTH)
        put(f"style.{place + 1}.bias", WIDTH)
    put("input.input", 1, channels(4), 4, 4)
    styled("conv1", channels(4), channels(4), False)
    colours("to_rgb1", channels(4))
    put("noises.noise_0", 1, 1, 4, 4)
    for place in range(resolution.bit_length() - 3):
        side = 8 * 2**place
        styled(f"convs.{2 * place}", channels(side // 2), channels(side), True)
        styled(f"convs.{2 * place + 1}", channels(side), channels(side), False)
        colours(f"to_rgbs.{place}", channels(side))
        for layer in (2 * place + 1, 2 * place + 2):
            put(f"noises.noise_{layer}", 1, 1, side, side)
    torch.save({"g_ema": state, "latent_avg": value("mapping.w_avg", WIDTH), **more}, path)
    return path
