"""A pickle opened without running anything in it.

A pickle is a program: it names functions and calls them. Here every name on a short list stands for an inert class of
its own, so that a call makes an object that remembers its arguments, and any other name ends the reading. What is then
read out of these objects are tensors, numbers and texts. The source code that NVIDIA's files carry stays a text.

References:
    | pickle: Python object serialization, Restricting Globals (the Python standard library)
    | https://docs.python.org/3/library/pickle.html#restricting-globals
"""

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibench.runtime.errors import UserError
from mibench.runtime.files import read_bytes, unreadable

__all__ = ["Called", "number", "read_pickle", "state_of", "tensor"]

NAMES = {
    "builtins": ("object", "set", "frozenset", "list", "dict", "bytearray"),
    "__builtin__": ("object", "set", "frozenset", "list", "dict", "bytearray"),
    "_codecs": ("encode",),
    "collections": ("OrderedDict",),
    "copy_reg": ("_reconstructor",),
    "copyreg": ("_reconstructor",),
    "dnnlib.tflib.network": ("Network",),
    "dnnlib.util": ("EasyDict",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "torch": ("Size", "device"),
    "torch._utils": ("_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2"),
    "torch.storage": ("_load_from_bytes",),
    "torch_utils.persistence": ("_reconstruct_persistent_obj",),
}
"""Module -> what a file of StyleGAN2 names of it. Nothing of this is imported or called."""

FLOATS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
"""Types of numbers that numpy wraps: a size of weights, divided."""

BROKEN = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError),
    *(OverflowError, RecursionError, MemoryError),
)
"""How a pickle that is none, or only a part of one, is told."""


class Called(dict[Any, Any]):
    """What a pickle made by a call: with which arguments, the state it was given, its items. A stand-in; see `_Inert`.

    Args:
        args: As they stand in the pickle.
    """

    name = ""
    """`module.name` of what was called."""

    def __new__(cls, *args: Any) -> "Called":
        """Also what `object.__new__` in a pickle comes to."""
        made = super().__new__(cls)
        made.args, made.state, made.listed = args, None, []
        return made

    def __init__(self, *args: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.listed: list[Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, one: Any) -> None:
        """An item of a list."""
        self.listed.append(one)

    def extend(self, more: Any) -> None:
        """Items of a list."""
        self.listed.extend(more)


class _Inert(pickle.Unpickler):
    """Every name is a class that belongs to this reading alone: whatever a pickle sets on it is gone with it."""

    def __init__(self, content: io.BytesIO, path: Path) -> None:
        super().__init__(content)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """An inert class.

        Raises:
            UserError: The name is none that a StyleGAN2 needs.
        """
        if name not in NAMES.get(module, ()):
            raise UserError(
                f"{self.path} asks for {module}.{name}, which no file of a StyleGAN2 needs; nothing of it was run: get "
                "the file from its authors again, or save its state dict with torch.save"
            )
        return type("Stands", (Called,), {"name": f"{module}.{name}"})


def read_pickle(path: Path) -> Any:
    """The content of a pickle with `Called` in the place of everything that it would have made.

    Raises:
        UserError: It cannot be read, is no whole pickle, or names something that no StyleGAN2 needs.
    """
    try:
        content = io.BytesIO(read_bytes(path))
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        _survey(content)
        content.seek(0)
        return _Inert(content, path).load()
    except BROKEN as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise UserError(f"{path} is not a whole pickle ({reason}): fetch it again and compare its size") from None


def _survey(content: io.BytesIO) -> None:
    """Refuse a memo of more places than the pickle has commands: Python makes room for all of them at once.

    Raises:
        ValueError: It has one, or is cut off.
    """
    highest = commands = 0
    for command, value, _ in pickletools.genops(content):
        commands += 1
        if command.name in ("PUT", "BINPUT", "LONG_BINPUT") and value is not None:
            highest = max(highest, int(value))
    if highest > commands:
        raise ValueError(f"place {highest:,} of a memo in {commands:,} commands")


def state_of(node: Any, path: Path) -> tuple[str, dict[str, Any]]:
    """The name and attributes of an object that NVIDIA's `persistence` has pickled: a class's name, a state, and the
    class's source, which is left alone.

    Raises:
        UserError: It is something else.
    """
    known = node.args[0] if isinstance(node, Called) and node.name.endswith("_persistent_obj") and node.args else None
    if not isinstance(known, Mapping) or not isinstance(known.get("state"), Mapping):
        raise UserError(f"{path} holds {described(node)} where a network of NVIDIA's code should be")
    return str(known.get("class_name")), dict(known["state"])


def described(node: Any) -> str:
    """What it is, for an error."""
    if isinstance(node, Called):
        return f"an object of {node.name}"
    if isinstance(node, Mapping):
        return f"a mapping of {', '.join(str(key) for key in list(node)[:6]) or 'nothing'}"
    return f"a {type(node).__name__}"


def tensor(node: Any, path: Path) -> Tensor:
    """A tensor or parameter, as float32.

    Raises:
        UserError: It is none, or its storage is not a storage, or too short.
    """
    if isinstance(node, Called) and node.name.endswith("_rebuild_parameter") and node.args:
        return tensor(node.args[0], path)
    if not (isinstance(node, Called) and "_rebuild_tensor" in node.name and len(node.args) >= 4):
        raise UserError(f"{path} holds {described(node)} where a tensor should be")
    storage, offset, size, stride = node.args[:4]
    if not (isinstance(storage, Called) and storage.name.endswith("_load_from_bytes") and storage.args):
        raise UserError(f"{path} holds {described(storage)} where the numbers of a tensor should be")
    try:
        # torch's own reader of nothing but tensors; kept, as tensors may share a storage.
        if not isinstance(storage.state, torch.TypedStorage):
            storage.state = torch.load(io.BytesIO(storage.args[0]), map_location="cpu", weights_only=True)
        numbers, kind = storage.state._untyped_storage, storage.state.dtype
        known = torch.tensor([], dtype=kind)
        if math.prod(size) * kind.itemsize > numbers.nbytes() or not kind.is_floating_point:
            raise ValueError(f"{tuple(size)} numbers of {kind} in a storage of {numbers.nbytes()} bytes")
        known.set_(numbers, offset, tuple(size), tuple(stride))
        return known.to(torch.float32, copy=True).contiguous()
    except (*BROKEN, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise UserError(f"{path} holds a tensor that cannot be read ({reason}); nothing of it was run") from None


def number(node: Any, path: Path) -> float:
    """A number, numpy's included.

    Raises:
        UserError: It is none.
    """
    if isinstance(node, int | float):
        return float(node)
    if isinstance(node, Called) and node.name.endswith(".scalar") and len(node.args) == 2:
        kind, value = node.args
        code = kind.args[0] if isinstance(kind, Called) and kind.args else ""
        if code in FLOATS and isinstance(value, bytes) and len(value) == np.dtype(code).itemsize:
            return float(np.frombuffer(value, code)[0])
    raise UserError(f"{path} holds {described(node)} where a number should be")
