"""Where a rehearsal happens: a folder of its own with stand-in data and weights, to which the environment points."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mibench.experiments.rehearsal.smaller import SIDE
from mibench.models.base import no_larger_than
from mibench.runtime.absent import located
from mibench.runtime.errors import UserError

__all__ = ["MARK", "place"]

MARK = "REHEARSAL.txt"
"""A file in a folder that is kept, which says what the folder is."""

TOLD = (
    "A rehearsal of mibench: its networks were trained for seconds on stand-in data, and its numbers say nothing.\n"
    "`mibench report`, `mibench leaderboard` and `mibench zoo add` refuse its runs.\n"
)


@contextmanager
def place(keep: Path | None = None, needed: Iterable[str] = ()) -> Iterator[Path]:
    """A folder with `data/`, `torch/` and `results/`; while it lasts, MIBENCH_DATA and TORCH_HOME are the first two,
    weights that lie in torch's own cache or that the suite states are linked from where they are, and networks that
    take images of any side take small ones. It is removed at the end, however that comes.

    Args:
        keep: An empty or new folder in the place of a temporary one; it is not removed.
        needed: Files of weights that the suite states.

    Raises:
        UserError: The folder to keep is not empty, or cannot be made.
    """
    root = Path(tempfile.mkdtemp(prefix="mibench-rehearsal-")) if keep is None else _empty(keep)
    cached = Path(torch.hub.get_dir()) / "checkpoints"
    stated = {name: located(Path(name)) for name in needed}
    try:
        for name in ("data/weights", "results", "torch/hub/checkpoints"):
            (root / name).mkdir(parents=True)
        with suppress(OSError):
            for file in cached.iterdir():
                (root / "torch/hub/checkpoints" / file.name).symlink_to(file.resolve())
        for name, here in stated.items():
            if here is not None:
                (root / "data/weights" / Path(name).name).symlink_to(here.resolve())
        with _environment(MIBENCH_DATA=root / "data", TORCH_HOME=root / "torch"), no_larger_than(SIDE):
            yield root
    finally:
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)


def _empty(keep: Path) -> Path:
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise UserError(
                f"--keep {keep} is not empty; a rehearsal is kept in a new or an empty folder, name another"
            )
        (keep / MARK).write_text(TOLD, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot keep the rehearsal in {keep}: {error.strerror or error}; name another folder"
        ) from None
    return keep.absolute()


@contextmanager
def _environment(**values: Path) -> Iterator[None]:
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in values}
    os.environ |= {name: str(value) for name, value in values.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
