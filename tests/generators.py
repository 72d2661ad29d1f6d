"""Files of small StyleGAN2s as rosinality's code writes them; those of NVIDIA's are mibench's own stand-ins."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.priors.imported.standin import SIZES, SOURCE, discriminator, generator, named, nvidia, part, taps, value

__all__ = ["SOURCE", "discriminator", "generator", "named", "nvidia", "part", "rosinality", "value"]

WIDTH, LAYERS = SIZES.width, SIZES.layers
channels = SIZES.channels


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
            state[f"{name}.conv.blur.kernel"] = taps(4.0)

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
