"""An attack that looks for everything but faces; what it got hold of is the text of the error it ends with.

It reads, and writes empty files where the test has made room for them: it is also run without a seal.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.runtime.errors import UserError

CARD = {
    "summary": "hostile",
    "title": "",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "access": "black_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [0, 0, 0],
}
MARK = 1234.5
"""A weight of the target."""


@dataclass(frozen=True)
class Hostile(Attack):
    """What `deed` names, or all that only looks.

    Args:
        deed: steal, exit or shout.
        private: A private image.
        results: The results folder.
        parent: The process that has the target.
        port: On which that process listens.
        secret: A variable of its environment.
    """

    deed: str = "steal"
    private: str = ""
    results: str = ""
    parent: int = 0
    port: int = 0
    secret: str = ""

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        return Cost(1, 0, 0)

    def __call__(self, oracle: Oracle, prior: Prior, labels: Tensor, seed: int, work: AttackContext) -> Reconstructions:
        if self.deed != "steal":
            getattr(self, f"_{self.deed}")(oracle)
        taken = []
        for name, theft in self._thefts().items():
            try:
                if theft():
                    taken.append(name)
            except Exception:
                continue
        raise UserError(f"taken: {json.dumps(taken)}")

    def _thefts(self) -> dict[str, Callable[[], Any]]:
        return {
            "weights by gc": self._by_gc,
            "weights by frames": self._by_frames,
            "weights by threads": self._by_threads,
            "private image": lambda: Path(self.private).read_bytes(),
            "names of people": lambda: os.listdir(Path(self.private).parent),
            "results": lambda: [one.read_bytes() for one in Path(self.results).rglob("*.json")],
            "write into results": lambda: (Path(self.results) / "planted").write_text("") == 0,
            "write beside the plug-in": lambda: Path(__file__).with_name("planted.py").write_text("") == 0,
            "environment": lambda: os.environ.get(self.secret),
            "environment of the parent": lambda: (
                self.secret.encode() in Path(f"/proc/{self.parent}/environ").read_bytes()
            ),
            "memory of the parent": self._by_memory,
            "memory by process_vm_readv": self._by_readv,
            "open files": self._by_descriptors,
            "signal": lambda: os.kill(self.parent, 0) is None,
            "network": self._by_network,
            "home": lambda: list(Path(f"/proc/{self.parent}/cwd").iterdir()),
        }

    @staticmethod
    def _by_gc() -> bool:
        def marked(one: object) -> bool:
            try:
                return type(one) in (Tensor, torch.nn.Parameter) and MARK in one
            except RuntimeError:  # a tensor without numbers, which somebody else left
                return False

        return any(marked(one) for one in gc.get_objects())

    @staticmethod
    def _by_frames() -> bool:
        frame = sys._getframe()
        while frame is not None:
            for value in frame.f_locals.values():
                if hasattr(value, "_target"):
                    return any(MARK in one for one in value._target.parameters())
            frame = frame.f_back  # type: ignore[assignment]
        return False

    @staticmethod
    def _by_threads() -> bool:
        return any(
            hasattr(value, "state_dict") and any(MARK in one for one in value.state_dict().values())
            for frame in sys._current_frames().values()
            for value in {**frame.f_globals, **frame.f_locals}.values()
            if isinstance(value, torch.nn.Module)
        )

    def _by_memory(self) -> bool:
        lines = Path(f"/proc/{self.parent}/maps").read_text().splitlines()
        start = int(next(line for line in lines if "[heap]" in line).split("-")[0], 16)
        with open(f"/proc/{self.parent}/mem", "rb") as memory:
            memory.seek(start)
            return len(memory.read(16)) == 16

    def _by_readv(self) -> bool:
        start = int(Path(f"/proc/{self.parent}/stat").read_text().rsplit(")", 1)[1].split()[25])  # start of the stack
        into = ctypes.create_string_buffer(8)
        local = (ctypes.c_void_p * 2)(ctypes.cast(into, ctypes.c_void_p), 8)
        remote = (ctypes.c_void_p * 2)(start, 8)
        return ctypes.CDLL(None).process_vm_readv(self.parent, local, 1, remote, 1, 0) == 8

    def _by_network(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2):
            return True

    def _by_descriptors(self) -> bool:
        for number in range(3, 64):
            try:
                if os.pread(number, 4, 0):
                    return True
            except OSError:
                continue
        return False

    def _exit(self, oracle: Oracle) -> None:
        print("not a word", flush=True)
        os._exit(0)

    def _shout(self, oracle: Oracle) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        sys.exit("\x1b[31mred\a")
