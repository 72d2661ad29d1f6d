"""Checkpoints of rosinality/stylegan2-pytorch, its own and those it converted from TensorFlow: which tensor is which.

References:
    | https://github.com/rosinality/stylegan2-pytorch, model.py, train.py and convert_weight.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.priors.imported.sizes import channels_of, require_filter
from mibench.priors.imported.weights import Weights
from mibench.priors.stylegan2_ada_network import Geometry
from mibench.runtime.errors import UserError

__all__ = ["read_rosinality"]

LICENCE = (
    "not in the file; the code is under the MIT licence, weights converted from NVIDIA's stay under the NVIDIA Source "
    "Code License, non-commercial: https://nvlabs.github.io/stylegan2/license.html"
)


def read_rosinality(path: Path, content: Mapping[str, Any]) -> Weights:
    """The running average of the generator (`g_ema`, else `g`), and the discriminator where it is in the file.

    Args:
        path: The file, for errors.
        content: Of the checkpoint, read by torch with `weights_only=True`.

    Raises:
        UserError: It is no StyleGAN2 of this repository; says what it is.
    """
    key = next((one for one in ("g_ema", "g") if isinstance(content.get(one), Mapping)), None)
    if key is None:
        what = "a discriminator and no generator" if "d" in content else f"{', '.join(map(str, list(content)[:6]))}"
        raise UserError(
            f"{path} holds {what}; a checkpoint of rosinality/stylegan2-pytorch has 'g_ema': import that one"
        )
    given = _Named({str(name).removeprefix("module."): value for name, value in content[key].items()}, path)
    geometry = _geometry(given)
    tensors = {f"generator.{name}": value for name, value in _generator(given, geometry)}
    notes = []
    if not geometry.noisy:
        notes.append("no noise images in the file: nothing is added to the features")
    if isinstance(centre := content.get("latent_avg"), Tensor):
        tensors["generator.centre"] = centre.float().flatten()
    else:
        notes.append("no mean of w in the file: it is taken over 10,000 draws")
    critic = content.get("d")
    if isinstance(critic, Mapping):
        named = _Named({str(name).removeprefix("module."): value for name, value in critic.items()}, path)
        tensors |= {f"critic_network.{name}": value for name, value in _critic(named, geometry)}
    else:
        notes.append("no discriminator in the file, so the prior has no critic")
    return Weights(geometry, tensors, "a checkpoint of rosinality/stylegan2-pytorch", LICENCE, tuple(notes))


class _Named:
    """Tensors by name; a missing one is named."""

    def __init__(self, tensors: Mapping[str, Any], path: Path) -> None:
        self.tensors, self.path = tensors, path

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        value = self.tensors.get(name)
        if not isinstance(value, Tensor):
            raise UserError(f"{self.path} has no tensor {name}, as every StyleGAN2 of rosinality's has")
        return value.float()


def _geometry(given: _Named) -> Geometry:
    layers = sum(f"style.{place}.weight" in given for place in range(1, 65))
    doublings = sum(f"to_rgbs.{place}.bias" in given for place in range(16))
    widths = {4: given["conv1.conv.weight"].shape[1]}
    for place in range(doublings):
        widths[8 * 2**place] = given[f"convs.{2 * place + 1}.conv.weight"].shape[1]
        require_filter(given[f"convs.{2 * place}.conv.blur.kernel"], given.path, 4.0)
    base, most = channels_of(widths, given.path)
    return Geometry(
        resolution=4 * 2**doublings,
        base=base,
        most=most,
        latent_dim=given["style.1.weight"].shape[1],
        style_dim=given["conv1.conv.modulation.weight"].shape[1],
        layers=layers,
        colours=given["to_rgb1.bias"].numel(),
        noisy="noises.noise_0" in given,
    )


def _generator(given: _Named, geometry: Geometry) -> list[tuple[str, Tensor]]:
    tensors = [("centre", torch.zeros(geometry.style_dim)), ("constant", given["input.input"][0])]
    for place in range(geometry.layers):
        tensors += [(f"mapping.layers.{place}.{one}", given[f"style.{place + 1}.{one}"]) for one in ("weight", "bias")]
    for place in range(len(geometry.sides)):
        pairs = [
            ("convs." + str(2 * place - 2), "grow", 2 * place - 1),
            ("convs." + str(2 * place - 1), "conv", 2 * place),
        ]
        for theirs, own, layer in pairs if place else [("conv1", "conv", 0)]:
            name = f"grown.{place}.{own}"
            tensors += [
                (f"{name}.weight", given[f"{theirs}.conv.weight"][0]),
                (f"{name}.bias", given[f"{theirs}.activate.bias"].flatten()),
                (f"{name}.style.weight", given[f"{theirs}.conv.modulation.weight"]),
                (f"{name}.style.bias", given[f"{theirs}.conv.modulation.bias"]),
            ]
            if geometry.noisy:
                tensors += [(f"{name}.noise", given[f"noises.noise_{layer}"][0, 0])]
                tensors += [(f"{name}.strength", given[f"{theirs}.noise.weight"].reshape(()))]
        theirs, name = f"to_rgbs.{place - 1}" if place else "to_rgb1", f"grown.{place}.paint"
        tensors += [
            (f"{name}.weight", given[f"{theirs}.conv.weight"][0, :, :, 0, 0]),
            (f"{name}.bias", given[f"{theirs}.bias"].flatten()),
            (f"{name}.style.weight", given[f"{theirs}.conv.modulation.weight"]),
            (f"{name}.style.bias", given[f"{theirs}.conv.modulation.bias"]),
        ]
    return tensors


def _critic(given: _Named, geometry: Geometry) -> list[tuple[str, Tensor]]:
    tensors = [("read.weight", given["convs.0.0.weight"]), ("read.bias", given["convs.0.1.bias"].flatten())]
    for place in range(len(geometry.sides) - 1):
        block, name = f"convs.{place + 1}", f"halvings.{place}"
        tensors += [
            (f"{name}.first.weight", given[f"{block}.conv1.0.weight"]),
            (f"{name}.first.bias", given[f"{block}.conv1.1.bias"].flatten()),
            (f"{name}.second.weight", given[f"{block}.conv2.1.weight"]),
            (f"{name}.second.bias", given[f"{block}.conv2.2.bias"].flatten()),
            (f"{name}.straight.weight", given[f"{block}.skip.1.weight"]),
        ]
    tensors += [("conv.weight", given["final_conv.0.weight"]), ("conv.bias", given["final_conv.1.bias"].flatten())]
    for theirs, own in (("final_linear.0", "hidden"), ("final_linear.1", "score")):
        tensors += [(f"{own}.{one}", given[f"{theirs}.{one}"]) for one in ("weight", "bias")]
    return tensors
