"""Where the pixels of data sets lie: in memory, or beyond a limit in files that the kernel pages in and out.

All live tensors of `empty`, `take_rows` and `concatenate` together take at most MIBENCH_MEMORY (GB; a quarter of the
machine's memory by default) of this process's memory. Each further one is the shared mapping of a file without a name
in the cache folder, which is gone with its process however that ends. It is indexed like any tensor, and the limit
changes no byte, no fingerprint and no run id.
"""

import itertools
import json
import os
import re
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mibench.runtime.errors import UserError
from mibench.runtime.files import checked, open_file

__all__ = [
    "cache_folder",
    "concatenate",
    "empty",
    "machine_memory",
    "mapped",
    "memory_left",
    "memory_limit",
    "read",
    "take_rows",
]

_GB = 10**9
_CGROUP = ("memory.max", "memory/memory.limit_in_bytes")
"""Where containers tell their limit, by version."""

_held: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
_number = itertools.count()


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mibench`, `~/.cache/mibench` by default; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mibench"


def memory_limit() -> int:
    """How many bytes of pixels this process may hold in memory.

    Raises:
        UserError: If MIBENCH_MEMORY is no number.
    """
    given = os.environ.get("MIBENCH_MEMORY")
    if given is None:
        return machine_memory() // 4
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", given):
        raise UserError(
            f"MIBENCH_MEMORY must be a number of GB such as 0.5 or 16 (0 holds no pixels in memory), got '{given}'"
        )
    return int(float(given) * _GB)


def machine_memory() -> int:
    """Bytes of memory this machine or container has."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _CGROUP:
        with suppress(OSError, ValueError):  # 'max', or no such file
            limits.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(limits)


def memory_left() -> int:
    """How many bytes of the limit are left."""
    return memory_limit() - sum(array.nbytes for array in list(_held.values()))


def empty(shape: Sequence[int]) -> UInt8[Tensor, "..."]:
    """Pixels to be written: in memory while there is room, else in a file.

    Raises:
        UserError: If the disk is full or the cache folder not writable.
    """
    size = int(np.prod(shape, dtype=np.int64))
    array: Any
    if size <= max(0, memory_left()):
        _held[next(_number)] = array = np.empty(shape, np.uint8)
    else:
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a SIGBUS at some later write
                    os.posix_fallocate(file.fileno(), 0, size)
                array = np.memmap(file, np.uint8, "r+", shape=tuple(shape))
        except OSError as error:
            raise UserError(
                f"{size / _GB:.3g} GB of pixels exceed the memory for them and the folder {folder} cannot take them "
                f"({error.strerror}); make room there, name a folder on another disk with XDG_CACHE_HOME, or allow "
                "more memory with MIBENCH_MEMORY (in GB)"
            ) from None
    return torch.from_numpy(array)


def take_rows(pixels: UInt8[Tensor, "n ..."], rows: Int64[Tensor, " m"]) -> UInt8[Tensor, "m ..."]:
    """A copy of some rows, in order; nothing else is held meanwhile. On an accelerator, the copy lies there too."""
    if pixels.device.type != "cpu":
        return pixels[rows]
    out = empty((len(rows), *pixels.shape[1:]))
    return torch.index_select(pixels, 0, rows.cpu(), out=out)


def concatenate(parts: Sequence[UInt8[Tensor, "_ ..."]]) -> UInt8[Tensor, "n ..."]:
    """The parts one after the other, copied; nothing else is held meanwhile."""
    out = empty((sum(len(part) for part in parts), *parts[0].shape[1:]))
    return torch.cat(list(parts), out=out)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a safetensors file; images beyond the limit stay in the file (`mapped`).

    Raises:
        SafetensorError: If the file is damaged.
        OSError: If it is missing or not readable.
    """
    if file.stat().st_size > memory_left():
        with suppress(SafetensorError):  # it holds more than images
            return mapped(file)
    with checked(file) as name, safe_open(name, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118


def mapped(file: Path) -> tuple[dict[str, UInt8[Tensor, "..."]], dict[str, str]]:
    """The uint8 tensors and the notes of a safetensors file, which itself is their memory: never write to them.

    safetensors' own mapping can be written to, in private, and so the kernel refuses one larger than the machine.

    Raises:
        SafetensorError: If the file is damaged or holds something else.
        OSError: If it is missing or not readable.
    """
    with checked(file) as name, safe_open(name, "numpy") as stored:  # checks sizes and offsets
        notes = stored.metadata() or {}
    with open_file(file) as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = {name: value for name, value in json.loads(handle.read(size)).items() if name != "__metadata__"}
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] != "U8":
                raise SafetensorError(f"{name} is {entry['dtype']}, not U8")
            start = 8 + size + entry["data_offsets"][0]
            array = np.memmap(handle, np.uint8, "r", offset=start, shape=tuple(entry["shape"]))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                tensors[name] = torch.from_numpy(array)
    return tensors, notes
