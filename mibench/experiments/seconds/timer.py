"""Work, timed within an allowance; and networks without weights, whose operations are counted."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mibench import models
from mibench.core import Split
from mibench.experiments.bench.machine import floating_point, peak, spent
from mibench.experiments.sizes import Sizes
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import Run
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError

__all__ = ["ALLOWANCE", "MOST", "PIECE", "Known", "Rate", "Timer", "least", "network", "pictures"]

ALLOWANCE, PATIENCE = 15.0, 60.0
"""Seconds of work, and by the clock, that may go into timing unless all is to be timed; a busy machine counts less."""

PIECE = 0.5
"""Seconds that one piece should take at most."""

MOST = {"cpu": 32, "cuda": 64, "mps": 32}
"""Pictures of a step that is timed, where the machine can afford them."""

REACHED = 0.3
"""Share of the machine's peak that loops are taken to reach before anything was timed."""

Known = Literal["ready", "measured", "scaled", "unknown"]
"""It is only copied or drawn from; a step was timed here; its operations were counted; or neither."""


@dataclass(frozen=True)
class Rate:
    """Of one picture, or of one step where that is said.

    Args:
        seconds: Processor seconds on a CPU, of all threads; seconds elsewhere.
        known: How.
        memory: Bytes at most for the pictures that were timed, per picture; 0 is unknown.
    """

    seconds: float
    known: Known
    memory: float = 0.0


class Timer:
    """Times each distinct piece of work once.

    Args:
        engine: Where.
        allowance: Seconds of timing after which no further piece is timed; infinite to time all.
    """

    def __init__(self, engine: Engine, allowance: float = ALLOWANCE) -> None:
        self.engine, self.allowance = engine, allowance
        self.began, self.spent = time.monotonic(), 0.0
        self.share = 1.0
        """Of the allowance, that may be used by now, so that something is left for what comes later."""
        self.reached: list[float] = []
        self._known: dict[Any, Any] = {}

    def parameters(self, architecture: str, classes: int, shape: tuple[int, int, int]) -> int:
        """Numbers that a network learns."""
        self._passes(architecture, classes, shape)
        return int(self._known["sizes", architecture, classes, shape][1])

    def numbers(self, run: Run, size: Sizes) -> int:
        """Numbers that a prior keeps; 0 where it cannot be built without its training."""
        choice = run.spec["prior"]
        prior = self._prior_of(registry.configure("priors", choice["name"], settings=choice["settings"]), size)
        return 0 if prior is None else sum(one.numel() for one in prior.state_dict().values())

    def latents(self, prior: Choice, size: Sizes) -> int:
        """Numbers of a latent."""
        return int(getattr(self._prior_of(prior, size), "latent_dim", 0))

    def _passes(self, architecture: str, classes: int, shape: tuple[int, int, int]) -> float:
        """Floating-point operations of one picture through a network, counted without weights."""
        key = ("sizes", architecture, classes, shape)
        if key not in self._known:
            with torch.device("meta"):
                built = models.build(architecture, classes, shape).eval()
                count = floating_point(lambda: built(torch.zeros(1, *shape)))
            self._known[key] = float(count), sum(one.numel() for one in built.parameters())
        return float(self._known[key][0])

    def _drawing(self, prior: Choice, size: Sizes) -> float:
        """Floating-point operations of one picture of a prior; 0 where that cannot be counted."""
        key = ("drawing of", prior.name, repr(prior.spec()), size.shape, size.classes)
        if key not in self._known:
            self._known[key] = 0.0
            public = pictures(2, size.classes, size.shape)
            # Without memory for the weights; the second way also where a network asks for its device by name.
            for without in (torch.device("meta"), FakeTensorMode(allow_non_fake_inputs=True)):
                with suppress(NotImplementedError, RuntimeError, ValueError, UserError), without:
                    built = prior.plugin.build(size.shape, size.classes, public).eval()
                    z, y = torch.zeros(1, built.latent_dim), torch.zeros(1, dtype=torch.int64)
                    self._known[key] = float(floating_point(lambda: built.decode(z, y)))  # noqa: B023 (called at once)
                    break
        return float(self._known[key])

    def _prior_of(self, prior: Choice, size: Sizes) -> Any:
        """A prior with random weights; None where it cannot be built so."""
        key = ("prior of", prior.name, repr(prior.spec()), size.shape, size.classes)
        if key not in self._known:
            self._known[key] = None
            with suppress(UserError, RuntimeError, NotImplementedError), torch.random.fork_rng():
                torch.manual_seed(0)
                built = prior.plugin.build(size.shape, size.classes, pictures(64, size.classes, size.shape))
                self._known[key] = built.eval()
        return self._known[key]

    # --- time

    @property
    def left(self) -> float:
        """Seconds that may still go into timing."""
        waited = time.monotonic() - self.began
        over = waited >= self.share * PATIENCE and not math.isinf(self.allowance)
        return 0.0 if over else self.share * self.allowance - self.spent

    def _spent(self, work: Callable[[], object]) -> float:
        seconds = spent(work, self.engine.device)
        self.spent += seconds
        return seconds

    def _timed(self, works: Sequence[Callable[[], object]]) -> list[float]:
        """Seconds of each, once before without being timed; small ones are repeated, the least counts."""
        first = [self._spent(work) for work in works]
        turns = max(1, min(5, int(PIECE / 2 / max(sum(first), 1e-3))))
        rounds = [[self._spent(work) for work in works] for _ in range(turns)]
        return [min(times) for times in zip(*rounds, strict=True)]

    def _rate(self, key: tuple[Any, ...], operations: float, times: int, measure: Callable[[], Rate]) -> Rate:
        """A piece, timed once; or scaled where that would take too long."""
        if key not in self._known:
            if self._may(operations, times):
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    rate = measure()
                self._known[key] = rate
                if operations and rate.seconds:
                    self.reached.append(operations / rate.seconds)
            else:
                self._known[key] = Rate(operations / self._speed(), "scaled" if operations else "unknown")
        return self._known[key]

    def _speed(self) -> float:
        """Floating-point operations a second: of what was timed, else a share of the peak."""
        if self.reached:
            return median(self.reached)
        key = ("peak",)
        if key not in self._known:
            dtype = torch.bfloat16 if self.engine.precision == "bf16" else torch.float32
            self._known[key] = peak(self.engine.device, dtype)
        return REACHED * float(self._known[key])

    def _may(self, operations: float, times: int) -> bool:
        """Whether the allowance has room for a piece at its smallest, two pictures."""
        if math.isinf(self.allowance):
            return True
        if operations * 2 * times < 1e9:  # a fraction of a second anywhere
            return self.left > 0
        return operations * 2 * times / self._speed() < self.left

    def _affordable(self, operations: float, times: int) -> int:
        """Pictures that go into a piece."""
        most = MOST[self.engine.device.type]
        if operations * most * times < 1e9:
            return most
        return int(max(2, min(most, PIECE * self._speed() / (operations * times))))


def network(architecture: str, classes: int, shape: tuple[int, int, int]) -> Any:
    """With random weights, frozen."""
    return models.build(architecture, classes, shape).eval().requires_grad_(False)


def pictures(count: int, classes: int, shape: tuple[int, int, int]) -> Split:
    """Noise, with people in turn."""
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, device="cpu")
    return Split(images, torch.arange(count, device="cpu") % classes)


def least(*rates: Rate) -> Known:
    """How well the worst of some is known."""
    order: tuple[Known, ...] = ("ready", "measured", "scaled", "unknown")
    return max((one.known for one in rates), key=order.index, default="measured")
