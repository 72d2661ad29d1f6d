"""How sure the target was along an attack's queries: what its curves are drawn of.

Everything stays on the device and nothing is read from it until the end, so a search never waits for it. Sums are of
whole numbers, so that neither the order of a device's additions nor an interruption changes them.
"""

import threading
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Moment", "Trace"]

PARTS = 50
"""Intervals of a trace, at most."""

UNIT = 2**20
"""Probabilities and losses are added up in so many parts of one."""

CEILING = 64.0
"""Nats that one image adds to the loss at most; a probability of 1e-28."""


class Moment(NamedTuple):
    """What the target answered within one interval.

    Args:
        step: Where it ends: images asked for one person.
        of: Images that are asked for one person in all.
        images: Answers in it, of all people together.
        agreement: Share of them that name the person who was asked for, in [0, 1].
        reached: Share of the attacked people who have been named at least once so far.
        confidence: Mean probability of the person who was asked for; None where only labels are answered.
        loss: Mean cross-entropy of the person who was asked for, in nats; None likewise.
    """

    step: int
    of: int
    images: int
    agreement: float
    reached: float
    confidence: float | None
    loss: float | None

    def line(self) -> dict[str, int | float]:
        """The record without what was not measured."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class Trace:
    """Answers by how much had been asked for the same person before: the first images of all people come together.

    An image that is asked for a person as number q (from 0) of `per_person` lies in interval floor(q PARTS /
    per_person); what is asked beyond lies in the last. Images that serve all people at once are no one's and lie in
    none. Where a person's restarts are searched one batch after the other, the second begins where the first ended.

    Args:
        num_classes: Of the target.
        people: How many of them are attacked.
        per_person: Images that are asked for one person in all; at least 1.
        device: Where the answers are.
    """

    def __init__(self, num_classes: int, people: int, per_person: int, device: torch.device) -> None:
        self.people, self.per_person = people, per_person
        self.parts = min(PARTS, per_person)
        self._asked = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._named = torch.zeros(num_classes * self.parts, dtype=torch.int64, device=device)
        self._sums = torch.zeros(self.parts, 4, dtype=torch.int64, device=device)
        self._lock = threading.Lock()

    @torch.no_grad()
    def note(
        self, labels: Int64[Tensor, " n"], named: Int64[Tensor, " m"], logits: Float[Tensor, "m k"] | None = None
    ) -> None:
        """What the target answered.

        Args:
            labels: Who was asked for; repeated in order where m is a multiple of n (several views).
            named: The class that each image was taken for.
            logits: What the network said of each; None where the attacker is told labels alone.
        """
        own = labels.detach().to(self._asked.device).repeat(len(named) // len(labels))
        one = torch.ones_like(own)
        agreed = (named.detach() == own).to(torch.int64)
        if logits is None:
            measured = torch.stack([one, torch.zeros_like(one), torch.zeros_like(one), torch.zeros_like(one)], dim=1)
        else:
            loss = F.cross_entropy(logits.detach().float(), own, reduction="none")
            loss = loss.nan_to_num(CEILING).clamp(max=CEILING)
            parts = torch.stack([(-loss).exp(), loss], dim=1)
            measured = torch.cat([one[:, None], one[:, None], (parts * UNIT).round().to(torch.int64)], dim=1)
        with self._lock:
            part = (self._asked[own] * self.parts // self.per_person).clamp(max=self.parts - 1)
            self._asked.index_add_(0, own, one)
            self._named.index_add_(0, own * self.parts + part, agreed)
            self._sums.index_add_(0, part, measured)

    def counts(self) -> dict[str, Tensor]:
        """Everything noted so far, as sums: what an interrupted process noted can be added."""
        with self._lock:
            known = {"asked": self._asked, "named": self._named, "sums": self._sums}
            return {f"trace.{name}": tensor.clone().cpu() for name, tensor in known.items()}

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Note again what an earlier, interrupted process did; nothing where its mibench kept no trace."""
        with self._lock:
            for name, tensor in (("asked", self._asked), ("named", self._named), ("sums", self._sums)):
                if (known := counts.get(f"trace.{name}")) is not None and known.shape == tensor.shape:
                    tensor += known.to(tensor.device)

    def moments(self) -> list[Moment]:
        """The intervals in which something was answered, in order."""
        counts = self.counts()
        named = counts["trace.named"].reshape(-1, self.parts)
        reached = ((named.cumsum(dim=1) > 0).sum(dim=0).double() / self.people).tolist()
        made = []
        for part, (images, scored, confidence, loss) in enumerate(counts["trace.sums"].tolist()):
            if images:
                means = (confidence / UNIT / scored, loss / UNIT / scored) if scored else (None, None)
                step = -(-(part + 1) * self.per_person // self.parts)
                agreement = int(named[:, part].sum()) / images
                made.append(Moment(step, self.per_person, images, agreement, reached[part], *means))
        return made
