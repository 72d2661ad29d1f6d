"""Objects of a store below a URL, through fsspec: written only where there is none, or anew; failures are one line."""

import io
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file, read_bytes, write_atomic

__all__ = ["PROTOCOLS", "Objects", "StoreError"]

PROTOCOLS = ("s3", "gs", "memory", "file")
"""Kinds of stores that can be asked to write only what is not there yet."""

AGAIN = (0.2, 1.0, 3.0)
"""Seconds before an object is asked for again that was listed and is not there: some stores list before they show."""


class StoreError(UserError):
    """The store did not do what it was asked; what is finished here stays here."""


class Objects:
    """Those below a URL.

    Args:
        url: `s3://bucket/folder`, `gs://...`, `memory://...`, `file:///...`.

    Raises:
        StoreError: If there is no such kind of store here.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.protocol = url.partition("://")[0]
        if self.protocol not in PROTOCOLS:
            kinds = ", ".join(f"{one}://" for one in PROTOCOLS)
            raise UserError(f"--results {url}: results lie in a folder or in a store of {kinds}")
        if not url.partition("://")[2].strip("/"):
            raise UserError(f"--results {url} names no place; give a bucket or a folder in it: {self.protocol}://NAME")
        with self._telling("opened"):
            import fsspec

            self.fs: Any = fsspec.filesystem(self.protocol, use_listings_cache=False, skip_instance_cache=True)
            self.base = str(self.fs._strip_protocol(self.url)).rstrip("/")
        self.objects: dict[str, dict[str, Any]] = {}

    def survey(self) -> None:
        """Look at all of them.

        Raises:
            StoreError: If they cannot be listed.
        """
        with self._telling("listed"):
            try:
                found = self.fs.find(self.base, detail=True)
            except FileNotFoundError:
                if self.protocol in ("s3", "gs"):  # no bucket; what is merely empty is listed as empty
                    raise
                found = {}
        self.objects = {str(key)[len(self.base) :].lstrip("/"): info for key, info in found.items()}

    def get(self, key: str, place: Path) -> None:
        """An object as a file of this machine."""
        for pause in (*AGAIN, None):
            with self._telling(f"asked for {key}"):
                try:
                    self.fs.get_file(f"{self.base}/{key}", str(place))
                    return
                except FileNotFoundError:
                    if pause is None:
                        raise
            time.sleep(pause)

    def create(self, key: str, content: bytes | Path) -> bool:
        """Write an object if there is none; whether this was the first.

        Raises:
            StoreError: If it cannot be written.
        """
        place = f"{self.base}/{key}"
        with self._telling(f"asked to write {key}"):
            try:
                if self.protocol == "file":
                    _link(Path(place), content)
                elif isinstance(content, bytes) or self.protocol == "memory":
                    self.fs.pipe_file(
                        place, content if isinstance(content, bytes) else read_bytes(content), mode="create"
                    )
                else:
                    self.fs.put_file(str(content), place, mode="create")
            except FileExistsError:
                return False
        return True

    def write(self, key: str, content: bytes) -> None:
        """Write a small object, whatever was there."""
        with self._telling(f"asked to write {key}"):
            if self.protocol == "file":
                Path(f"{self.base}/{key}").parent.mkdir(parents=True, exist_ok=True)
                write_atomic(Path(f"{self.base}/{key}"), lambda scratch: scratch.write_bytes(content))
            else:
                self.fs.pipe_file(f"{self.base}/{key}", content)

    def read(self, key: str) -> bytes | None:
        """A small object; None where there is none."""
        with self._telling(f"asked for {key}"):
            try:
                return cast(bytes, self.fs.cat_file(f"{self.base}/{key}"))
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        """Delete an object of a worker's, if it is there and may be deleted."""
        with suppress(StoreError, FileNotFoundError), self._telling(f"asked to delete {key}"):
            self.fs.rm_file(f"{self.base}/{key}")
        self.objects.pop(key, None)

    def below(self, prefix: str) -> dict[str, dict[str, Any]]:
        """The objects whose key begins so, as of the last look, by the rest of their keys."""
        return {key.removeprefix(prefix): info for key, info in self.objects.items() if key.startswith(prefix)}

    def exists(self, key: str) -> bool:
        """Whether there is one now."""
        with self._telling(f"asked for {key}"):
            return bool(self.fs.exists(f"{self.base}/{key}"))

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Every way a store can fail, in one line: fsspec's backends raise what their libraries raise."""
        try:
            yield
        except (FileExistsError, StoreError):
            raise
        except ImportError as error:
            raise StoreError(
                f"{self.url} needs a package that is missing ({error}); install it with: pip install 'mibench[store]'"
            ) from None
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.url} was {what} and has no such place ({_said(error)}); make the bucket first"
            ) from None
        except PermissionError as error:
            raise StoreError(f"{self.url} was {what} and refused ({_said(error)}); mend your access to it") from None
        except Exception as error:
            raise StoreError(f"{self.url} was {what} and failed ({_said(error)}); mend that and run it again") from None


def _said(error: Exception) -> str:
    lines = (str(error) or type(error).__name__).splitlines()
    return lines[0] if isinstance(error, OSError) else f"{type(error).__name__}: {lines[0]}"


def _link(place: Path, content: bytes | Path) -> None:
    """In a folder: write beside it, flush, and give it its name only where nothing has it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex}")  # processes of two hosts may have one number
    try:
        with (
            scratch.open("wb") as file,
            io.BytesIO(content) if isinstance(content, bytes) else open_file(content) as source,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        os.link(scratch, place)
    finally:
        scratch.unlink(missing_ok=True)
