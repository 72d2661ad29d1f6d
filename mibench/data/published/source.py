"""A published data set: what is prepared once is then a data set like any other."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from mibench.core import Dataset, Shape, Source, Split
from mibench.data.fields import whole
from mibench.data.published import packs, publics
from mibench.data.published.crops import CROPS, Crop
from mibench.data.published.needs import MARKER, Need, require, top_of
from mibench.data.published.packs import Pack, Part
from mibench.runtime.absent import STATED, Absent, taken_as_published
from mibench.runtime.progress import Reporter, Silent

__all__ = ["Counts", "Listing", "Published"]

STRANGERS = 2000
"""Public images that stand for 'someone else' where a data set has no people left to be distractors."""


@dataclass(frozen=True)
class Listing:
    """Every picture of a data set, listed; none is decoded.

    Args:
        classes: Names of the private identities, in the order of their labels.
        parts: `train` and `heldout`; `public`, `distractors` and `bystanders` where it has them itself.
        splits: In words, how it was split.
    """

    classes: Sequence[str]
    parts: Mapping[str, Part]
    splits: str


class Counts(NamedTuple):
    """How many of everything a data set has by its publication, to plan where it is not prepared."""

    classes: int
    train: int
    heldout: int
    public: int
    """Its own public images; those of an image set are counted there."""


@dataclass(frozen=True)
class Published(Source):
    """What the published data sets have in common.

    Args:
        root: Folder that holds all data sets, each in a folder of its own; empty is the environment's MIBENCH_DATA.
        image_size: Side in pixels, 8 to 1024; 0 is the published one.
    """

    folder: ClassVar[str]
    """Its folder below root, and its name."""
    card: ClassVar[Mapping[str, Any]]
    """The module's CARD."""
    faces: ClassVar[bool] = True
    flip: ClassVar[bool] = True

    root: str = ""
    image_size: int = 0

    def __post_init__(self) -> None:
        if self.image_size:
            whole("image_size", self.image_size, 8, 1024)

    @abstractmethod
    def needs(self) -> Sequence[Need]:
        """Its files, as far as these fields want them."""

    @abstractmethod
    def listing(self, home: Path) -> Listing:
        """Read the authors' lists.

        Raises:
            UserError: Fewer classes or pictures than the protocol has; files that contradict each other.
        """

    @abstractmethod
    def crop(self) -> str:
        """The name of its crop in `crops.CROPS`."""

    @abstractmethod
    def counts(self) -> Counts:
        """As published; of what everybody's copy has another number of, as many as there can be."""

    @property
    def public_set(self) -> str:
        """The image set that the attacker has; empty where the public images are its own."""
        return str(getattr(self, "public", ""))

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.image_size or CROPS[self.crop()][1].size

    def cut(self) -> Crop:
        """Its crop at its size."""
        return replace(CROPS[self.crop()][1], size=self.size)

    @property
    def shows_faces(self) -> bool:
        """Whether they are photographs of people."""
        return self.faces

    def choices(self) -> dict[str, Any]:
        """What decides how its own pictures are cut and split, as JSON values."""
        given = {name: value for name, value in asdict(self).items() if name not in ("root", "image_size")}
        given["public"] = "" if self.public_set else "own"
        return {**given, "cut": self.cut().spec()}

    def needed(self) -> list[tuple[str, Need]]:
        """(folder below root, file) of everything that is needed, the public image set's included."""
        public = publics.PUBLICS[self.public_set] if self.public_set else None
        return [(self.folder, need) for need in self.needs()] + (
            [(public.name, public.need(self.size))] if public else []
        )

    def prepare(self, reporter: Reporter | None = None, processes: int = 0) -> None:
        """Check every file, then decode what is not decoded yet, with all cores; see `packs.prepare`.

        Args:
            reporter: Is told how far it is.
            processes: How many work at it; 0 is one for each core.

        Raises:
            UserError: Whatever is missing, damaged or of another data set, before anything is decoded.
        """
        reporter = reporter or Silent()
        top = top_of(self.root, self.folder)
        require([(top / folder, need) for folder, need in self.needed()])
        listing = self.listing(top / self.folder)
        parts = {name: part for name, part in listing.parts.items() if part.pictures}
        heldout = torch.tensor(listing.parts["heldout"].labels).bincount(minlength=len(listing.classes))
        notes = {
            "classes": list(listing.classes),
            "splits": listing.splits,
            "fewest_heldout": int(heldout.min()),
            "standin": (top / self.folder / MARKER).exists(),
        }
        packs.check(parts)
        if self.public_set:
            publics.PUBLICS[self.public_set].prepare(top, self.size, reporter, processes)
        packs.prepare(top / "prepared", self.folder, self.choices(), parts, notes, reporter, processes)

    def verify(self) -> None:
        """Read everything that was prepared and compare its checksums.

        Raises:
            UserError: Something changed.
        """
        self.own().verify()
        if self.public_set:
            publics.PUBLICS[self.public_set].pack(top_of(self.root, self.folder), self.size).verify()

    def own(self) -> Pack:
        """What was prepared.

        Raises:
            Absent: Nothing was, of these fields.
        """
        top = top_of(self.root, self.folder)
        pack = packs.find(top / "prepared", self.folder, self.choices())
        if pack is None:
            given = " ".join(
                f"--set data.{item.name}={getattr(self, item.name)}"
                for item in fields(self)
                if item.name != "root" and getattr(self, item.name) != item.default
            )
            raise Absent(
                f"'{self.folder}' is not prepared in this way below {top}; run: mibench data prepare {self.folder} "
                f"--root {top}{f' {given}' if given else ''}"
            )
        return pack

    def here(self) -> bool:
        """Whether it is prepared, its public image set included; a copy that is damaged counts."""
        try:
            self.own()
            if self.public_set:
                publics.PUBLICS[self.public_set].pack(top_of(self.root, self.folder), self.size)
        except Absent:
            return False
        return True

    def _stated(self) -> bool:
        return taken_as_published() and not self.here()

    def _public(self) -> Split:
        if not self.public_set:
            return self.own().part("public")
        return publics.PUBLICS[self.public_set].pack(top_of(self.root, self.folder), self.size).part("public")

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Map what was prepared.

        Raises:
            UserError: It was not.
        """
        pack, public = self.own(), self._public()
        notes = pack.about["notes"]
        alone = not pack.has("distractors")
        others = public.images[:STRANGERS]
        strangers = Split(others, torch.zeros(len(others), dtype=torch.int64))
        return Dataset(
            name=self.folder,
            classes=tuple(notes["classes"]),
            train=pack.part("train"),
            heldout=pack.part("heldout"),
            public=public,
            distractors=strangers if alone else pack.part("distractors"),
            distractors_are_public=alone,
            flip=self.flip,
            card={
                **self.card,
                "splits": notes["splits"],
                "crop": self.crop(),
                "public": self.public_set or "own",
                "standin": notes["standin"],
                "converted": {},
            },
        )

    @property
    def bystander_count(self) -> int:
        """As many as were prepared."""
        return int(getattr(self, "bystanders", 0))

    @property
    def heldout_count(self) -> int | None:
        """Fewest held-out pictures of anybody, as prepared."""
        return None if self._stated() else int(self.own().about["notes"]["fewest_heldout"])

    def load_bystanders(self, reporter: Reporter | None = None) -> Split:
        """Map them.

        Raises:
            UserError: There are none.
        """
        pack = self.own()
        return pack.part("bystanders") if pack.has("bystanders") else super().load_bystanders(reporter)

    def shape(self) -> Shape:
        """As prepared."""
        if self._stated():
            told = self.counts()
            public = publics.PUBLICS[self.public_set].count if self.public_set else told.public
            return Shape(told.classes, (3, self.size, self.size), public)
        pack = self.own()
        _, channels, height, width = pack.about["parts"]["train"]
        return Shape(len(pack.about["notes"]["classes"]), (channels, height, width), len(self._public()))

    def identity(self) -> dict[str, Any]:
        """The fields, with hashes of the pixels in the place of the folder."""
        given = {name: value for name, value in asdict(self).items() if name not in ("root", "bystanders")}
        if self._stated():
            return given | {"content": STATED, "image_size": self.size}
        pack = self.own()
        told = [name for name in ("train", "heldout", "public", "distractors") if pack.has(name)]
        content = {"content": pack.digest(*told), "image_size": self.size}
        if self.public_set:
            at = publics.PUBLICS[self.public_set].pack(top_of(self.root, self.folder), self.size)
            content["public_content"] = at.digest()
        return given | content | ({"standin": True} if pack.about["notes"]["standin"] else {})
