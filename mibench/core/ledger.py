"""Who has been asked about how often, and what may still be asked: the oracle's first count, safe under threads."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.runtime.errors import UserError

__all__ = ["BudgetExhausted", "Ledger"]

CACHED = 256
"""Label tensors whose counts are remembered, so that a search reads each of its batches from the device once."""


class BudgetExhausted(Exception):
    """The attack asked for more than its budget allows; the query was not answered."""


@dataclass
class _Seen:
    """A tensor of labels as it was when it was read."""

    labels: Int64[Tensor, " n"]
    version: int
    copy: Int64[Tensor, " n"]
    per_class: Int64[Tensor, " k"]


class Ledger:
    """Images asked and differentiated, per identity and for all at once; nobody is charged beyond the budget.

    Counting is done on the host from shapes. Labels are read from the device when they are first seen, and again when
    torch says that they were written to. A write behind torch's back (`.data`, a numpy array over the same memory) is
    seen at the next call on a CPU; on a device a flag is raised there and read by `settle`, because asking at every
    call would wait for the device each time.

    Args:
        num_classes: Of the target.
        budget: Most images per identity; None is unlimited.
        attacked: The identities that may be asked under; None is all.
        tick: Told of every image.
    """

    def __init__(
        self, num_classes: int, budget: int | None, attacked: Iterable[int] | None, tick: Callable[[int], None]
    ) -> None:
        self.num_classes, self.budget = num_classes, budget
        self.attacked = None if attacked is None else sorted({int(label) for label in attacked})
        self.queries = torch.zeros(num_classes, dtype=torch.int64)
        self.gradient_images = torch.zeros(num_classes, dtype=torch.int64)
        self.shared_queries = 0
        self.shared_gradients = 0
        self._most = 0
        self._tick = tick
        self._seen: dict[int, _Seen] = {}
        self._changed: Tensor | None = None
        self._lock = threading.RLock()

    def per_class(self, labels: Int64[Tensor, " n"]) -> Int64[Tensor, " k"]:
        """How often each identity stands in `labels`.

        Raises:
            UserError: If one of them is not under attack.
        """
        with self._lock:
            seen = self._seen.get(id(labels))
            if seen is not None and not labels.is_inference() and labels._version == seen.version:
                if labels.device.type != "cpu":
                    different = (labels != seen.copy).any()
                    self._changed = different if self._changed is None else self._changed | different
                    return seen.per_class
                if torch.equal(labels, seen.copy):
                    return seen.per_class
            return self._read(labels)

    def _read(self, labels: Int64[Tensor, " n"]) -> Int64[Tensor, " k"]:
        copy = labels.detach().clone()
        on_host = copy.cpu()
        low, high = int(on_host.min()), int(on_host.max())
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise UserError(f"the attack asked under label {wrong}; the target knows 0 to {self.num_classes - 1}")
        per_class = torch.bincount(on_host, minlength=self.num_classes)
        if self.attacked is not None:
            strangers = per_class.clone()
            strangers[self.attacked] = 0
            if bool(strangers.any()):
                raise UserError(
                    f"the attack asked under label {int(strangers.nonzero()[0])}, which is not under attack "
                    f"({_several(self.attacked)} are): ask under the labels it was given, or None for images that "
                    "serve all identities, which count for each"
                )
        while len(self._seen) >= CACHED:
            self._seen.pop(next(iter(self._seen)))
        if not labels.is_inference():
            # The tensor itself is kept, so that no other can take its place in memory and with it its id.
            self._seen[id(labels)] = _Seen(labels, labels._version, copy, per_class)
        return per_class

    def charge(
        self, images: int, own: Int64[Tensor, " k"] | None, asked: bool = True, differentiated: bool = False
    ) -> None:
        """Write down `images` (their identities in `own`, None for all), as queries, as differentiated, or both.

        Raises:
            BudgetExhausted: If they are one query too many for somebody; nothing is then written.
        """
        with self._lock:
            if asked:
                if own is None:
                    most = self._most + images
                else:
                    wanted = self.queries + own
                    most = int(wanted.max()) + self.shared_queries
                if self.budget is not None and most > self.budget:
                    raise BudgetExhausted(f"budget of {self.budget} queries per identity is spent")
                self._most = most
                if own is None:
                    self.shared_queries += images
                else:
                    self.queries = wanted
            if differentiated:
                if own is None:
                    self.shared_gradients += images
                else:
                    self.gradient_images = self.gradient_images + own
        if asked:
            self._tick(images)

    def left(self) -> int | None:
        """How many more images every identity can ask for; None is any number."""
        with self._lock:
            return None if self.budget is None else self.budget - self._most

    def counts(self) -> dict[str, Tensor]:
        """A copy of what has been written down."""
        with self._lock:
            return {
                "queries": self.queries.clone(),
                "gradient_images": self.gradient_images.clone(),
                "shared_queries": torch.tensor(self.shared_queries),
                "shared_gradients": torch.tensor(self.shared_gradients),
            }

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Write down what an earlier, interrupted process asked; nothing can be taken back."""
        if any(bool((count < 0).any()) for count in counts.values()):
            raise UserError("the oracle's counts can grow only; an attack tried to take queries back")
        with self._lock:
            self.queries = self.queries + counts["queries"]
            self.gradient_images = self.gradient_images + counts["gradient_images"]
            self.shared_queries += int(counts["shared_queries"])
            self.shared_gradients += int(counts["shared_gradients"])
            self._most = int(self.queries.max()) + self.shared_queries
        self._tick(int(counts["queries"].sum() + counts["shared_queries"]))

    def settle(self) -> None:
        """Read the flag of labels that were written to behind torch's back.

        Raises:
            UserError: If any were.
        """
        with self._lock:
            changed, self._changed = self._changed, None
        if changed is not None and bool(changed):
            raise UserError(
                "the attack changed its labels in place, in a way that torch does not see (.data), so that the counts "
                "are not whose it says: make a new tensor of labels"
            )


def _several(labels: list[int]) -> str:
    if len(labels) > 1 and labels == list(range(labels[0], labels[-1] + 1)):
        return f"{labels[0]} to {labels[-1]}"
    return ", ".join(map(str, labels[:8])) + (", ..." if len(labels) > 8 else "")
