"""Ctrl-C at a chosen moment: while a target is asked, in the middle of a training, between two checkpoints."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mibench.core import Prior, TrainingContext
from mibench.priors.gan import Loop
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent


class Interruption:
    """Called with what was done, it lets so much pass; whatever is no number counts as one."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, done: object = 1) -> None:
        self.left -= done if isinstance(done, int) else 1
        if self.left < 0:
            raise KeyboardInterrupt


class Stop(Silent):
    """Ctrl-C after so many steps of a training; what a resumed one skips comes at once and does not count."""

    def __init__(self, steps: int) -> None:
        self.interrupt = Interruption(steps)
        self.seen = 0

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator["Stop"]:
        self.total = total
        yield self

    def advance(self, count: int = 1) -> None:
        self.seen += count
        if count == 1:
            self.interrupt()


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
