"""Stanford Dogs: 120 breeds, split as Plug & Play Attacks does, whole or cut out by their bounding boxes.

The order is that of the authors' lists, train_list.mat and then test_list.mat; 90% of it are for training by numpy's
shuffle with seed 42, which is not the official split. Targets see whole pictures, evaluation models the first bounding
box of each (`--set data.boxes=true`); both are squashed to a square, as in the authors' configuration. The attacker's
images are AFHQ's dogs.

    stanford_dogs/Images/n02085620-Chihuahua/n02085620_5927.jpg
    stanford_dogs/Annotation/n02085620-Chihuahua/n02085620_5927        only with boxes
    stanford_dogs/train_list.mat, test_list.mat

References:
    | Novel dataset for fine-grained image categorization (Khosla et al., 2011), the data
    | https://www.tensorflow.org/datasets/catalog/stanford_dogs
    | Plug & Play Attacks (Struppek et al., 2022), datasets/stanford_dogs.py
    | https://github.com/LukasStruppek/Plug-and-Play-Attacks
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mibench.data.published.needs import Facts, Need, facts_of
from mibench.data.published.packs import Part
from mibench.data.published.source import Counts, Listing, Published
from mibench.data.published.splits import ninety_ten, sizes
from mibench.data.published.worker import Picture
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_bytes

__all__ = ["CARD", "PUBLISHED", "StanfordDogs"]

CARD = {
    "summary": "Stanford Dogs: 120 breeds, whole pictures or bounding boxes, split as Plug & Play Attacks does",
    "images": "20,580, all private; the attacker has AFHQ's 4,739 dogs",
    "identities": "120 breeds, all private",
    "title": "Novel Dataset for Fine-Grained Image Categorization",
    "authors": "Khosla, Jayadevaprakash, Yao and Fei-Fei",
    "venue": "CVPR workshops",
    "licence": "non-commercial research, as ImageNet",
    "link": "http://vision.stanford.edu/aditya86/ImageNetDogs/",
    "year": 2011,
}

PUBLISHED: Mapping[str, int] = {"pictures": 20_580, "classes": 120}
"""What the authors' lists hold."""

_SOURCE = ("http://vision.stanford.edu/aditya86/ImageNetDogs/", "non-commercial research")


@dataclass(frozen=True)
class StanfordDogs(Published):
    """Stanford Dogs; see the module.

    Args:
        boxes: Only what lies in the first bounding box of each picture.
        public: The attacker's images.
    """

    folder: ClassVar[str] = "stanford_dogs"
    card: ClassVar[Mapping[str, Any]] = CARD
    faces: ClassVar[bool] = False

    boxes: bool = False
    public: Literal["afhq"] = "afhq"

    def crop(self) -> str:
        """The same for whole pictures and boxes."""
        return "dogs-224"

    def counts(self) -> Counts:
        """The authors' lists."""
        return Counts(PUBLISHED["classes"], *sizes(PUBLISHED["pictures"]), 0)

    def needs(self) -> list[Need]:
        """Pictures, the two lists, and the boxes if they are wanted."""
        own = [
            Need(("Images",), "20,580 pictures in 120 folders (images.tar, unpacked; 757 MB)", *_SOURCE),
            Need(("train_list.mat",), "the official training list (lists.tar, unpacked)", *_SOURCE),
            Need(("test_list.mat",), "the official test list (lists.tar, unpacked)", *_SOURCE),
        ]
        return own + ([Need(("Annotation",), "the boxes (annotation.tar, unpacked)", *_SOURCE)] if self.boxes else [])

    def listing(self, home: Path) -> Listing:
        """The authors' lists, one after the other.

        Raises:
            UserError: Lists that are cut short or contradict each other; a picture without a box.
        """
        facts = facts_of(home, PUBLISHED)
        rows = [row for name in ("train_list.mat", "test_list.mat") for row in _list(home / name)]
        classes = _classes(home, rows, facts)
        pictures = [
            Picture(f"{name}.jpg", _first_box(home / "Annotation" / name) if self.boxes else None) for name, _ in rows
        ]
        parts = {
            part: Part(home / "Images", self.cut(), [pictures[row] for row in own], [rows[row][1] for row in own])
            for part, own in zip(("train", "heldout"), ninety_ten(len(rows)), strict=True)
        }
        return Listing(classes, parts, "90% of both official lists together, numpy's shuffle with seed 42")


def _list(file: Path) -> list[tuple[str, int]]:
    """(`folder/picture` without its suffix, label from 0) of each entry."""
    import scipy.io  # slow to import

    try:
        mat = scipy.io.loadmat(file)
        names = [str(entry[0][0]) for entry in mat["annotation_list"]]
        return list(zip(names, [int(label[0]) - 1 for label in mat["labels"]], strict=True))
    except Exception as error:  # scipy raises nearly anything on files that are no MATLAB files
        raise UserError(
            f"{file} is not one of Stanford Dogs' lists ({type(error).__name__}: {error}): a partial download or "
            f"another file; unpack lists.tar again from {_SOURCE[0]}"
        ) from None


def _classes(home: Path, rows: list[tuple[str, int]], facts: Facts) -> list[str]:
    """Breeds in the order of their labels."""
    folders: dict[int, set[str]] = {}
    for name, label in rows:
        folders.setdefault(label, set()).add(name.split("/")[0])
    if len(rows) != facts["pictures"] or sorted(folders) != list(range(facts["classes"])):
        raise UserError(
            f"the lists in {home} have {len(rows):,} pictures of {len(folders)} breeds, the protocol has "
            f"{facts['pictures']:,} of {facts['classes']}: unpack lists.tar again from {_SOURCE[0]}"
        )
    double = [label for label, own in folders.items() if len(own) > 1]
    if double:
        raise UserError(
            f"the lists in {home} give {len(double)} labels to several folders, first {sorted(folders[double[0]])}: "
            f"unpack lists.tar again from {_SOURCE[0]}"
        )
    return [next(iter(folders[label])).partition("-")[2] for label in range(facts["classes"])]


def _first_box(file: Path) -> tuple[int, int, int, int]:
    try:
        box = next(ET.fromstring(read_bytes(file)).iter("bndbox"))
        left, upper, right, lower = (int(box.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax"))
    except (OSError, ET.ParseError, StopIteration, ValueError) as error:
        raise UserError(
            f"{file} holds no bounding box ({error!r}); unpack annotation.tar again from {_SOURCE[0]}, or take whole "
            "pictures"
        ) from None
    return left, upper, right, lower
