"""What is not on this machine: data sets to prepare, files of weights to fetch; and planning as if it were there.

Strictly, planning refuses what is absent (`Absent`). Within `as_published()` a data set that is not prepared counts as
its publication says, and so does a published generator, so that a suite can be read, listed and costed anywhere. The
ids of such runs are those of no true run: hashes of pixels and files are missing from them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from mibench.runtime.errors import UserError

__all__ = ["STATED", "WEIGHTS", "Absent", "as_published", "located", "taken_as_published"]

STATED = "as published"
"""In a specification, in the place of the hash of what is not here."""

WEIGHTS = "weights"
"""The folder below MIBENCH_DATA that holds files of weights."""

_stated: ContextVar[bool] = ContextVar("as_published", default=False)


class Absent(UserError):
    """Something must be fetched or prepared first."""


@contextmanager
def as_published() -> Iterator[None]:
    """Within it, what is absent is planned as its publication says; what is here is planned as it is."""
    before = _stated.set(True)
    try:
        yield
    finally:
        _stated.reset(before)


def taken_as_published() -> bool:
    """Whether that is so now."""
    return _stated.get()


def located(name: Path) -> Path | None:
    """Where a file of weights lies: as given, else below MIBENCH_DATA; None if nowhere.

    Args:
        name: A path, or a name: `ffhq.pkl` may lie at $MIBENCH_DATA/weights/ffhq.pkl.
    """
    top = os.environ.get("MIBENCH_DATA", "")
    try:
        places = [name.expanduser(), *([Path(top).expanduser() / WEIGHTS / name] if top else [])]
    except RuntimeError:  # ~nobody
        places = [name]
    return next((place for place in places if os.path.exists(place)), None)
