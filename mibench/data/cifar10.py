"""CIFAR-10's pictures of ten kinds of things, through torchvision: five private, five public.

The first five classes (airplane to deer) are private and the others public, as digits 0-4 and 5-9 are of MNIST in the
field; the official test pictures are held out. Files: torchvision's `cifar-10-batches-py/` below root.

References:
    | Learning multiple layers of features from tiny images (Krizhevsky, 2009)
    | https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

from dataclasses import dataclass

import numpy as np
import torch

from mibench.core import Dataset, Shape, Source, Split
from mibench.data.published import torchvisions
from mibench.runtime.progress import Reporter

__all__ = ["CARD", "Cifar10"]

CARD = {
    "summary": "CIFAR-10: airplane to deer private, dog to truck public",
    "images": "60,000; 32 x 32 colour",
    "identities": "10 classes: 5 private, 5 public",
    "title": "Learning Multiple Layers of Features from Tiny Images",
    "authors": "Krizhevsky",
    "venue": "technical report, University of Toronto",
    "licence": "none stated; free for research by custom",
    "link": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "year": 2009,
}


@dataclass(frozen=True)
class Cifar10(Source):
    """CIFAR-10; see the module.

    Args:
        root: Folder that holds `cifar-10-batches-py/`; empty is the environment's MIBENCH_DATA.

    Differs: the distractors are the attacker's own classes; there are no others.
    """

    root: str = ""

    def prepare(self, reporter: Reporter | None = None, processes: int = 0) -> None:
        """Fetch it with torchvision where it is missing (170 MB).

        Raises:
            UserError: It cannot be fetched.
        """
        torchvisions.fetch("CIFAR10", self.root)

    def _parts(self) -> tuple[Split, Split, tuple[str, ...]]:
        train, test = torchvisions.opened("CIFAR10", self.root)
        splits = [
            Split(torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))), torch.tensor(part.targets))
            for part in (train, test)
        ]
        return splits[0], splits[1], tuple(train.classes)

    def identity(self) -> dict[str, object]:
        """The pictures' hash in the place of the folder."""
        train, test, _ = self._parts()
        return {"content": torchvisions.hash_of(train, test)}

    def shape(self) -> Shape:
        """Half of the training pictures are public."""
        train, _, _ = self._parts()
        return Shape(5, (3, 32, 32), int((train.labels >= 5).sum()))

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Read the pictures.

        Raises:
            UserError: They are not below root.
        """
        train, test, names = self._parts()
        return torchvisions.halves("cifar10", train, test, names, 5, True, CARD)
