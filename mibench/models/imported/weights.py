"""Weights as tensors and nothing else: safetensors, or torch's files read by `runtime.tensors`.

How much memory a file takes is read off its header first: 8 bytes and JSON in a safetensors file, the directory of the
zip archive in torch's. A model that does not fit is refused before a tensor is read.
"""

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mibench.models.imported.sources import regular
from mibench.runtime.errors import UserError
from mibench.runtime.files import checked, open_file, unreadable
from mibench.runtime.pixels import machine_memory
from mibench.runtime.tensors import NotTensors, NotWhole, read_tensors

__all__ = ["State", "bare", "read_state", "require_memory", "tensor_bytes"]

WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "ema", "module")
"""Keys under which training loops put the weights, besides optimisers and epochs."""

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
"""What wrappers (DataParallel, Lightning, torch.compile) put before every name."""

LARGEST_HEADER = 100_000_000
"""Bytes; safetensors refuses longer ones itself."""

USED_AT_ONCE = 2.5
"""A file's tensors, the network's own before they are filled, and room to run it."""


class State(NamedTuple):
    """Weights by name, and the classes that the file names in the order of its outputs; none where it does not."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...]


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a file, told from its header; the whole file's where it has no known header.

    Raises:
        UserError: It is missing, no file, or cannot be read.
    """
    file = regular(path, "the model")
    try:
        size = file.stat().st_size
        if file.suffix.lower() == ".safetensors":
            return sum(end - begin for begin, end in _offsets(file, size))
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return sum(entry.file_size for entry in archive.infolist())
    except OSError as error:
        raise unreadable(file, error) from None
    return size


def _offsets(path: Path, size: int) -> list[tuple[int, int]]:
    """Begin and end of every tensor of a safetensors file.

    Raises:
        UserError: The header is not one.
    """
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, max(size - 8, 0)):
            raise UserError(f"{path} is no safetensors file (its header would have {length} bytes); save it again")
        try:
            header = json.loads(file.read(length))
            pairs = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
            return [(int(begin), int(end)) for begin, end in pairs]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is no safetensors file ({error}); save it again") from None


def require_memory(path: Path) -> None:
    """Refuse a model that this machine cannot hold, before any of it is read.

    Raises:
        UserError: What its header says, and what there is.
    """
    held, there = tensor_bytes(path), machine_memory()
    if held * USED_AT_ONCE > there:
        raise UserError(
            f"{path} holds {held / 1e9:.1f} GB of tensors; using it takes about {held * USED_AT_ONCE / 1e9:.1f} GB and "
            f"this machine has {there / 1e9:.1f}: use a larger machine, or serve the model and audit it with --endpoint"
        )


def read_state(path: Path) -> State:
    """The weights of a file, out of whatever a training loop has wrapped them in; nothing in it is executed.

    Raises:
        UserError: It is no weights file, would have to be unpickled, holds a program or no tensors, or is too large.
    """
    require_memory(path)
    if path.suffix.lower() == ".safetensors":
        return State(_safetensors(path), _classes_in(_metadata(path)))
    try:
        content = read_tensors(path)
    except NotTensors as reason:
        raise UserError(
            f"{path} cannot be read as tensors alone ({reason}), and mibench unpickles nothing else: save "
            "model.state_dict() with torch.save or safetensors, or give your code with --model package.module:function"
        ) from None
    except NotWhole as reason:
        if _is_script(path):
            raise UserError(f"{path} is TorchScript, a program: rename it to .ts and give it with --model") from None
        raise UserError(f"{path} is no file of weights ({reason}); save model.state_dict() with torch.save") from None
    return State(_unwrapped(path, content), _classes_in(content if isinstance(content, Mapping) else {}))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with checked(path) as name:
            return load_file(name)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); save it again") from None


def _metadata(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    known = dict(header.get("__metadata__", {}))
    for key in ("mibench", "classes", "class_to_idx"):
        with suppress(ValueError, TypeError):  # text, as safetensors has it
            value = json.loads(known[key]) if key in known else None
            known |= value if key == "mibench" and isinstance(value, dict) else {key: value}
    return known


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _unwrapped(path: Path, content: Any) -> dict[str, Tensor]:
    """The names and tensors inside a checkpoint."""
    seen: list[str] = []
    for _ in range(4):
        if isinstance(content, tuple | list):  # (weights, epoch, ...)
            content = next((one for one in content if isinstance(one, Mapping)), content)
        if not isinstance(content, Mapping):
            break
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) >= len(content) / 2:
            return tensors
        seen = [str(name) for name in content][:6]
        inner = next((content[key] for key in WRAPPINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    what = f"a mapping of {', '.join(seen)}" if seen else type(content).__name__
    raise UserError(f"{path} holds {what}, not weights by name; save model.state_dict(), alone or under 'state_dict'")


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers that all names share."""
    names = dict(tensors)
    changed = True
    while changed and names:
        changed = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in names):
                names = {name.removeprefix(prefix): value for name, value in names.items()}
                changed = True
    return names


def _classes_in(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names that a checkpoint carries: a list, or places by name as torchvision's ImageFolder has them."""
    for key in ("classes", "class_names"):
        known = content.get(key)
        if isinstance(known, list | tuple) and all(isinstance(one, str) for one in known):
            return tuple(known)
    places = content.get("class_to_idx")
    if isinstance(places, Mapping) and sorted(places.values()) == list(range(len(places))):
        return tuple(str(name) for name in sorted(places, key=lambda name: places[name]))
    return ()
