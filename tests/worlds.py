"""Toy worlds shared by tests: those of the kit for authors (`mibench.testing.worlds`), and folders of pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mibench.core import Access
from mibench.data.folder import Folder
from mibench.testing.worlds import (
    SHAPE,
    GaussianDiffusion,
    LinearPrior,
    SmallNet,
    ToldPrior,
    World,
    attack_on,
    colours,
    gaussian_flow,
    public,
    quick,
    small_net,
    workspace,
)

__all__ = [
    "ACCESS",
    "SHAPE",
    "GaussianDiffusion",
    "LinearPrior",
    "SmallNet",
    "ToldPrior",
    "World",
    "attack_on",
    "colours",
    "folder",
    "gaussian_flow",
    "noise_image",
    "public",
    "quick",
    "small_net",
    "tree",
    "workspace",
]

torch.set_num_threads(1)  # the networks are tiny, and other tests share the machine

ACCESS = {key: Access.of(key) for key in ("none", "label_only", "black_box", "white_box")}


def noise_image(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tree(root: Path, private: dict[str, int], public: dict[str, int] | int) -> Path:
    """Random pictures: how many for each person; a number for a flat public/."""
    folders = {f"private/{name}": count for name, count in private.items()}
    folders |= {"public": public} if isinstance(public, int) else {f"public/{n}": c for n, c in public.items()}
    seed = 0
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            seed += 1
            noise_image(seed).save(root / folder / f"{number:03d}.png")
    return root


def folder(root: Path, **fields: Any) -> Folder:
    return Folder(str(root), image_size=8, **fields)
