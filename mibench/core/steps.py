"""Loops that a killed process goes on with: what a part of an attack keeps before it is finished.

`AttackContext.once` keeps what a part has found; a part of hours would lose them all. A loop inside of it that is
written `for step in work.steps(count, *states)` loses a minute: its states are kept from time to time, never at every
step, and a process that runs the part again is handed them back and begins at the step that comes next. What lies
before and between the loops of a part is computed again, so it must be a function of the arguments, as ever; loops that
were over are not run again. What a loop is, is decided by its place among the part's loops.

Nothing that is computed depends on when something was kept, and what was asked is counted once.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mibench.core.oracle import Oracle
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint

__all__ = [
    "SECONDS",
    "Files",
    "Generators",
    "Held",
    "Part",
    "Stateful",
    "Store",
    "begun",
    "beside",
    "outstanding",
    "since",
    "steps",
]

SECONDS = 60.0
"""Between two checkpoints of a loop, at least. 0 keeps every step, which is for tests."""

SHARE = 0.01
"""Of the time goes into checkpoints, at most: a larger state is kept more seldom."""

CPU = torch.device("cpu")


@runtime_checkable
class Stateful(Protocol):
    """What changes from step to step: `Held`, an optimiser, a network."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, and lists and mappings of them."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Be what `state_dict` told."""


class Held(SimpleNamespace):
    """A loop's variables by name: `held = Held(best=z)`, then `held.best = ...` where `best = ...` would stand.

    Tensors that require a gradient are written to in place, because an optimiser holds them; others are replaced.
    """

    def state_dict(self) -> dict[str, Any]:
        """By name."""
        return dict(vars(self))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be that."""
        for name, value in state.items():
            now = getattr(self, name)
            if isinstance(now, list) and any(isinstance(one, Tensor) and one.requires_grad for one in now):
                for one, kept in zip(now, value, strict=True):
                    one.copy_(kept)
            elif isinstance(now, Tensor) and now.requires_grad:
                now.copy_(value)
            else:
                setattr(self, name, value)


class Generators:
    """torch's global generators, for a training with dropout that has seeded them."""

    def state_dict(self) -> dict[str, Any]:
        """On the CPU, and on every accelerator in use."""
        there = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {"cpu": torch.get_rng_state(), "cuda": there}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        torch.set_rng_state(state["cpu"].cpu())
        if state["cuda"]:
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


@runtime_checkable
class Store(Protocol):
    """Where an unfinished part's state lies."""

    def read(self) -> dict[str, Any] | None:
        """What was written last, on the CPU; None where nothing was."""

    def write(self, state: dict[str, Any]) -> None:
        """In place of what was there."""

    def passed(self) -> None:
        """The loop that comes next has been taken from what was read, with what it asked."""

    def ended(self) -> None:
        """A loop has ended; what comes next is the next one's."""


class Files:
    """In a file beside the part's own; no name of a part has an @.

    Args:
        path: Of the finished part.
    """

    def __init__(self, path: Path) -> None:
        self.path = beside(path)

    def read(self) -> dict[str, Any] | None:
        """See `Store`; nothing where the file is of an isolated attack, whose state is for itself alone.

        Raises:
            UserError: If the file is damaged.
        """
        state = read_checkpoint(self.path, CPU) if self.path.exists() else {}
        return state if "loops" in state else None

    def write(self, state: dict[str, Any]) -> None:
        """See `Store`."""
        write_checkpoint(self.path, state)

    def passed(self) -> None:
        """Nobody need be told."""

    def ended(self) -> None:
        """Nobody need be told."""


def beside(path: Path) -> Path:
    """Where the steps of a part that is not finished are kept."""
    return path.with_name(f"{path.stem}@steps.pt")


def outstanding(wanted: Mapping[str, Tensor], before: Mapping[str, Tensor], oracle: Oracle) -> dict[str, Tensor]:
    """What is left to be counted until the part has asked what is `wanted` since the counts `before`."""
    now = oracle.counts()
    return {name: wanted[name].cpu() - (count - before[name]) for name, count in now.items() if name in wanted}


def since(before: Mapping[str, Tensor], oracle: Oracle) -> dict[str, Tensor]:
    """What was asked since the counts `before`."""
    return {name: count - before[name] for name, count in oracle.counts().items()}


class Part:
    """An unfinished part of an attack: its loops, in the order in which they are run.

    Args:
        oracle: Who is asked.
        store: Where states are kept; None is nowhere.
        seconds: Between two of them; None is `SECONDS`.
    """

    def __init__(self, oracle: Oracle, store: Store | None, seconds: float | None = None) -> None:
        self.oracle, self.store = oracle, store
        self.seconds = self.pause = SECONDS if seconds is None else seconds
        self.before = oracle.counts()
        self.over: list[dict[str, Any]] = []
        self.known = store.read() if store is not None else None
        self.kept = time.monotonic()
        self.inside = False

    def steps(self, count: int, states: Sequence[Stateful], batch: int) -> Iterator[int]:
        """0 to `count` - 1, or what is left of it; a loop inside of another one is a step of that one."""
        store = self.store
        if store is None or self.inside:
            yield from range(count)
            return
        sign = {"count": count, "batch": batch, "shapes": [shapes(state.state_dict()) for state in states]}
        first = self._resume(sign, states)
        self.inside = True
        try:
            for step in range(first, count):
                yield step
                if step + 1 < count and time.monotonic() - self.kept >= self.pause:
                    self._keep(store, sign, step + 1, states)
        finally:
            self.inside = False
            # What moved the latents is over with its loop; they themselves may be what later loops begin with.
            ended = [{} if _moves(state) else to(state.state_dict(), CPU, copied=True) for state in states]
            self.over.append({"sign": sign, "step": count, "states": ended, "counts": since(self.before, self.oracle)})
            store.ended()

    def _resume(self, sign: dict[str, Any], states: Sequence[Stateful]) -> int:
        """Take over what is known of the loop that begins now; returns its first step."""
        place = len(self.over)
        if self.known is None:
            return 0
        loops: list[dict[str, Any]] = self.known["loops"]
        loop = loops[place]
        if loop["sign"] != sign:  # a batch of another size, as on another machine, cuts the work otherwise
            self.known = None
            return 0
        for state, held in zip(states, loop["states"], strict=True):
            if held:
                state.load_state_dict(held if _moves(state) else to(held, self.oracle.device))
        self.oracle.add(outstanding(loop["counts"], self.before, self.oracle))
        assert self.store is not None
        self.store.passed()
        if place == len(loops) - 1:
            self.known = None
        return int(loop["step"])

    def _keep(self, store: Store, sign: dict[str, Any], step: int, states: Sequence[Stateful]) -> None:
        self.oracle.check()
        begin = time.monotonic()
        now = {
            "sign": sign,
            "step": step,
            "states": [to(state.state_dict(), CPU) for state in states],
            "counts": since(self.before, self.oracle),
        }
        store.write({"loops": [*self.over, now]})
        self.kept = time.monotonic()
        self.pause = max(self.seconds, (self.kept - begin) / SHARE) if self.seconds else 0.0


def _moves(state: Stateful) -> bool:
    return isinstance(state, torch.optim.Optimizer)


def shapes(value: Any) -> Any:
    """Of all tensors in a state, by their place."""
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        return {str(key): shapes(one) for key, one in value.items()}
    return [shapes(one) for one in value] if isinstance(value, list | tuple) else None


def to(value: Any, device: torch.device, copied: bool = False) -> Any:
    """A state whose tensors lie on a device, without graphs; a tensor that is a small part of a large one alone."""
    if isinstance(value, Tensor):
        moved = value.detach().to(device)
        alone = moved.untyped_storage().nbytes() <= max(moved.nbytes, 1)
        return moved.clone() if not alone or (copied and moved.data_ptr() == value.data_ptr()) else moved
    if isinstance(value, Mapping):
        return {key: to(one, device, copied) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to(one, device, copied) for one in value)
    return value


_open: ContextVar[Part | None] = ContextVar("part", default=None)
"""The part that this thread computes."""


@contextmanager
def begun(part: Part) -> Iterator[None]:
    """Around the computation of a part; parts may lie inside of parts."""
    token = _open.set(part)
    try:
        yield
    finally:
        with suppress(ValueError):
            _open.reset(token)


def steps(count: int, states: Sequence[Stateful], batch: int) -> Iterator[int]:
    """The steps of the part that this thread computes; plain numbers outside of all parts."""
    part = _open.get()
    return iter(range(count)) if part is None else part.steps(count, states, batch)
