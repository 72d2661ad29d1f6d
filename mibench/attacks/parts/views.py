"""Oracles laid over an oracle: they show the target several views of each image, and share its counts.

References:
    | Synthesizing Robust Adversarial Examples (Athalye et al., ICML 2018), the expectation over transformations
    | https://arxiv.org/abs/1707.07397
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.core import Cost, Oracle, Term, Transform
from mibench.runtime.rng import Noise

__all__ = ["PLENTY", "Allowance", "Either", "Layer", "Viewed", "viewed_cost"]


@dataclass(eq=False)
class Layer(Oracle):
    """An oracle over another: it asks the target below all layers and counts there; layers differ in what they show.

    Args:
        inner: The oracle below, perhaps a layer itself.
        seed: Decides the views where the attack brings no noise.
    """

    inner: Oracle
    seed: int

    @property
    def base(self) -> Oracle:
        """The oracle below all layers."""
        return self.inner.base if isinstance(self.inner, Layer) else self.inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.base, name)

    def look(self, x: Float[Tensor, "n c h w"], noise: Noise, gradient: bool) -> Float[Tensor, "m c h w"]:
        """What the target sees in place of n images: whole copies of the batch, one after the other."""
        return self.inner.look(x, noise, gradient) if isinstance(self.inner, Layer) else x

    @property
    def draws(self) -> bool:
        """Whether a head that is random in training (see `core.oracle.Drawn`) is as random in losses."""
        return isinstance(self.inner, Layer) and self.inner.draws

    def _chance(self, noise: Noise, looks: int) -> Noise | None:
        """What the head draws from: other streams for each look at each image; None as it is served."""
        if not self.draws:
            return None
        keys = torch.cat([noise.of("head", look).bits(1)[:, 0] for look in range(looks)])
        return Noise(noise.seed, keys, noise.purpose)

    def _fixed(self, x: Float[Tensor, "n c h w"]) -> Noise:
        """Equal streams for all images, so that every image ever asked is seen in the same views."""
        return Noise(self.seed, torch.zeros(len(x), dtype=torch.int64, device=x.device)).of("fixed views")

    def affordable(self, wanted: int, rows: int) -> int:
        """As the oracle below."""
        return self.inner.affordable(wanted, rows)

    def counts(self) -> dict[str, Tensor]:
        """What the target was asked, views counted one by one."""
        return self.base.counts()

    def add(self, counts: Any) -> None:
        """Count what an interrupted process already asked."""
        self.base.add(counts)

    def loss(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], term: Term, noise: Noise
    ) -> Float[Tensor, " n"]:
        """mean over the views v of term(T(v(x))), from one pass of the target."""
        seen = self.look(x, noise, _differentiated(x))
        logits, features = self.base.drawn(seen, labels, self._chance(noise, len(seen) // len(x)))
        views = zip(logits.split(len(x)), features.split(len(x)), strict=True)
        return torch.stack([term(logit, feature, labels) for logit, feature in views]).mean(dim=0)

    def answers(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """Logits and features, averaged over the views."""
        logits, features = self.base.answers(self.look(x, self._fixed(x), _differentiated(x)), labels)
        return _mean(logits, len(x)), _mean(features, len(x))

    @torch.no_grad()
    def probs(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """Scores, averaged over the views."""
        return _mean(self.base.probs(self.look(x, self._fixed(x), False), labels), len(x))

    @torch.no_grad()
    def labels(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Int64[Tensor, " m"]:
        """The class that most views are taken for; the first of equals."""
        seen = self.base.labels(self.look(x, self._fixed(x), False), labels).reshape(-1, len(x))
        votes = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        return votes.scatter_add_(1, seen.T, torch.ones_like(seen.T)).argmax(dim=1)


@dataclass(eq=False)
class Viewed(Layer):
    """An oracle that looks at every image through `copies` random views and averages what it finds.

    A loss is averaged over views that the attack's noise draws anew at each step. Scores, labels and answers bring no
    noise: all images, in whatever batch, are seen through the same `copies` draws of the view (equal rectangles for
    all, say), so that a selection compares like with like.

    Args:
        inner: The oracle below.
        seed: Of the fixed views.
        view: One random view.
        copies: Views of each image; each counts as an image of its own.
        select: Look through the views without a gradient too. Otherwise only what is differentiated is averaged, and
            all else costs and gives what it did. A budget is then planned as if all images were differentiated.
        head: In losses a head that is random in training draws anew for each view; scores, labels and answers are of
            the head as it is served.
    """

    view: Transform
    copies: int
    select: bool = True
    head: bool = False

    @property
    def draws(self) -> bool:
        """Its own, or that of a layer below."""
        return self.head or super().draws

    def look(self, x: Float[Tensor, "n c h w"], noise: Noise, gradient: bool) -> Float[Tensor, "m c h w"]:
        """`copies` views of the batch, each seen through the layers below."""
        if not (gradient or self.select):
            return super().look(x, noise, gradient)
        drawn = [noise.of("copy", copy) for copy in range(self.copies)]
        seen = torch.cat([self.view(x, one) for one in drawn])
        # The layers below draw for each of the copies anew.
        keys = torch.cat([one.of("below").bits(1)[:, 0] for one in drawn])
        return super().look(seen, Noise(noise.seed, keys, noise.purpose), gradient)

    def affordable(self, wanted: int, rows: int) -> int:
        """How many times every identity can ask for `rows` images in all their views."""
        return self.inner.affordable(wanted, rows * self.copies)


@dataclass(eq=False)
class Either(Viewed):
    """An oracle that looks at every image as it is and through `copies` random views, and believes whichever says more.

    A loss is the smaller of the image's own and of its mean over the views; a score the larger of the image's own and
    of its mean over the views, class by class, so that scores need not sum to 1. Logits and features come from the side
    whose softmax gives the image's identity (without one, any class) the higher probability; a label as well.
    """

    def look(self, x: Float[Tensor, "n c h w"], noise: Noise, gradient: bool) -> Float[Tensor, "m c h w"]:
        """The batch itself, then `copies` views of it, each seen through the layers below."""
        if not (gradient or self.select):
            return Layer.look(self, x, noise, gradient)
        drawn = [noise.of("copy", copy) for copy in range(self.copies)]
        seen = torch.cat([x, *(self.view(x, one) for one in drawn)])
        keys = torch.cat([noise.of("itself", "below").bits(1)[:, 0], *(one.of("below").bits(1)[:, 0] for one in drawn)])
        return Layer.look(self, seen, Noise(noise.seed, keys, noise.purpose), gradient)

    def affordable(self, wanted: int, rows: int) -> int:
        """How many times every identity can ask for `rows` images, each as it is and in all its views."""
        return self.inner.affordable(wanted, rows * (self.copies + 1))

    def _sides(self, values: Float[Tensor, "m *d"], rows: int, gradient: bool) -> Float[Tensor, "s n *d"]:
        """Means over what each side asked, the images themselves first; a single side where nothing was viewed."""
        whole = values.reshape(-1, rows, *values.shape[1:])
        if not (gradient or self.select):
            return whole.mean(dim=0, keepdim=True)
        whole = whole.reshape(-1, self.copies + 1, *whole.shape[1:])
        return torch.stack([whole[:, 0].mean(dim=0), whole[:, 1:].mean(dim=(0, 1))])

    def loss(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], term: Term, noise: Noise
    ) -> Float[Tensor, " n"]:
        """min(term(T(x)), mean over the views v of term(T(v(x)))), from one pass of the target."""
        gradient = _differentiated(x)
        seen = self.look(x, noise, gradient)
        logits, features = self.base.drawn(seen, labels, self._chance(noise, len(seen) // len(x)))
        terms = [term(*pair, labels) for pair in zip(logits.split(len(x)), features.split(len(x)), strict=True)]
        return self._sides(torch.cat(terms), len(x), gradient).amin(dim=0)

    def answers(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """Logits and features of the surer side."""
        gradient = _differentiated(x)
        answers = self.base.answers(self.look(x, self._fixed(x), gradient), labels)
        logits, features = (self._sides(values, len(x), gradient) for values in answers)
        p = logits.softmax(dim=2)
        if labels is not None:
            p = p.gather(2, labels.repeat(len(x) // len(labels)).expand(len(p), -1)[:, :, None])
        surer = p.amax(dim=2).argmax(dim=0)
        rows = torch.arange(len(x), device=x.device)
        return logits[surer, rows], features[surer, rows]

    @torch.no_grad()
    def probs(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """The larger score of both sides, class by class."""
        return self._sides(self.base.probs(self.look(x, self._fixed(x), False), labels), len(x), False).amax(dim=0)

    @torch.no_grad()
    def labels(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Int64[Tensor, " m"]:
        """The class that a larger share of either side's looks is taken for; the first of equals."""
        seen = self.base.labels(self.look(x, self._fixed(x), False), labels)
        votes = torch.nn.functional.one_hot(seen, self.num_classes).double()
        return self._sides(votes, len(x), False).amax(dim=0).argmax(dim=1)


PLENTY = 2**62


@dataclass(eq=False)
class Allowance(Layer):
    """An oracle that plans with a share of what is left, so that later rounds have theirs; it changes no image.

    Args:
        inner: The oracle below.
        seed: Unused.
        images: Images per identity, shared ones included, that may be planned with from now on.
    """

    images: int
    least: int = field(init=False)

    def __post_init__(self) -> None:
        self.least = self.inner.affordable(PLENTY, 1) - self.images

    def affordable(self, wanted: int, rows: int) -> int:
        """How many times every identity can ask for `rows` images within the share."""
        if rows == 0:
            return wanted
        left = self.inner.affordable(PLENTY, 1) - self.least
        return max(0, min(self.inner.affordable(wanted, rows), left // rows))


def viewed_cost(cost: Cost, copies: int, select: bool) -> Cost:
    """What an attack asks for through a `Viewed`: with `select` everything, else its gradient images, times copies."""
    if select:
        return Cost(*(copies * count for count in cost))
    return Cost(cost.queries + (copies - 1) * cost.gradient_images, copies * cost.gradient_images, cost.shared_queries)


def _differentiated(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _mean(values: Float[Tensor, "m k"], rows: int) -> Float[Tensor, "n k"]:
    """Over the copies of a batch of `rows`."""
    return values.reshape(-1, rows, values.shape[1]).mean(dim=0)
