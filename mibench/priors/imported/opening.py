"""The file of a generator, whichever format it has."""

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path

from mibench.models.imported.sources import regular
from mibench.models.imported.weights import require_memory
from mibench.priors.imported.nvidia import read_nvidia
from mibench.priors.imported.rosinality import read_rosinality
from mibench.priors.imported.weights import Weights
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file
from mibench.runtime.tensors import NotTensors, NotWhole, read_tensors

__all__ = ["FORMATS", "read_generator"]

FORMATS = (".pkl", ".pickle", ".pt", ".pth")
"""How the files of generators end."""

LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""A number with which torch's files begin that are no zip archives; two bytes for the protocol stand before it."""


def read_generator(path: Path) -> Weights:
    """The networks in a file: NVIDIA's pickle or rosinality's checkpoint. Nothing in it is run.

    Raises:
        UserError: It is missing, cut off, hostile, too large, or holds something else; says what.
    """
    file = regular(path, "the generator")
    require_memory(file)
    with open_file(file) as opened:
        begin = opened.read(64)
    if not begin:
        raise UserError(f"{path} is empty: fetch it again")
    if zipfile.is_zipfile(file) or begin[2:].startswith(LEGACY):
        return _torch_file(file)
    if begin.startswith(b"PK"):
        raise UserError(f"{path} is cut off: it begins as a file of torch and has no end; fetch it again")
    if begin.lstrip()[:1] == b"<" or begin.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a page or a pointer to a file ({begin[:30]!r}), not the file: fetch it again")
    return read_nvidia(file)


def _torch_file(path: Path) -> Weights:
    try:
        # The options of a training run, which rosinality's checkpoints carry.
        content = read_tensors(path, (argparse.Namespace,))
    except NotTensors as reason:
        raise UserError(
            f"{path} cannot be read as tensors alone ({reason}), and nothing of it was run: get it from its authors "
            "again, or save its state dict"
        ) from None
    except NotWhole as reason:
        raise UserError(f"{path} is not a whole file of torch ({reason}): fetch it again") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint of rosinality/stylegan2-pytorch")
    for key, value in content.items():
        if isinstance(value, Mapping) and any("epilogue" in str(name) for name in value):
            raise UserError(
                f"{path} ({key}) is a StyleGAN1 or a StyleGAN2 of GenForce; mibench imports NVIDIA's pickles and "
                "rosinality's checkpoints of StyleGAN2: take one of those"
            )
    return read_rosinality(path, content)
