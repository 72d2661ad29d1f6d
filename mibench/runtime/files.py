"""Files: written so that a kill at any moment leaves the old one or the new one, never half of one; read only if they
are files, so that a pipe, a device or a socket in the place of one is an error at once and no wait without end."""

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from safetensors import SafetensorError

from mibench.runtime.errors import UserError

__all__ = ["checked", "open_file", "open_lock", "read_bytes", "read_text", "unreadable", "write_atomic", "write_json"]

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def _refuse_unless_file(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def open_file(path: str | Path) -> BufferedReader:
    """Open a file for reading: links are followed, and what they lead to must be a regular file.

    Every file that a user or a results folder names is opened here. The name is looked at first, as opening a device
    may do something; what was then opened is looked at again, so that nothing can be put in its place in between.

    Raises:
        OSError: If it is missing, not readable, or no regular file; it never waits for one to be written.
    """
    _refuse_unless_file(os.stat(path), path)
    return cast(BufferedReader, _opened(path, os.O_RDONLY, "rb"))


def _opened(path: str | Path, flags: int, mode: str) -> BinaryIO:
    """The regular file that a path names, opened without waiting and looked at again."""
    descriptor = _descriptor(path, flags)
    try:
        return cast(BinaryIO, os.fdopen(descriptor, mode))
    except BaseException:
        os.close(descriptor)
        raise


def _descriptor(path: str | Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _refuse_unless_file(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: str | Path) -> bytes:
    """A file's content; see `open_file`."""
    _refuse_unless_file(os.stat(path), path)
    descriptor, parts = _descriptor(path, os.O_RDONLY), []
    try:
        size = os.fstat(descriptor).st_size
        while part := os.read(descriptor, size + 1):  # at once; what a file has grown by meanwhile too
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """A text file's content; see `open_file`.

    Raises:
        OSError: If it is no readable file.
        UnicodeDecodeError: If it is not in this encoding.
    """
    return read_bytes(path).decode(encoding)


@contextmanager
def checked(path: str | Path) -> Iterator[str]:
    """For a library that opens a file by its name: a name of the very file that `open_file` has opened.

    Raises:
        OSError: If it is no readable file.
    """
    with open_file(path) as file:
        own = f"/dev/fd/{file.fileno()}"
        yield own if os.path.exists(own) else str(path)


def open_lock(path: Path) -> BinaryIO:
    """Open or make the file whose lock stands for something else; without waiting, and only if it is one.

    Raises:
        OSError: If it cannot be written, or is no file.
    """
    return _opened(path, os.O_RDWR | os.O_CREAT, "r+b")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file in a hidden folder beside `path`, flush it to disk, then rename it into place.

    Whatever else a library puts beside its file goes with the folder; what a killed process left of it goes with the
    next try.

    Raises:
        OSError: If writing fails, whichever library wrote.
    """
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
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
