"""Torch's files read as tensors, numbers and containers alone: what would have to be run to be read is refused."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from mibench.runtime.files import open_file

__all__ = ["NotTensors", "NotWhole", "read_tensors"]

_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError)
"""What torch raises over a file that is cut off, damaged or none of its own."""


class NotTensors(Exception):
    """The file holds something that would have to be unpickled; says what, in a few words."""


class NotWhole(Exception):
    """The file is no file of torch's, or not all of one; says why, in a few words."""


def read_tensors(path: Path, values: tuple[type, ...] = ()) -> Any:
    """What is in a file of torch's, on the CPU; nothing in it is run.

    Args:
        path: The file.
        values: Classes that may be in it too because they only hold values.

    Raises:
        NotTensors: It holds anything else.
        NotWhole: It cannot be read.
    """
    try:
        with open_file(path) as file, warnings.catch_warnings(), torch.serialization.safe_globals(list(values)):
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NotTensors(str(error).split("\n", 1)[0].rstrip(".")) from None
    except _DAMAGED as error:
        raise NotWhole(str(error).split("\n", 1)[0] or type(error).__name__) from None
