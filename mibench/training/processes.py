"""The processes of a training on several devices: started, joined to a group, and ended with whoever started them.

The first is the caller's own: it alone shows progress and writes, so that nothing is done twice. The others are started
afresh (a process that has used CUDA cannot fork) and get all they need by value. Lightning Fabric opens the group.
"""

import logging
import math
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from mibench.core import Split
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.pixels import cache_folder
from mibench.runtime.progress import Silent
from mibench.training.parallel import Ranks, refused

__all__ = ["spread"]

PATIENCE = 5.0
"""Seconds in which whoever has lost a partner finds out, and says why."""


@contextmanager
def spread(engine: Engine, label: str, fit: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[Ranks]:
    """Start `fit(**given, engine=..., reporter=..., ranks=...)` for each further device; the caller is the first.

    Everything is sent by value, pixels through files that the processes share.

    Args:
        engine: Of the caller.
        label: What is trained.
        fit: A function that a new process can import.
        given: Its arguments but for the three.

    Raises:
        UserError: If something cannot be sent, or as another process says; if one of them is gone.
    """
    if distributed.is_initialized():
        raise UserError("this process is in a process group of torch already; start mibench outside of it")
    count, context = 1 + len(engine.further), multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others: list[tuple[SpawnProcess, Connection]] = []
    cache_folder().mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            _pack(Path(folder), label, engine, fit, given)
            for rank in range(1, count):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_follow, args=(folder, rank, port, torch.get_num_threads(), theirs), daemon=True
                )
                process.start()
                theirs.close()
                others.append((process, ours))
            for process, ours in others:
                wait([ours, process.sentinel])
                try:
                    said = ours.recv()
                except EOFError:
                    raise RuntimeError("a process ended before it could work") from None
                if said is not None:
                    raise UserError(said[1]) if said[0] else RuntimeError(said[1])
        with _group(engine, 0, port):
            yield Ranks(0, count)
            for process, _ in others:
                process.join(PATIENCE)
    except RuntimeError:
        _tell(label, others)
        raise
    finally:
        for process, ours in others:
            process.kill()
            process.join()
            ours.close()


def _tell(label: str, others: Sequence[tuple[SpawnProcess, Connection]]) -> None:
    """What failed in another process, if that is why this one did: a mistake first, then a death, then a fault."""
    until = time.monotonic() + PATIENCE
    said: list[tuple[int, str]] = []
    while time.monotonic() < until and not said:
        time.sleep(0.1)
        for rank, (process, ours) in enumerate(others, 1):
            word = None
            with suppress(EOFError, OSError):
                word = ours.recv() if ours.poll() else None
            if isinstance(word, tuple):
                said.append((0 if word[0] else 2, word[1]))
            elif process.exitcode is not None and process.exitcode != 0:
                how = f"was killed ({signal.Signals(-process.exitcode).name})" if process.exitcode < 0 else "ended"
                text = f"{label}: the process of device {rank + 1} of {len(others) + 1} {how}"
                said.append((1, f"{text}; run the same command again, which goes on from the last checkpoint"))
    if said:
        kind, text = min(said)
        raise UserError(text) if kind < 2 else RuntimeError(text)


def _pack(folder: Path, label: str, engine: Engine, fit: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Everything in files a process can read: the pixels of splits as they lie in memory, the rest pickled."""
    splits = {name: value for name, value in given.items() if isinstance(value, Split)}
    about = {name: (tuple(split.images.shape), split.labels) for name, split in splits.items()}
    rest = {name: value for name, value in given.items() if name not in splits}
    for name, split in splits.items():
        split.images.cpu().numpy().tofile(folder / name)
    try:
        (folder / ".given").write_bytes(pickle.dumps((engine, fit, rest, about)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise refused(label, f"a part of the network or a defense cannot be sent to a process ({error})") from None


def _unpack(folder: Path) -> tuple[Engine, Callable[..., Any], dict[str, Any]]:
    engine, fit, given, about = pickle.loads((folder / ".given").read_bytes())  # our own parent's, of a moment ago
    splits = {name: Split(_pixels(folder / name, shape), labels) for name, (shape, labels) in about.items()}
    return engine, fit, given | splits


def _pixels(file: Path, shape: tuple[int, ...]) -> Tensor:
    if not math.prod(shape):
        return torch.zeros(shape, dtype=torch.uint8)
    array: Any = np.memmap(file, np.uint8, "r", shape=shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _follow(folder: str, rank: int, port: int, threads: int, parent: Connection) -> None:
    """A further process: the same training on its own device, silent, and gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends it
    first = multiprocessing.parent_process()
    assert first is not None

    def watch() -> None:
        first.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        engine, fit, given = _unpack(Path(folder))
        parent.send(None)
        with _group(engine, rank, port):
            own = Engine(engine.further[rank - 1], engine.precision)
            fit(**given, engine=own, reporter=Silent(), ranks=Ranks(rank, 1 + len(engine.further)))
    except Exception as error:
        user = isinstance(error, UserError)
        with suppress(OSError):
            parent.send((user, str(error) if user else traceback.format_exc()))
        sys.exit(1)


@contextmanager
def _group(engine: Engine, rank: int, port: int) -> Iterator[None]:
    """Be in the process group; afterwards environment and threads are as they were, which Fabric changes."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    devices = [engine.device, *engine.further]
    wanted = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": len(devices)}
    wanted |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    if sys.platform == "linux":
        wanted["GLOO_SOCKET_IFNAME"] = "lo"  # else the address of the host's name, if it has one
    before = {name: os.environ.get(name) for name in (*wanted, "OMP_NUM_THREADS")}
    threads, logger = torch.get_num_threads(), logging.getLogger("lightning_fabric")
    level = logger.level
    with ExitStack() as after:
        after.callback(_restore, before)
        after.callback(logger.setLevel, level)
        logger.setLevel(logging.WARNING)
        os.environ.update({name: str(value) for name, value in wanted.items()})
        # Named, so that a job of Slurm or torchrun around it is not taken for the training's own processes.
        Fabric(strategy=DDPStrategy(parallel_devices=devices, cluster_environment=TorchElasticEnvironment())).launch()
        after.callback(distributed.destroy_process_group)
        torch.set_num_threads(threads)
        yield


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
