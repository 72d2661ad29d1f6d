"""The only door to the target: counted, budgeted, and closed above the attacker's access.

It guards against mistakes, not against malice: an attack in the same process can always find the network in memory.
`--isolate` puts a process between the two (`isolation/guard.py`).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mibench.core.access import Access
from mibench.core.ledger import BudgetExhausted, Ledger
from mibench.core.meter import Meter
from mibench.core.plain import require_images, require_labels, require_plain, without_tangents
from mibench.core.trace import Trace
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["BudgetExhausted", "Drawn", "Oracle", "Term"]


Term = Callable[[Float[Tensor, "m k"], Float[Tensor, "m d"], Int64[Tensor, " m"]], Float[Tensor, " m"]]
"""(logits, penultimate features, identities) -> what an attack minimises, one value per image."""


@runtime_checkable
class Drawn(Protocol):
    """A head that is random in training and not when it is served (`mid`)."""

    def draw(self, features: Float[Tensor, "m d"], noise: Noise) -> Float[Tensor, "m k"]:
        """Logits as in training, the randomness drawn from the noise, one stream for each row."""


class Oracle:
    """The only door to the target: counted, budgeted, and closed above the attack's access.

    Every call names the identity each image is for (`labels`, repeated in order if `x` holds several views), or None
    for images that serve all identities at once (a shared search pool), which count for each identity.

    It takes plain tensors only (see `core.plain`). Below white box what it is given and what it answers is detached
    and has no tangents. In white box gradients flow, and every backward pass through an answer is counted in
    `gradient_images`: the first is part of the query, each further one (a graph that is kept and differentiated again,
    a gradient that is differentiated once more) is a query of its own. So one answer cannot be asked for more than the
    budget allows either, and gradient images never exceed queries.

    Counting is safe under threads. What the network is really run on is counted a second time while the oracle is
    `watched`, and a difference is an error.

    Args:
        target: The deployed target; images in [0, 1] to logits; `.features` gives its penultimate layer.
        access: What it grants.
        num_classes: How many classes the target has.
        budget: Most image queries per identity; None is unlimited.
        tick: Told of every image queried (a progress bar).
        attacked: The identities under attack: no other may be asked under. None is all.
        trace: Where what the target answers for each identity is noted; None is nowhere.
    """

    _trace: Trace | None = None

    def __init__(
        self,
        target: nn.Module,
        access: Access,
        num_classes: int,
        budget: int | None = None,
        tick: Callable[[int], None] | None = None,
        attacked: Iterable[int] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._target = target
        self._trace = trace
        self._access = access
        self._ledger = Ledger(num_classes, budget, attacked, tick or (lambda count: None))
        self._meter = Meter(target)
        self._stored = {one.untyped_storage().data_ptr() for one in [*target.parameters(), *target.buffers()]}
        self.device = next(target.parameters()).device

    @property
    def access(self) -> Access:
        """What it grants."""
        return self._access

    @property
    def num_classes(self) -> int:
        """How many classes the target has."""
        return self._ledger.num_classes

    @property
    def budget(self) -> int | None:
        """Most image queries per identity; None is unlimited."""
        return self._ledger.budget

    @property
    def queries(self) -> Int64[Tensor, " k"]:
        """Images asked under each identity, a copy."""
        return self._ledger.queries.clone()

    @property
    def gradient_images(self) -> Int64[Tensor, " k"]:
        """Images differentiated for each identity, once for every backward pass; a copy."""
        return self._ledger.gradient_images.clone()

    @property
    def shared_queries(self) -> int:
        """Images that served all identities."""
        return self._ledger.shared_queries

    @property
    def shared_gradients(self) -> int:
        """Of these, differentiated ones, once for every backward pass."""
        return self._ledger.shared_gradients

    def _admit(
        self, access: Access, what: str, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None
    ) -> Int64[Tensor, " k"] | None:
        """Refuse what may not be asked, else count it; returns the images per identity, None for shared ones."""
        if self._access < access:
            raise UserError(
                f"this attack asked the target for {what}, which needs {access.name.lower()} access; it was granted "
                f"{self._access.name.lower()}"
            )
        require_images(x)
        own = None
        if labels is not None:
            require_labels(labels, len(x))
            own = self._ledger.per_class(labels) * (len(x) // len(labels))
        self._ledger.charge(len(x), own)
        return own

    def affordable(self, wanted: int, rows: int) -> int:
        """How many times, at most `wanted`, every identity can still ask for `rows` images each.

        An attack plans with this before it splits its work: otherwise the identities and restarts that happen to be
        searched first would spend what the others need.
        """
        left = self._ledger.left()
        return wanted if left is None or rows == 0 else max(0, min(wanted, left // rows))

    def counts(self) -> dict[str, Tensor]:
        """What has been asked so far: queries and gradient images per class, and queries shared by all classes; where
        there is a trace, what was answered too."""
        return self._ledger.counts() | (self._trace.counts() if self._trace is not None else {})

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Count what an earlier, interrupted process already asked.

        Raises:
            UserError: If a count is negative.
        """
        self._ledger.add(counts)
        if self._trace is not None:
            self._trace.add(counts)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count a second time at the network itself, and compare at the end.

        Raises:
            UserError: If the network was run on other images than were counted, see `check`.
        """
        with self._meter:
            yield
            self.check()

    def check(self) -> None:
        """Compare the two counts so far, and the labels with what they were when they were read.

        Raises:
            UserError: If the network was run past the oracle (`Uncounted`), or labels were changed unseen.
        """
        self._meter.check()
        self._ledger.settle()

    def _counted(self, x: Float[Tensor, "m c h w"], own: Int64[Tensor, " k"] | None) -> Float[Tensor, "m c h w"]:
        """The same images with a hook in the graph: every backward pass comes by here on its way to them."""
        passes = itertools.count()

        def through(gradient: Tensor) -> Tensor | None:
            require_plain(gradient, "the gradients are")
            self._ledger.charge(len(x), own, asked=next(passes) > 0, differentiated=True)
            return watched(gradient) if gradient.requires_grad else None

        def watched(tensor: Tensor) -> Tensor:
            seen = tensor.view_as(tensor)
            seen.register_hook(through)
            return seen

        return watched(x)

    def _own(self, answer: Tensor) -> Tensor:
        """The answer, never a tensor of the target's: what an attack does to it in place must not reach the weights."""
        return answer.clone() if answer.untyped_storage().data_ptr() in self._stored else answer

    def logits(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """White box: raw logits, differentiable in x. m is a multiple of n (several views of each image)."""
        return self.answers(x, labels)[0]

    def answers(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """White box: logits and penultimate features from one forward pass, differentiable in x."""
        return self.drawn(x, labels, None)

    def drawn(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None, noise: Noise | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """As `answers`; with noise, of m streams, a head that is random in training (`Drawn`) is as random here."""
        own = self._admit(Access.WHITE_BOX, "gradients", x, labels)
        differentiable = torch.is_grad_enabled() and x.requires_grad
        with torch.set_grad_enabled(differentiable), without_tangents(), self._meter.question(len(x)):
            features = self._target.features(self._counted(x, own) if differentiable else x.detach())  # type: ignore[operator]
            head = self._target.head
            if noise is not None and isinstance(head, Drawn):  # noqa: SIM108 (no line holds it as one expression)
                logits = head.draw(features, noise)
            else:
                logits = head(features)  # type: ignore[operator]
            self._note(labels, logits)
            return self._own(logits.float()), self._own(features.float())

    def loss(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], term: Term, noise: Noise
    ) -> Float[Tensor, " n"]:
        """White box: term(logits, features, labels), one value per image, differentiable in x.

        An oracle that looks at an image through several views (see attacks/parts/views.py) averages over them; `noise`
        draws the views. So a gradient attack that asks for losses, not for logits, can be wrapped by `eot` and `align`.
        """
        logits, features = self.answers(x, labels)
        return term(logits, features, labels)

    def probs(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """Black box: served scores, no gradient; a white-box attacker computes the network's own softmax."""
        self._admit(Access.BLACK_BOX, "scores", x, labels)
        with torch.no_grad(), without_tangents():
            logits = self._scored(x).float()
            self._note(labels, logits)
            return torch.softmax(logits, dim=1)

    def _scored(self, x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
        with self._meter.question(len(x)):
            if self._access < Access.WHITE_BOX:
                return self._target(x.detach())
            # Who holds the weights is not bound to what the service makes of their scores.
            return self._target.head(self._target.features(x.detach()))  # type: ignore[operator]

    def labels(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Int64[Tensor, " m"]:
        """Label only: the predicted class."""
        self._admit(Access.LABEL_ONLY, "labels", x, labels)
        with torch.no_grad(), without_tangents():
            named = self._scored(x).argmax(dim=1)
            self._note(labels, named)
            return named

    def _note(self, labels: Int64[Tensor, " n"] | None, answer: Tensor) -> None:
        """Trace logits or, of one dimension, labels that answer a question for identities."""
        if self._trace is None or labels is None:
            return
        if answer.ndim == 1:
            self._trace.note(labels, answer)
        else:
            self._trace.note(labels, answer.argmax(dim=1), answer)
