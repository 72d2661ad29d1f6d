"""EMNIST's handwritten letters, through torchvision: A-M private, N-Z public.

The `letters` split has 26 classes, upper and lower case together; the official test pictures are held out. Pictures are
turned upright and padded from 28 to 32 pixels. Files: torchvision's `EMNIST/raw/` below root.

References:
    | EMNIST: an extension of MNIST to handwritten letters (Cohen et al., 2017)
    | https://arxiv.org/abs/1702.05373
"""

from dataclasses import dataclass

import torch.nn.functional as F

from mibench.core import Dataset, Shape, Source, Split
from mibench.data.published import torchvisions
from mibench.runtime.progress import Reporter

__all__ = ["CARD", "Emnist"]

CARD = {
    "summary": "EMNIST handwritten letters: A-M private, N-Z public",
    "images": "145,600; 28 x 28 grey, zero-padded to 32 x 32",
    "identities": "26 letters: 13 private, 13 public",
    "title": "EMNIST: Extending MNIST to Handwritten Letters",
    "authors": "Cohen, Afshar, Tapson and van Schaik",
    "venue": "IJCNN",
    "licence": "public domain (NIST)",
    "link": "https://www.nist.gov/itl/products-and-services/emnist-dataset",
    "year": 2017,
}


@dataclass(frozen=True)
class Emnist(Source):
    """EMNIST letters; see the module.

    Args:
        root: Folder that holds `EMNIST/raw/`; empty is the environment's MIBENCH_DATA.

    Differs: the distractors are the attacker's own letters; there are no others.
    """

    root: str = ""

    def prepare(self, reporter: Reporter | None = None, processes: int = 0) -> None:
        """Fetch it with torchvision where it is missing (560 MB).

        Raises:
            UserError: It cannot be fetched.
        """
        torchvisions.fetch("EMNIST", self.root)

    def _parts(self) -> tuple[Split, Split]:
        splits = [
            # The files hold each letter mirrored and turned: transposed.
            Split(F.pad(part.data.transpose(1, 2)[:, None], (2, 2, 2, 2)), part.targets - 1)
            for part in torchvisions.opened("EMNIST", self.root)
        ]
        return splits[0], splits[1]

    def identity(self) -> dict[str, object]:
        """The pictures' hash in the place of the folder."""
        return {"content": torchvisions.hash_of(*self._parts())}

    def shape(self) -> Shape:
        """Half of the letters are public."""
        return Shape(13, (1, 32, 32), int((self._parts()[0].labels >= 13).sum()))

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Read the pictures.

        Raises:
            UserError: They are not below root.
        """
        train, test = self._parts()
        names = tuple(chr(ord("A") + letter) for letter in range(26))
        return torchvisions.halves("emnist", train, test, names, 13, False, CARD)
