"""What an interrupted run goes on from: written atomically, read without running anything."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file, unreadable, write_atomic

__all__ = ["read_checkpoint", "write_checkpoint"]


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """What an interrupted run goes on from, with whose it is."""
    write_atomic(path, partial(torch.save, state | {"of": _owner(path)}))


def _owner(path: Path) -> str:
    """The partial run's directory and the file in it."""
    return f"{path.parent.name}/{path.name}"


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What `write_checkpoint` wrote, read without running anything.

    Raises:
        UserError: If the file is damaged, or another run's.
    """
    try:
        handle = open_file(path)
    except OSError as error:
        raise unreadable(path, error) from None
    with handle:
        try:
            with zipfile.ZipFile(handle) as file:  # what is no zip file is not ours, and never unpickled
                # torch does not compare checksums; and nothing of ours is compressed: no file unpacks to more
                stored = all(item.compress_type == zipfile.ZIP_STORED for item in file.filelist)
                whole = stored and file.testzip() is None
            handle.seek(0)
            state = torch.load(handle, map_location=device, weights_only=True) if whole else None
        except Exception:  # a damaged file makes the unpickler raise nearly anything
            state = None
    if not isinstance(state, dict):
        raise UserError(f"the checkpoint {path} is damaged; delete it and run the same command again")
    if state.get("of") != _owner(path):
        raise UserError(
            f"the checkpoint {path} is that of {state.get('of', 'another version')}; delete it and run the same "
            "command again"
        )
    return state
