"""How work runs fast: device, precision, memory layout and threads."""

import ctypes
import os
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mibench.runtime.errors import UserError
from mibench.runtime.pixels import memory_limit

__all__ = ["Engine", "at_once", "cores", "keep_memory", "resolve"]

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Engine:
    """Where and in which precision networks run. Latents, losses and statistics stay float32."""

    device: torch.device
    precision: str
    further: tuple[torch.device, ...] = ()
    """Over which, besides, the training of one classifier is spread; nothing else uses them."""

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 matrix products where the engine says so.

        Without autocast's cache: it keeps the bf16 copy of every leaf that requires a gradient until the context ends,
        and the latents of an attack are such leaves, so that every step after the first would see the first latents.
        """
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def place(self, module: nn.Module) -> nn.Module:
        """On the device, channels last (convolutions are faster that way on every device we know)."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def resident(self, stored: Tensor) -> Tensor:
        """Stored pixels where a loop should index them: here, unless they take half of an accelerator's free memory.

        Those stay where they are, and `images` sends each batch. It changes how fast a loop is, never what it computes.
        """
        if self.device.type == "cuda" and 2 * stored.nbytes >= torch.cuda.mem_get_info(self.device)[0]:
            return stored
        return stored.to(self.device)

    def images(self, stored: Tensor) -> Tensor:
        """uint8 on any device to float [0, 1] here, channels last."""
        return (stored.to(self.device).to(torch.float32) / 255.0).contiguous(memory_format=torch.channels_last)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(device: str) -> int:
    """Processes that run stages side by side: two on a CPU with two cores or more, one on an accelerator.

    Small networks leave a second thread idle most of the time: two processes of one thread beat one of two threads.
    The number depends on the hardware only, never on the load, because rounding depends on it.
    """
    given = os.environ.get("MIBENCH_WORKERS")
    if given is not None:
        if not given.isdigit() or int(given) < 1:
            raise UserError(f"MIBENCH_WORKERS must be a whole number of at least 1, got '{given}'")
        return int(given)
    return 1 if device != "cpu" or cores() < 2 else 2


def set_threads(device: str) -> int:
    """Give each worker process its share of the cores; returns how many threads it has."""
    threads = max(1, cores() // 2)
    torch.set_num_threads(threads)
    return threads


def fast_bf16(device: str) -> bool:
    """Whether bf16 is faster than fp32 here: recent GPUs, and CPUs with AMX or AVX512-BF16."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


KNOWN = "known: auto, cpu, cuda, cuda:N, mps; several for one training: cuda:0,1 or cpu,cpu"


def device_name(device: str) -> str:
    """'auto' resolved to 'cuda', 'mps' or 'cpu'; a device that is not there is refused.

    Args:
        device: One, or several joined by commas, over which the training of one classifier is spread.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return "cuda" if present["cuda"] else "cpu"
    names = _each(device)
    kind = names[0].split(":")[0]
    if kind not in present or any(name != kind and not name.removeprefix("cuda:").isdigit() for name in names):
        raise UserError(f"unknown device '{device}'; {KNOWN}")
    if not present[kind]:
        raise UserError(f"this machine has no {device} device that torch can use; use --device cpu")
    if len(names) > 1:
        _require_several(device, names)
    return device


def _each(device: str) -> list[str]:
    """cuda:0,1 and cuda:0,cuda:1 as cuda:0 and cuda:1; cpu,cpu as cpu twice."""
    first, *more = device.split(",")
    return [first, *(f"cuda:{one}" if one.isdigit() and first.startswith("cuda:") else one for one in more)]


def _require_several(device: str, names: Sequence[str]) -> None:
    """Whether one training can be spread over these."""
    gpus = all(name.startswith("cuda:") for name in names) and len(set(names)) == len(names)
    if not gpus and set(names) != {"cpu"}:
        raise UserError(f"--device {device}: several devices are GPUs by number, each once (cuda:0,1), or cpu,cpu")
    if find_spec("lightning_fabric") is None:
        raise UserError(f"--device {device} needs lightning-fabric; install it with: pip install 'mibench[fabric]'")


@cache
def keep_memory() -> bool:
    """Let freed tensors of up to 32 MiB stay with the process, 256 MiB of them at most; returns whether that was done.

    glibc gives every block above 128 KiB back to the kernel and is given an empty page for every 4 KiB of the next: a
    training step of the default target touches thousands. Without, its training takes 14% more CPU time (3.3 against
    3.9 s for three epochs); the bits are the same. Nothing is done under another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim, pad, mmap = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h
    wanted = {mmap: 32 << 20, trim: 256 << 20, pad: 16 << 20}
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in wanted.items()])


def resolve(device: str = "auto", precision: str = "auto") -> Engine:
    """The engine for what the user asked; `auto` takes the fastest that is safe."""
    first, *further = (torch.device(one) for one in _each(device_name(device)))
    keep_memory()
    memory_limit()  # refused here rather than after an hour's work
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision '{precision}'; known: {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = "bf16" if fast_bf16(first.type) else "fp32"
    return Engine(first, precision, tuple(further))


def at_once(most: int, shape: Sequence[int], device: torch.device) -> int:
    """How many images of a shape (... h w) go through a network together: on a CPU fewer where they are larger than
    64 x 64, so that what networks need does not grow with the images' size."""
    pixels = shape[-2] * shape[-1]
    return most if device.type != "cpu" else max(1, min(most, most * 64 * 64 // pixels))


def out_of_memory(error: BaseException) -> str | None:
    """What was said, in one line, if there was no memory left; torch has an error of its own for it on GPUs only."""
    said = (str(error) or type(error).__name__).splitlines()[0]
    known = any(words in said for words in ("out of memory", "can't allocate memory", "not enough memory"))
    return said if known or isinstance(error, MemoryError | torch.OutOfMemoryError) else None


def describe(engine: Engine) -> dict[str, Any]:
    """The machine, for provenance."""
    gpu = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None
    return {
        "device": str(engine.device),
        "devices": 1 + len(engine.further),
        "gpu": gpu,
        "precision": engine.precision,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
