"""Data sets that torchvision fetches and reads itself: the first half of the classes private, the others public."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mibench.core import Dataset, Split
from mibench.runtime.errors import UserError

__all__ = ["fetch", "halves", "hash_of", "opened"]

FOLDERS = {"MNIST": "MNIST/raw", "EMNIST": "EMNIST/raw", "CIFAR10": "cifar-10-batches-py"}
"""Where torchvision keeps each, below root."""


def _open(name: str, root: str, download: bool) -> tuple[Any, Any]:
    from torchvision import datasets  # slow to import, rarely wanted

    given = root or os.environ.get("MIBENCH_DATA", "")
    if not given:
        raise UserError(
            f"{name} needs the folder that holds {FOLDERS[name]}: give --set data.root=DIR or set MIBENCH_DATA=DIR; "
            f"`mibench data prepare {name.lower()} --root DIR` fetches it"
        )
    more = {"split": "letters"} if name == "EMNIST" else {}
    try:
        top = Path(given).expanduser()
        if download:
            top.mkdir(parents=True, exist_ok=True)
        train, test = (getattr(datasets, name)(top, train=train, download=download, **more) for train in (True, False))
    except (RuntimeError, OSError, ValueError) as error:  # RuntimeError: not found, another file, nobody's ~home
        told = (
            f"it could not be fetched ({str(error).splitlines()[0]}); fetch it elsewhere and copy the folder here"
            if download
            else f"run: mibench data prepare {name.lower()} --root {given}"
        )
        raise UserError(
            f"root = '{given}' does not hold torchvision's {name} ({FOLDERS[name]}/), whole; {told}"
        ) from None
    return train, test


def fetch(name: str, root: str) -> None:
    """Let torchvision fetch what is missing; it compares checksums.

    Raises:
        UserError: It cannot.
    """
    try:
        _open(name, root, False)
    except UserError:
        _open(name, root, True)


def opened(name: str, root: str) -> tuple[Any, Any]:
    """torchvision's training and test set.

    Raises:
        UserError: They are not there.
    """
    return _open(name, root, False)


def hash_of(*splits: Split) -> str:
    """sha256 over the splits."""
    return hashlib.sha256("".join(split.fingerprint() for split in splits).encode()).hexdigest()


def halves(
    name: str, train: Split, test: Split, names: tuple[str, ...], private: int, flip: bool, card: Mapping[str, Any]
) -> Dataset:
    """Classes below `private` are private; the training pictures of the others are public, and distractors too.

    Args:
        name: The data set's name.
        train: The official training pictures.
        test: The official test pictures: of private classes they are held out, of others they are not used.
        names: Of all classes.
        private: How many are private.
        flip: A mirrored picture shows the same class.
        card: The module's CARD.
    """
    own, held = ((split.labels < private).nonzero()[:, 0] for split in (train, test))
    others = train.take((train.labels >= private).nonzero()[:, 0])
    public = Split(others.images, others.labels - private)
    return Dataset(
        name=name,
        classes=names[:private],
        train=train.take(own),
        heldout=test.take(held),
        public=public,
        distractors=public,
        distractors_are_public=True,
        flip=flip,
        card={
            **card,
            "splits": f"the first {private} classes private; the official test pictures of these held out",
            "public_people": names[private:],
            "converted": {},
        },
    )
