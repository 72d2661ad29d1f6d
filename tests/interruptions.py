"""Ctrl-C at a chosen moment: while a target is asked, in the middle of a training, between two checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mibench.core import Prior, TrainingContext
from mibench.priors.gan import Loop
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent
from mibench.testing.attacks import Interruption
from mibench.testing.defenses import Stop

__all__ = ["Interruption", "Stop", "assert_resumes", "session"]


def session(checkpoint: Path | None = None, picture: Callable[[Prior], None] = lambda prior: None) -> TrainingContext:
    """The training of a toy prior."""
    return TrainingContext(resolve("cpu", "fp32"), 7, Silent(), "train prior toy", checkpoint, picture)


def assert_resumes(
    train: Callable[[TrainingContext], tuple[Prior, list[dict[str, float]]]],
    cuts: Sequence[int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Prior, list[dict[str, float]]]:
    """Interrupted after any of these checkpoints, one every second step, a prior's training ends with the same bits."""
    run = Loop.run
    monkeypatch.setattr(Loop, "run", lambda self, phase, steps, step, every=2: run(self, phase, steps, step, 2))
    reference, log = train(session(folder / "whole"))
    for cut in cuts:
        checkpoint = folder / f"cut {cut}"
        with pytest.raises(KeyboardInterrupt):
            train(session(checkpoint, Interruption(cut - 1)))
        torch.rand(3)  # whatever this process drew meanwhile
        prior, resumed = train(session(checkpoint))
        for name, value in reference.state_dict().items():
            assert torch.equal(value, prior.state_dict()[name]), (cut, name)
        assert resumed == log, cut
    return reference, log
