"""What an isolated attack has found so far: kept outside, under the counts of the oracle outside.

Finished parts come as tensors. The state of an unfinished one comes as bytes that only the process inside ever reads
again; how much was asked until then is the oracle's word, never the attack's.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from mibench.core import Oracle
from mibench.core.attack import NAME, keep, recall
from mibench.core.steps import beside, outstanding, since
from mibench.isolation.cell import packed, unpacked
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint
from mibench.runtime.wire import Broken, Message

__all__ = ["Parts"]

Answer = tuple[str, dict[str, Tensor]]


class Parts:
    """Keeps the parts of one attack; `answer` knows the words of `isolation.cell`.

    Args:
        folder: Where.
        oracle: Who counts.
    """

    def __init__(self, folder: Path, oracle: Oracle) -> None:
        self.folder, self.oracle = folder, oracle
        self.before: dict[Path, dict[str, Tensor]] = {}
        self.ended: dict[Path, list[dict[str, Tensor]]] = {}
        self.known: dict[Path, list[dict[str, Tensor]]] = {}

    def answer(self, said: Message) -> Answer | None:
        """What is said back, and the tensors with it; None where it was not said to this.

        Raises:
            Broken: If it makes no sense here.
            UserError: If a checkpoint is damaged.
        """
        reader = {
            "recall": self._recall,
            "keep": self._keep,
            "recall steps": self._recall_steps,
            "keep steps": self._keep_steps,
            "passed": self._passed,
            "ended": self._ended,
        }.get(said.what)
        if reader is None:
            return None
        path = self._place(said)
        if said.what != "recall" and (path not in self.before or path.exists()):
            raise Broken("a part to keep that was not begun")
        return reader(path, said)

    def _recall(self, path: Path, said: Message) -> Answer:
        if not path.exists():
            self.before[path], self.ended[path] = self.oracle.counts(), []
            return "nothing", {}
        value, counts = recall(path, self.oracle)
        return "value", packed(value) | {f"count.{name}": count for name, count in counts.items()}

    def _keep(self, path: Path, said: Message) -> Answer:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.oracle.check()
        value = unpacked({name: tensor.to(self.oracle.device) for name, tensor in said.tensors.items()})
        keep(path, value, self.oracle, self.before.pop(path))
        return "kept", {}

    def _recall_steps(self, path: Path, said: Message) -> Answer:
        if not beside(path).exists():
            return "nothing", {}
        state = read_checkpoint(beside(path), torch.device("cpu"))
        if "content" not in state:  # kept without isolation: not to be read in there
            return "nothing", {}
        self.known[path] = state["counts"]
        return "steps", {"content": state["content"]}

    def _keep_steps(self, path: Path, said: Message) -> Answer:
        content = said.tensors.get("content")
        if content is None or content.dtype != torch.uint8 or content.ndim != 1:
            raise Broken("steps to keep that are no bytes")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.oracle.check()
        counts = [*self.ended[path], since(self.before[path], self.oracle)]
        write_checkpoint(beside(path), {"content": content, "counts": counts})
        return "kept", {}

    def _passed(self, path: Path, said: Message) -> Answer:
        """The loop that comes next is taken from what was kept: what it asked is counted."""
        place, known = len(self.ended[path]), self.known.get(path, [])
        if place >= len(known):
            raise Broken("steps that were not kept")
        self.oracle.add(outstanding(known[place], self.before[path], self.oracle))
        return "counted", {}

    def _ended(self, path: Path, said: Message) -> Answer:
        self.ended[path].append(since(self.before[path], self.oracle))
        return "noted", {}

    def _place(self, said: Message) -> Path:
        """Where a part is kept: below the run's folder, under names of letters and digits."""
        scope, name = said.fields.get("scope"), said.fields.get("name")
        names = [*scope, name] if isinstance(scope, list) else []
        if not names or len(names) > 8 or not all(isinstance(one, str) and re.fullmatch(NAME, one) for one in names):
            raise Broken("a part to keep without a proper name")
        *above, last = (f"checkpoint-{one}" for one in names)
        return self.folder.joinpath(*above) / f"{last}.pt"
