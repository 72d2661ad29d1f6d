"""To look at an attack while it runs, without changing what it does, or what it is said to take."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mibench.core import Attack, AttackContext, Oracle
from mibench.core.steps import Stateful
from mibench.experiments.bench.machine import clock_of
from mibench.runtime.engine import Engine

__all__ = ["Watched", "watch"]


@dataclass(frozen=True)
class Watched(AttackContext):
    """A workspace that shows what a gradient search moves, at its start and after each of its steps.

    Args:
        look: Given the steps taken and the tensors that are moved (see `parts.search.descend`).
    """

    look: Callable[[int, list[Tensor]], None] = lambda step, moved: None

    def steps(self, count: int, *states: Stateful) -> Iterator[int]:
        """As ever."""
        moved = getattr(states[0], "moved", None)
        for step in super().steps(count, *states):
            if moved is not None:
                self.look(step, moved)
            yield step
        if moved is not None:
            self.look(count, moved)


def watch(
    attack: Attack,
    decode: Callable[[Any, list[Tensor], Tensor], Tensor],
    oracle: Oracle,
    prior: Any,
    y: Tensor,
    engine: Engine,
    record: Callable[[int, float, Tensor], None],
    marks: Collection[int],
) -> None:
    """Run an attack that makes one image of each person in a single search.

    Args:
        attack: The attack.
        decode: Images from the prior, what is moved, and the people.
        oracle: Who is asked.
        prior: Placed.
        y: People.
        engine: Where and in which precision.
        record: Told the steps taken, the seconds until there without those spent here, and the images.
        marks: After how many steps.
    """
    clock = clock_of(y.device)
    begun, idle = clock(), 0.0

    @torch.no_grad()
    def look(step: int, moved: list[Tensor]) -> None:
        nonlocal idle
        if step not in marks:
            return
        now = clock()
        record(step, now - begun - idle, decode(prior, [one.detach() for one in moved], y))
        idle += clock() - now

    with engine.autocast():
        attack(oracle, prior, y, 0, Watched(256, look=look))
