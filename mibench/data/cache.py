"""Slow results kept on disk: tensors that took more than 3 s to make, by the hash of what they were made from.

The folder is `$XDG_CACHE_HOME/mibench` (`~/.cache/mibench` by default); delete it whenever you like.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mibench.runtime.files import open_file, write_atomic
from mibench.runtime.pixels import cache_folder, read

__all__ = ["cache_folder", "cached", "hash_of"]

_SLOW_S = 3.0


def hash_of(*parts: object, files: Iterable[Path] = ()) -> str:
    """sha256 over the parts' texts and the files' bytes, in order.

    Name the source files of the code that makes the result among the files, and no stale result is ever read.
    """
    digest = hashlib.sha256(repr(parts).encode())
    for file in files:
        with open_file(file) as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def cached(
    key: str, make: Callable[[], tuple[dict[str, Tensor], dict[str, str]]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `make()` returns (tensors by name, notes by name), read from the cache if it has `key`.

    Treat them as read only: beyond the limit of `mibench.pixels` images are the file itself.
    A cache that is damaged, full or not writable is worked around: the result is made again.
    """
    file = cache_folder() / f"{key}.safetensors"
    with suppress(OSError, RuntimeError, SafetensorError):
        return read(file)
    start = time.monotonic()
    tensors, notes = make()
    if time.monotonic() - start > _SLOW_S:
        with suppress(OSError, SafetensorError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, lambda scratch: save_file(tensors, scratch, metadata=notes))
    return tensors, notes
