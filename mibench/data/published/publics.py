"""Image sets that only an attacker has: FFHQ, MetFaces and AFHQ's dogs, as the papers cut them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mibench.data.fields import whole
from mibench.data.published import packs
from mibench.data.published.crops import CROPS, Crop
from mibench.data.published.needs import MARKER, Need, facts_of, require, top_of
from mibench.data.published.packs import Pack, Part
from mibench.data.published.stores import open_store
from mibench.data.published.worker import Picture
from mibench.runtime.absent import Absent
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter

__all__ = ["PUBLICS", "Images", "PublicSet"]


@dataclass(frozen=True)
class PublicSet:
    """Pictures without labels.

    Args:
        name: Its name, and its folder below root.
        small: What is needed below 128 pixels, and how it is cut.
        large: The same from 128 pixels on.
        count: Published pictures.
    """

    name: str
    small: tuple[Need, str]
    large: tuple[Need, str]
    count: int

    def need(self, size: int) -> Need:
        """The folder of pictures that a size is cut from."""
        return (self.small if size < 128 else self.large)[0]

    def crop(self, size: int) -> Crop:
        """How it is cut at a size."""
        return replace(CROPS[self.crop_name(size)][1], size=size)

    def crop_name(self, size: int) -> str:
        """The crop's name in `CROPS`."""
        return (self.small if size < 128 else self.large)[1]

    def pack(self, top: Path, size: int) -> Pack:
        """What was prepared at this size.

        Raises:
            Absent: Nothing was.
        """
        pack = packs.find(top / "prepared", self.name, self.crop(size).spec())
        if pack is None:
            raise Absent(
                f"'{self.name}' is not prepared at {size} px below {top}; run: mibench data prepare {self.name} "
                f"--root {top} --set data.image_size={size}"
            )
        return pack

    def prepare(self, top: Path, size: int, reporter: Reporter, processes: int = 0) -> Pack:
        """Decode all of it that is not decoded yet; the files were checked before.

        Raises:
            UserError: Fewer or more pictures than published; see `packs.prepare`.
        """
        home = top / self.name
        place = self.need(size).place(home)
        if place is None:
            raise UserError(f"{home} has none of {', '.join(self.need(size).names)}")
        facts = facts_of(home, {"pictures": self.count})
        names = [name for name in open_store(place).sizes() if not name.startswith("__MACOSX")]
        if len(names) != facts["pictures"]:
            raise UserError(
                f"{place} has {len(names):,} pictures, '{self.name}' has {facts['pictures']:,}: it was not fetched to "
                "the end, or is another version; fetch it again"
            )
        part = Part(place, self.crop(size), [Picture(name) for name in names], [-1] * len(names))
        notes = {"standin": (home / MARKER).exists()}
        return packs.prepare(
            top / "prepared", self.name, self.crop(size).spec(), {"public": part}, notes, reporter, processes
        )


@dataclass(frozen=True)
class Images:
    """One image set below a folder of data sets, at one size: what `mibench data prepare ffhq` prepares.

    Args:
        name: Which image set.
        root: Folder of all data sets; empty is the environment's MIBENCH_DATA.
        image_size: Side in pixels, 8 to 1024.
    """

    name: Literal["ffhq", "metfaces", "afhq"]
    root: str = ""
    image_size: int = 64

    def __post_init__(self) -> None:
        whole("image_size", self.image_size, 8, 1024)

    @property
    def set(self) -> PublicSet:
        """The image set itself."""
        return PUBLICS[self.name]

    def needed(self) -> list[tuple[str, Need]]:
        """(folder below root, file) of what is needed."""
        return [(self.set.name, self.set.need(self.image_size))]

    def prepare(self, reporter: Reporter, processes: int = 0) -> None:
        """Check and decode; see `PublicSet.prepare`.

        Raises:
            UserError: Whatever is missing or damaged.
        """
        top = top_of(self.root, self.set.name)
        require([(top / folder, need) for folder, need in self.needed()])
        self.set.prepare(top, self.image_size, reporter, processes)

    def pack(self) -> Pack:
        """What was prepared.

        Raises:
            UserError: Nothing was.
        """
        return self.set.pack(top_of(self.root, self.set.name), self.image_size)

    def verify(self) -> None:
        """Read it all and compare its checksum.

        Raises:
            UserError: It changed.
        """
        self.pack().verify()


_FFHQ = ("https://github.com/NVlabs/ffhq-dataset", "CC BY-NC-SA 4.0")
_THUMBNAILS = Need(("thumbnails128x128", "thumbnails128x128.zip"), "70,000 faces at 128 px, 2 GB", *_FFHQ)
_FULL = Need(("images1024x1024", "images1024x1024.zip"), "70,000 faces at 1024 px, 90 GB", *_FFHQ)
_METFACES = Need(
    ("images", "images.zip"),
    "1,336 painted faces at 1024 px, 2 GB",
    "https://github.com/NVlabs/metfaces-dataset",
    "CC BY-NC 2.0",
)
_AFHQ = Need(
    ("train/dog", "afhq/train/dog"),
    "4,739 dogs at 512 px (AFHQ, not version 2)",
    "https://github.com/clovaai/stargan-v2",
    "CC BY-NC 4.0",
)

PUBLICS: Mapping[str, PublicSet] = {
    "ffhq": PublicSet("ffhq", (_THUMBNAILS, "ffhq-88"), (_FULL, "ffhq-800"), 70_000),
    "metfaces": PublicSet("metfaces", (_METFACES, "metfaces-800"), (_METFACES, "metfaces-800"), 1336),
    "afhq": PublicSet("afhq", (_AFHQ, "afhq-512"), (_AFHQ, "afhq-512"), 4739),
}
"""By name."""
