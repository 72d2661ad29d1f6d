"""Where the authors' pictures lie: a folder, a zip or an uncompressed tar, read member by member from any process."""

import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file

__all__ = ["SUFFIXES", "Folder", "Store", "Tar", "Zip", "open_store"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for a picture."""


class Store(ABC):
    """Pictures by name; `a/b.jpg` is b.jpg in folder a."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Name of every picture -> its bytes and when it was written (in ns), sorted by name; nothing is decoded."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A picture's file.

        Raises:
            OSError, KeyError: It is not there, or not readable.
        """


class Folder(Store):
    """Every picture at any depth below a folder; hidden ones are passed over."""

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Walks the tree once; links that lead out of it are followed, as a data set may lie on another disk."""
        states = {}
        for top, folders, files in os.walk(self.place, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            start = os.path.relpath(top, self.place)
            for name in files:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    status = os.stat(os.path.join(top, name))
                    path = name if start == "." else f"{start}/{name}"
                    states[path.replace(os.sep, "/")] = (status.st_size, status.st_mtime_ns)
        return dict(sorted(states.items()))

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        with open_file(self.place / name) as file:
            return file.read()


class Zip(Store):
    """A zip archive; nothing is unpacked to disk."""

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        """Its directory, read once in each process."""
        return zipfile.ZipFile(self.place)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Checksums stand in for times."""
        infos = [info for info in self.archive.infolist() if info.filename.lower().endswith(SUFFIXES)]
        return {info.filename: (info.file_size, info.CRC) for info in sorted(infos, key=lambda info: info.filename)}

    def read(self, name: str) -> bytes:
        """Unpacked, its checksum compared."""
        return self.archive.read(name)


class Tar(Store):
    """An uncompressed tar archive; nothing is unpacked to disk."""

    @cached_property
    def members(self) -> dict[str, tarfile.TarInfo]:
        """Its directory: reads every header once."""
        with tarfile.open(self.place, "r:") as archive:
            return {member.name.removeprefix("./"): member for member in archive if member.isfile()}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Times are the archive's."""
        files = sorted(name for name in self.members if name.lower().endswith(SUFFIXES))
        return {name: (self.members[name].size, int(self.members[name].mtime)) for name in files}

    def read(self, name: str) -> bytes:
        """The member's bytes, from their place in the file."""
        member = self.members[name]
        with open_file(self.place) as file:
            file.seek(member.offset_data)
            return file.read(member.size)


def open_store(place: Path) -> Store:
    """A folder, or an archive that is checked to be whole as far as its directory tells.

    Raises:
        UserError: A web page in the place of an archive, a download that stopped early, another kind of file.
    """
    if place.is_dir():
        return Folder(place)
    again = "fetch it again, and compare its size with that of the page it comes from"
    try:
        with open_file(place) as file:
            start, size = file.read(512), place.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror}") from None
    if start.lstrip()[:1] == b"<":
        raise UserError(f"{place} is a web page of {size:,} bytes, not an archive (a quota or consent page?); {again}")
    store: Store = Zip(place) if place.suffix == ".zip" else Tar(place)
    try:
        store.sizes()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        kind = "zip" if place.suffix == ".zip" else "tar"
        raise UserError(
            f"{place} ({size:,} bytes) is no whole {kind} archive ({error}): the download stopped early or it is "
            f"another file; {again}"
        ) from None
    last = (
        max((member.offset_data + member.size for member in store.members.values()), default=0)
        if (isinstance(store, Tar))
        else 0
    )
    if last > size:
        raise UserError(f"{place} ends after {size:,} of {last:,} bytes: the download stopped early; {again}")
    return store
