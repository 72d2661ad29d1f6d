"""What the machine can do at most, and what a piece of work takes: seconds, arithmetic, memory."""

import ctypes
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["by_turns", "clock_of", "floating_point", "memory", "middle", "peak", "spent"]

PIXELS, CHANNELS, MATRIX, TURNS = 32, 128, 1536, 5


def clock_of(device: torch.device) -> Callable[[], float]:
    """Tells seconds, once the device has done what it was given; on a CPU those of this process on all its cores."""
    if device.type != "cuda":
        return time.process_time if device.type == "cpu" else time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def spent(work: Callable[[], object], device: torch.device) -> float:
    """Seconds; on a CPU those of this process on all its cores, so that others on the machine count less."""
    clock = clock_of(device)
    begin = clock()
    work()
    return clock() - begin


def by_turns(works: Sequence[Callable[[], object]], device: torch.device, turns: int) -> list[list[float]]:
    """Seconds of each piece of work, `turns` times one after the other, once before without being timed.

    Returns:
        Of each its times; those of one turn lie close in time, so that their ratio is of one state of the machine.
    """
    for work in works:
        work()
    rounds = [[spent(work, device) for work in works] for _ in range(turns)]
    return [list(times) for times in zip(*rounds, strict=True)]


def floating_point(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions, forward and backward; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def memory(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that the work takes at most beyond what was taken before; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work has left with the process would hide what this takes
    forget = Path("/proc/self/clear_refs")
    try:
        forget.write_text("5")  # the peak resident set is counted from here
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that this process reaches: the better of a large matrix product and a large
    convolution, each the best of a few turns. What loops reach is told as a share of it."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(16, CHANNELS, PIXELS, PIXELS, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    works: list[Callable[[], object]] = [lambda: a @ b, lambda: F.conv2d(x, kernel, padding=1)]
    with torch.no_grad():
        times = by_turns(works, device, TURNS)
        return max(floating_point(work) / min(own) for work, own in zip(works, times, strict=True))


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least, most."""
    return statistics.median(values), min(values), max(values)
