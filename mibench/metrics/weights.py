"""Published weights of the judging networks: found on this machine, checked, read without executing anything.

Looked for in the folder named by MIBENCH_WEIGHTS, then in torch's caches. Nothing is downloaded unless
allowed.
"""

import hashlib
import os
import shutil
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mibench.metrics.declaration import Unavailable
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file

__all__ = ["WeightFile", "fill", "locate", "read"]


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Args:
        names: File names it is known under; the first is the one a download gets. url: Where it is published.
            sha256: First digits of its hash; empty where the publisher gives none, then only names and shapes
            are checked.
    """

    names: tuple[str, ...]
    url: str
    sha256: str


def _folders() -> list[Path]:
    """Where weights are looked for, in order; the second is where a download goes."""
    own = os.environ.get("MIBENCH_WEIGHTS")
    if own and not Path(own).is_dir():
        raise UserError(f"MIBENCH_WEIGHTS is '{own}', not a folder; name the folder of the weight files")
    hub = Path(torch.hub.get_dir())
    # facenet-pytorch keeps its files beside torch's hub folder, not in it.
    return [*([Path(own)] if own else []), hub / "checkpoints", hub.parent / "checkpoints"]


def locate(metric: str, file: WeightFile, allow_download: bool = False) -> Path | Unavailable:
    """Path of a weight file, or why there is none. Without `allow_download` the network is never touched.

    A download is written under a temporary name and renamed once complete; ten silent seconds end it.
    """
    folders = _folders()
    for folder in folders:
        for name in file.names:
            if (folder / name).is_file():
                return folder / name
    goal = Path(torch.hub.get_dir()) / "checkpoints" / file.names[0]
    how = f"fetch {file.url} where there is internet; put it at {goal}, or name its folder in MIBENCH_WEIGHTS"
    if not allow_download:
        return Unavailable(metric, f"its weights {file.names[0]} are not on this machine", how)
    partial = None
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(file.url, timeout=10) as source,
            tempfile.NamedTemporaryFile(dir=goal.parent, delete=False) as out,
        ):
            partial = Path(out.name)
            shutil.copyfileobj(source, out)
        partial.replace(goal)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        return Unavailable(metric, f"the download of {file.names[0]} failed: {error}", how)
    return goal


def read(path: Path, file: WeightFile) -> dict[str, Tensor]:
    """The state dict in a weight file, on the CPU. Pickled code is refused, never run.

    Raises:
        UserError: the file is not the published one, is truncated, or does not hold a state dict.
    """
    try:
        stream = open_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fetch {file.url} again") from None
    with stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not digest.startswith(file.sha256):
            raise UserError(
                f"{path} is not the published file: its sha256 begins with {digest[:8]}, not {file.sha256}; "
                f"delete it and fetch {file.url} again"
            )
        try:
            stream.seek(0)
            state = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make the reader fail in any way it can
            what = type(error).__name__
            raise UserError(f"{path} cannot be read as weights ({what}); fetch {file.url} again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict; fetch {file.url} again")
    return state


def fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give a model built on the meta device its weights; then freeze it in evaluation mode.

    Every parameter must be there with its shape. Old files lack batch counters, which play no part in
    evaluation.

    Raises:
        UserError: a missing, unexpected or wrongly shaped tensor.
    """
    counters = {key: torch.tensor(0) for key in model.state_dict() if key.endswith("num_batches_tracked")}
    try:
        model.load_state_dict({**counters, **state}, strict=True, assign=True)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n", 2)[1:2]).strip()
        raise UserError(f"{path} does not fit {type(model).__name__}: {first[:200]}") from error
    model.requires_grad_(False).eval()
