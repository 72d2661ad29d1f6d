"""The only door to the target: counted, budgeted, and closed above the attacker's access."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mibench.core.access import Access
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["BudgetExhausted", "Oracle", "Term"]


Term = Callable[[Float[Tensor, "m k"], Float[Tensor, "m d"], Int64[Tensor, " m"]], Float[Tensor, " m"]]
"""(logits, penultimate features, identities) -> what an attack minimises, one value per image."""


class BudgetExhausted(Exception):
    """The attack asked for more than its budget allows; the query was not answered."""


class Oracle:
    """The only door to the target: counted, budgeted, and closed above the attack's access.

    Every call names the identity each image is for (`labels`, repeated in order if `x` holds several views), or None
    for images that serve all identities at once (a shared search pool), which count for each identity.

    Args:
        target: The deployed target; images in [0, 1] to logits; `.features` gives its penultimate layer.
        access: What it grants.
        num_classes: How many classes the target has.
        budget: Most image queries per identity; None is unlimited.
        tick: Told of every image queried (a progress bar).
    """

    def __init__(
        self,
        target: nn.Module,
        access: Access,
        num_classes: int,
        budget: int | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> None:
        self._target = target
        self.access = access
        self.num_classes = num_classes
        self.budget = budget
        self._tick = tick or (lambda count: None)
        self.device = next(target.parameters()).device
        self.queries = torch.zeros(num_classes, dtype=torch.int64)
        self.gradient_images = torch.zeros(num_classes, dtype=torch.int64)
        self.shared_queries = 0
        self.shared_gradients = 0
        self._seen: tuple[Tensor, Tensor] | None = None

    def _need(self, access: Access, what: str) -> None:
        if self.access < access:
            raise UserError(
                f"this attack asked the target for {what}, which needs {access.name.lower()} access; it was granted "
                f"{self.access.name.lower()}"
            )

    def _per_class(self, labels: Int64[Tensor, " n"]) -> Int64[Tensor, " k"]:
        # A search passes the same tensor object at every step, so the device is asked for its labels only once.
        if self._seen is None or self._seen[0] is not labels:
            self._seen = (labels, torch.bincount(labels.cpu(), minlength=self.num_classes))
        return self._seen[1]

    def _count(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None, gradient: bool) -> None:
        if labels is not None and len(x) % len(labels):
            raise ValueError(f"{len(x)} images are no whole number of views of {len(labels)} labelled ones")
        if labels is None:
            wanted = self.queries + self.shared_queries + len(x)
        else:
            wanted = self.queries + self.shared_queries + self._per_class(labels) * (len(x) // len(labels))
        if self.budget is not None and int(wanted.max()) > self.budget:
            raise BudgetExhausted(f"budget of {self.budget} queries per identity is spent")
        self._tick(len(x))
        if labels is None:
            self.shared_queries += len(x)
            self.shared_gradients += len(x) if gradient else 0
            return
        self.queries = wanted - self.shared_queries
        if gradient:
            self.gradient_images = self.gradient_images + self._per_class(labels) * (len(x) // len(labels))

    def affordable(self, wanted: int, rows: int) -> int:
        """How many times, at most `wanted`, every identity can still ask for `rows` images each.

        An attack plans with this before it splits its work: otherwise the identities and restarts that happen to be
        searched first would spend what the others need.
        """
        if self.budget is None or rows == 0:
            return wanted
        return max(0, min(wanted, (self.budget - self.shared_queries - int(self.queries.max())) // rows))

    def counts(self) -> dict[str, Tensor]:
        """What has been asked so far: queries and gradient images per class, and queries shared by all classes."""
        return {
            "queries": self.queries,
            "gradient_images": self.gradient_images,
            "shared_queries": torch.tensor(self.shared_queries),
            "shared_gradients": torch.tensor(self.shared_gradients),
        }

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Count what an earlier, interrupted process already asked."""
        self.queries = self.queries + counts["queries"]
        self.gradient_images = self.gradient_images + counts["gradient_images"]
        self.shared_queries += int(counts["shared_queries"])
        self.shared_gradients += int(counts["shared_gradients"])
        self._tick(int(counts["queries"].sum() + counts["shared_queries"]))

    def logits(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """White box: raw logits, differentiable in x. m is a multiple of n (several views of each image)."""
        return self.answers(x, labels)[0]

    def answers(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """White box: logits and penultimate features from one forward pass, differentiable in x."""
        self._need(Access.WHITE_BOX, "gradients")
        self._count(x, labels, gradient=torch.is_grad_enabled() and x.requires_grad)
        features = self._target.features(x)  # type: ignore[operator]
        return self._target.head(features).float(), features.float()  # type: ignore[operator]

    def loss(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], term: Term, noise: Noise
    ) -> Float[Tensor, " n"]:
        """White box: term(logits, features, labels), one value per image, differentiable in x.

        An oracle that looks at an image through several views (see attacks/parts/views.py) averages over them; `noise`
        draws the views. So a gradient attack that asks for losses, not for logits, can be wrapped by `eot` and `align`.
        """
        logits, features = self.answers(x, labels)
        return term(logits, features, labels)

    @torch.no_grad()
    def probs(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """Black box: served scores, no gradient; a white-box attacker computes the network's own softmax."""
        self._need(Access.BLACK_BOX, "scores")
        self._count(x, labels, gradient=False)
        return torch.softmax(self._scored(x).float(), dim=1)

    def _scored(self, x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
        if self.access < Access.WHITE_BOX:
            return self._target(x)
        # Who holds the weights is not bound to what the service makes of their scores.
        return self._target.head(self._target.features(x))  # type: ignore[operator]

    @torch.no_grad()
    def labels(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Int64[Tensor, " m"]:
        """Label only: the predicted class."""
        self._need(Access.LABEL_ONLY, "labels")
        self._count(x, labels, gradient=False)
        return self._scored(x).argmax(dim=1)
