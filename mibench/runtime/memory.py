"""How many images a device holds at once: measured before, and halved where it was too many after all.

A batch decides how sums are rounded and nothing else: results of two batches differ by rounding, results of one batch
are the same bits. So a batch is a power of two: it follows neither the last bytes that are free nor those that a
measurement is off.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from mibench.runtime.engine import out_of_memory
from mibench.runtime.pixels import machine_memory

__all__ = ["bytes_each", "free_memory", "halved", "holds", "total_memory"]

PROBED = 4
"""Images of the larger of two passes that are measured."""

PART = 0.5
"""Of a device's memory is for what a batch keeps; optimisers, further views and further networks have the rest."""

Made = TypeVar("Made")


def total_memory(device: torch.device) -> int:
    """Bytes that an accelerator has; the machine's for any other device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine_memory()


def free_memory(device: torch.device) -> int:
    """Bytes of it that nobody else uses now: what is free, and what this process keeps for itself to use again."""
    if device.type != "cuda":
        return machine_memory()
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def peak_memory(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes of an accelerator that are in use at most while something runs."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def bytes_each(device: torch.device, run: Callable[[int], object]) -> int:
    """Bytes that each image of a pass adds: two small passes, the larger one's peak less the smaller one's.

    Args:
        device: An accelerator.
        run: A pass of so many images; the first is for what libraries allocate once.
    """
    few = PROBED // 2
    run(few)
    less, more = (peak_memory(device, lambda count=count: run(count)) for count in (few, PROBED))  # type: ignore[misc]
    return max(1, (more - less) // (PROBED - few))


def holds(memory: int, each: int, most: int) -> int:
    """How many images fit into its part of so many bytes: `most`, else a power of two, at least 1."""
    count = int(PART * memory) // max(1, each)
    return most if count >= most else 1 << max(0, count.bit_length() - 1)


def halved(run: Callable[[int], Made], batch: int, told: Callable[[int, str], None] = lambda batch, said: None) -> Made:
    """What `run(batch)` makes, or where it ran out of memory `run(batch // 2)`, and so on down to a batch of one.

    Args:
        run: Begins anew each time: what an earlier try did must not count.
        batch: The first to try.
        told: Of each smaller batch before it is tried, and what was said of the larger one.

    Raises:
        RuntimeError: What was said last, where not even one image fits; and every other error at once.
    """
    while True:
        try:
            return run(batch)
        except (MemoryError, RuntimeError) as error:
            said = out_of_memory(error)
            if said is None or batch == 1:
                raise
        # Here and not above: as long as the error is at hand it holds all tensors of the pass that failed.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        batch = max(1, batch // 2)
        told(batch, said)
