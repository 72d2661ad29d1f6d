"""Writing files so that a kill at any moment leaves the old file or the new one, never half of one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

__all__ = ["write_atomic", "write_json"]


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it into place.

    Raises:
        OSError: If writing fails, whichever library wrote.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            write(scratch)
        except (RuntimeError, SafetensorError) as error:  # how torch.save and safetensors tell a full disk
            raise OSError(str(error).splitlines()[0]) from error
        with scratch.open("rb+") as handle:
            os.fsync(handle.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Readable, stable JSON, written atomically; NaN is refused (use null)."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
