"""Writing files so that a kill at any moment leaves the old file or the new one, never half of one."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mibench.runtime.errors import UserError

__all__ = ["unreadable", "write_atomic", "write_json"]


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file in a hidden folder beside `path`, flush it to disk, then rename it into place.

    Whatever else a library puts beside its file goes with the folder; what a killed process left of it goes with the
    next try.

    Raises:
        OSError: If writing fails, whichever library wrote.
    """
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused as long as its writer lives
                if os.path.samestat(os.fstat(handle), left.stat()):  # not its writer's next one of the same name
                    shutil.rmtree(left)
            finally:
                os.close(handle)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written = scratch / path.name
    lock = _own(scratch)
    try:
        try:
            write(written)
        except (RuntimeError, SafetensorError) as error:  # how torch.save and safetensors tell a full disk
            raise OSError(str(error).splitlines()[0]) from error
        with written.open("rb+") as file:
            os.fsync(file.fileno())
        written.chmod(scratch.stat().st_mode & 0o666)  # safetensors makes files that nobody else may read
        written.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _own(folder: Path) -> int:
    """Make a folder and lock it; again if somebody took it for a dead writer's before it was locked."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system that knows no such locks: there nobody takes it away
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            return handle
        os.close(handle)


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that the system would not read, though it may be whole: nothing to delete."""
    return UserError(f"cannot read {path}: {error.strerror or error}; mend that and run the same command again")


def write_json(path: Path, value: Any) -> None:
    """Readable, stable JSON, written atomically; NaN is refused (use null)."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
