"""Weights that somebody else trained, brought in as a target or an evaluation model of a data set: `--weights FILE`.

The file is recognised by its content (`models.published`), what it wants is found out by asking it about the data set's
own pictures (`models.imported.probe`), and the order of its outputs is verified on held-out ones when it is measured.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Dataset, augment
from mibench.experiments.auditing import read_classes
from mibench.metrics.robustness import spread
from mibench.models import published
from mibench.models.imported import weights
from mibench.models.imported.opened import Opened
from mibench.models.imported.opening import open_source
from mibench.models.imported.probe import find
from mibench.models.imported.sources import read_source, regular
from mibench.models.imported.ways import Given, Pictures
from mibench.plugins.registry import Choice
from mibench.runs import Run
from mibench.runtime.absent import located
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import generator
from mibench.stages import artifacts, import_target

__all__ = ["bring", "pictures"]

SHOWN = 256
"""Pictures of each split, spread over the people, that a network is asked about."""


def bring(
    file: Path,
    model: str | None,
    data: Choice,
    root: Path,
    *,
    role: Literal["targets", "evaluators"] = "targets",
    classes: str | None = None,
    precision: str = "fp32",
    reporter: Reporter | None = None,
) -> tuple[Run, list[str]]:
    """The run that brings a file of weights in, and what was found out about it, a line each; nothing is written.

    Args:
        file: Weights, safetensors or torch's, as given or below MIBENCH_DATA/weights; nothing in them is executed.
        model: Its architecture; recognised by the file's names and shapes if absent.
        data: Whose people it knows.
        root: The results folder.
        role: What it is brought in as.
        classes: A file of its outputs' names, one a line in their order, or `matched` for the naming that fits best;
            the data set's own order, verified, if absent.
        precision: fp32 or bf16; the network itself runs in fp32.
        reporter: Told of the data set's progress.

    Raises:
        UserError: The file cannot be read as tensors alone, is of another architecture or unknown, has fewer classes
            than the data set, or no way of asking it names the pictures rightly (says what was seen, and whether
            another order of its classes would).
    """
    known = regular(located(file) or file, "--weights")
    recognised = published.recognise(weights.bare(weights.read_state(known).tensors))
    source = read_source(published.named(model, recognised, str(file)), known, None)
    opened = open_source(source)
    _, inputs = artifacts.dataset_spec(data)
    shown = pictures(artifacts.open_dataset(inputs, reporter))
    names = read_classes(classes) if classes not in (None, "matched") else None
    try:
        found = find(opened, shown, Given(classes=names, matched=classes == "matched"))
    except UserError as refused:
        if classes is not None:
            raise
        raise _permuted(file, opened, shown) or refused from None
    run = import_target.plan(root, data, source, found, opened.family, precision, role)
    said = [recognised.told] if recognised is not None and recognised.told not in found.notes else []
    return run, [*said, *found.told, *found.notes]


def _permuted(file: Path, opened: Opened, shown: Pictures) -> UserError | None:
    """The error for a network whose outputs are the data set's people in another order; None where no order fits."""
    try:
        matched = find(opened, shown, Given(matched=True))
    except UserError:
        return None
    order = matched.wanted.order
    moved = [person for person in range(len(shown.names)) if order[person] != person]
    odd = ", ".join(f"{shown.names[person]} is output {order[person]}" for person in moved[:4])
    odd += ", ..." if len(moved) > 4 else ""
    return UserError(
        f"{file} knows the data set's people in another order: as they are numbered nothing fits, and matched "
        f"one-to-one with its outputs it names {matched.way.accuracy:.0%} of {matched.way.n} pictures rightly, "
        f"{len(moved)} of {len(shown.names)} people being moved ({odd}): take this order with --classes matched, or "
        "give your own with --classes FILE, one name a line"
    )


def pictures(data: Dataset) -> Pictures:
    """Pictures of a data set, learnt and held-out, at any size and in grey."""
    parts = [split.take(spread(split.labels, SHOWN)) for split in (data.train, data.heldout)]
    images = torch.cat([part.images.cpu() for part in parts])
    labels = torch.cat([part.labels.cpu() for part in parts])
    learnt = torch.arange(len(labels)) < len(parts[0])
    # Learnt and held-out in turn, as those are asked about first that come first.
    order = torch.randperm(len(labels), generator=generator(0, "pictures"))
    images, labels, learnt = images[order], labels[order], learnt[order]

    def at(size: int, channels: int) -> Tensor:
        x = images.float()
        if tuple(x.shape[2:]) != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        x = augment.grey(x) if channels == 1 else x.expand(-1, channels, -1, -1)
        return x.round().clamp(0, 255).to(torch.uint8)

    return Pictures(at, labels, data.classes, learnt)
