"""The second count: what the network itself was run on, whoever ran it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mibench.runtime.errors import UserError

__all__ = ["Meter", "Uncounted"]


class Uncounted(UserError):
    """The network was run on other images than the oracle counted: what was found is not what the budget says."""


class Meter:
    """Watches what flows into the parts of a network (its children) while it is entered as a context.

    A forward pre-hook on each part notes the rows of what it is given: within a question of the oracle, or outside of
    all questions. It sees the network that is really run (folded, served, placed), and it looks at shapes only, so that
    nothing waits for the device.

    Args:
        network: What the oracle runs.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parts = dict(network.named_children()) or {"": network}
        self._outside = dict.fromkeys(self._parts, 0)
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._hooks: list[Any] = []

    def __enter__(self) -> "Meter":
        for name, part in self._parts.items():

            def entered(module: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                rows = len(given[0]) if given and isinstance(given[0], Tensor) and given[0].ndim else 1
                question = getattr(self._thread, "question", None)
                if question is not None:
                    question[name] = question.get(name, 0) + rows
                else:
                    with self._lock:
                        self._outside[name] += rows

            self._hooks.append(part.register_forward_pre_hook(entered))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def question(self, images: int) -> Iterator[None]:
        """Around a pass that the oracle has counted as `images`.

        Raises:
            Uncounted: If the part that is reached first saw another number: neither that nor a multiple of it, as a
                service that looks at each image several times sees.
        """
        if not self._hooks:
            yield
            return
        rows: dict[str, int] = {}
        self._thread.question = rows
        try:
            yield
        finally:
            self._thread.question = None
        first = next(iter(rows.values()), 0)
        if first < images or first % images:
            raise Uncounted(f"the oracle counted {images} image(s) and the target's network was run on {first}")

    def check(self) -> None:
        """Compare the counts so far.

        Raises:
            Uncounted: If any part ran outside of all questions.
        """
        images = max(self._outside.values())
        if images:
            raise Uncounted(
                f"the target's network was run on {images} image(s) that no query counted: ask through the oracle only "
                "(answers, loss, probs, labels)"
            )
