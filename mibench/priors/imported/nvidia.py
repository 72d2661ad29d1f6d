"""Pickles of stylegan2-ada-pytorch (and of stylegan3, where they hold a StyleGAN2): which tensor is which.

References:
    | https://github.com/NVlabs/stylegan2-ada-pytorch, torch_utils/persistence.py and training/networks.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.priors.imported.pickles import Called, described, number, read_pickle, state_of, tensor
from mibench.priors.imported.sizes import channels_of, require_filter
from mibench.priors.imported.weights import Weights
from mibench.priors.stylegan2_ada_network import Geometry
from mibench.runtime.errors import UserError

__all__ = ["read_nvidia"]

LICENCE = (
    "not in the file; NVIDIA's own are under the NVIDIA Source Code License for StyleGAN2-ADA, non-commercial: "
    "https://nvlabs.github.io/stylegan2-ada-pytorch/license.html"
)

CONVERT = (
    "convert it with legacy.py of https://github.com/NVlabs/stylegan2-ada-pytorch (--source OLD.pkl --dest NEW.pkl), "
    "then import NEW.pkl"
)


class Part:
    """A module inside a pickle: its attributes, its tensors by name, the modules inside it."""

    def __init__(self, node: Any, path: Path) -> None:
        self.path = path
        self.name, self.state = state_of(node, path)

    def __contains__(self, name: str) -> bool:
        return name in self._inside("_modules")

    def _inside(self, kind: str) -> Mapping[str, Any]:
        known = self.state.get(kind)
        return known if isinstance(known, Mapping) else {}

    @property
    def parts(self) -> list[str]:
        """Names of the modules inside."""
        return [str(name) for name in self._inside("_modules")]

    def part(self, name: str) -> "Part":
        """A module inside.

        Raises:
            UserError: There is none of this name.
        """
        if name not in self:
            raise UserError(f"{self.path}: its {self.name} has no part {name}, as every StyleGAN2 has")
        return Part(self._inside("_modules")[name], self.path)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer.

        Raises:
            UserError: There is none of this name.
        """
        known = {**self._inside("_parameters"), **self._inside("_buffers")}
        if known.get(name) is None:
            raise UserError(f"{self.path}: its {self.name} has no {name}, as every StyleGAN2 has")
        return tensor(known[name], self.path)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return {**self._inside("_parameters"), **self._inside("_buffers")}.get(name) is not None

    def require(self, name: str, wanted: Any) -> None:
        """Refuse what is not built as published.

        Raises:
            UserError: What it is, and what it should be.
        """
        if (given := self.state.get(name, wanted)) != wanted:
            raise UserError(f"{self.path}: {name} of its {self.name} is {given!r}; only {wanted!r} can be imported")


def read_nvidia(path: Path) -> Weights:
    """The running average of the generator, and the discriminator of an unconditional one where it is in the file.

    Raises:
        UserError: It is no pickle of a StyleGAN2; says what it is.
    """
    content = read_pickle(path)
    _refuse_tensorflow(content, path)
    networks = content if isinstance(content, Mapping) and not isinstance(content, Called) else {"G_ema": content}
    node = next((networks[key] for key in ("G_ema", "G") if networks.get(key) is not None), None)
    if node is None:
        held = described(networks)
        only = " only a discriminator," if "D" in networks else ""
        raise UserError(f"{path} holds{only} {held} and no generator (G_ema): import a network snapshot")
    generator = Part(node, path)
    if generator.name == "Discriminator":
        raise UserError(f"{path} holds a discriminator and no generator (G_ema): import a network snapshot")
    synthesis, mapping = generator.part("synthesis"), generator.part("mapping")
    if "input" in synthesis or any(name.startswith("L0_") for name in synthesis.parts):
        raise UserError(
            f"{path} is a StyleGAN3, whose synthesis is another; mibench imports StyleGAN2: take the one that was "
            "trained on the same images"
        )
    geometry = _geometry(generator, synthesis, mapping)
    tensors = {f"generator.{name}": value for name, value in _generator(synthesis, mapping, geometry)}
    critic = networks.get("D")
    notes = []
    if critic is None:
        notes.append("no discriminator in the file, so the prior has no critic")
    elif geometry.classes:
        notes.append("a conditional discriminator judges image and class together; left out, so there is no critic")
    else:
        tensors |= {f"critic_network.{name}": value for name, value in _critic(Part(critic, path), geometry)}
    return Weights(geometry, tensors, "NVIDIA's PyTorch pickle", LICENCE, tuple(notes))


def _refuse_tensorflow(content: Any, path: Path) -> None:
    """Name a pickle of TensorFlow's StyleGANs.

    Raises:
        UserError: If it is one.
    """
    networks = content if isinstance(content, tuple | list) else [content]
    stubs = [one for one in networks if isinstance(one, Called) and one.name == "dnnlib.tflib.network.Network"]
    if not stubs:
        return
    builder = str(stubs[-1].state.get("build_func_name", "")) if isinstance(stubs[-1].state, Mapping) else ""
    if builder.startswith(("G_style", "D_basic")):
        raise UserError(
            f"{path} is a StyleGAN1 of TensorFlow ({builder}), whose layers are others; mibench imports StyleGAN2: "
            "take the one that was trained on the same images"
        )
    raise UserError(f"{path} is a pickle of TensorFlow's StyleGAN2 ({builder or 'no builder named'}); {CONVERT}")


def _geometry(generator: Part, synthesis: Part, mapping: Part) -> Geometry:
    path = generator.path
    sides = sorted(int(name[1:]) for name in synthesis.parts if name[:1] == "b" and name[1:].isdigit())
    if not sides or sides != [4 * 2**place for place in range(len(sides))]:
        raise UserError(
            f"{path}: the blocks of its synthesis are {', '.join(synthesis.parts) or 'none'}, not b4, b8, ..."
        )
    blocks = [synthesis.part(f"b{side}") for side in sides]
    for block in blocks:
        block.require("architecture", "skip")
        block.part("conv1").require("activation", "lrelu")
        require_filter(block.tensor("resample_filter"), path)
    clamps = {_clamp(block.part(name)) for block in blocks for name in ("conv1", "torgb")}
    if len(clamps) > 1:
        raise UserError(f"{path}: its layers are clamped to different values {sorted(clamps)}; not as published")
    first, layers = mapping.part("fc0"), [name for name in mapping.parts if name.startswith("fc")]
    first.require("activation", "lrelu")
    if abs((rate := number(first.state.get("bias_gain", 0.01), path)) - 0.01) > 1e-9:
        raise UserError(f"{path}: its mapping has a learning rate of {rate:g}; only the published 0.01 can be imported")
    embed = mapping.part("embed").tensor("weight") if "embed" in mapping else torch.empty(0, 0)
    widths = {side: block.part("conv1").tensor("weight").shape[0] for side, block in zip(sides, blocks, strict=True)}
    base, most = channels_of(widths, path)
    return Geometry(
        resolution=sides[-1],
        base=base,
        most=most,
        latent_dim=first.tensor("weight").shape[1] - embed.shape[0],
        style_dim=blocks[0].part("conv1").part("affine").tensor("weight").shape[1],
        layers=len(layers),
        classes=embed.shape[1],
        colours=blocks[0].part("torgb").tensor("weight").shape[0],
        clamp=clamps.pop(),
        half=sum(block.state.get("use_fp16") is True for block in blocks),
        noisy=blocks[0].part("conv1").has("noise_const"),
    )


def _clamp(layer: Part) -> float:
    given = layer.state.get("conv_clamp")
    return 0.0 if given is None else number(given, layer.path)


def _generator(synthesis: Part, mapping: Part, geometry: Geometry) -> list[tuple[str, Tensor]]:
    tensors = [("centre", mapping.tensor("w_avg")), ("constant", synthesis.part("b4").tensor("const"))]
    for name in (f"fc{place}" for place in range(geometry.layers)):
        tensors += [(f"mapping.layers.{name[2:]}.{one}", mapping.part(name).tensor(one)) for one in ("weight", "bias")]
    if geometry.classes:
        tensors += [(f"mapping.embed.{one}", mapping.part("embed").tensor(one)) for one in ("weight", "bias")]
    for place, side in enumerate(geometry.sides):
        block = synthesis.part(f"b{side}")
        for theirs, own in (("conv0", "grow"), ("conv1", "conv"), ("torgb", "paint")):
            if place == 0 and own == "grow":
                continue
            layer, name = block.part(theirs), f"grown.{place}.{own}"
            weight = layer.tensor("weight")
            tensors += [
                (f"{name}.weight", weight[:, :, 0, 0] if own == "paint" else weight),
                (f"{name}.bias", layer.tensor("bias")),
                (f"{name}.style.weight", layer.part("affine").tensor("weight")),
                (f"{name}.style.bias", layer.part("affine").tensor("bias")),
            ]
            if geometry.noisy and own != "paint":
                tensors += [(f"{name}.noise", layer.tensor("noise_const"))]
                tensors += [(f"{name}.strength", layer.tensor("noise_strength"))]
    return tensors


def _critic(critic: Part, geometry: Geometry) -> list[tuple[str, Tensor]]:
    sides, tensors = geometry.sides[::-1], []
    for place, side in enumerate(sides[:-1]):
        block = critic.part(f"b{side}")
        block.require("architecture", "resnet")
        if place == 0:
            tensors += [(f"read.{one}", block.part("fromrgb").tensor(one)) for one in ("weight", "bias")]
        for theirs, own in (("conv0", "first"), ("conv1", "second")):
            tensors += [(f"halvings.{place}.{own}.{one}", block.part(theirs).tensor(one)) for one in ("weight", "bias")]
        tensors.append((f"halvings.{place}.straight.weight", block.part("skip").tensor("weight")))
    last = critic.part("b4")
    for theirs, own in (("conv", "conv"), ("fc", "hidden"), ("out", "score")):
        tensors += [(f"{own}.{one}", last.part(theirs).tensor(one)) for one in ("weight", "bias")]
    return tensors
