"""The adaptive attacker against trapdoors: learns what the triggers look like, and looks past them.

References:
    | Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks (Wang et al., IEEE S&P 2019), one
      universal trigger per class by gradient descent
    | https://doi.org/10.1109/SP.2019.00031
    | On Adaptive Attacks to Adversarial Example Defenses (Tramer et al., NeurIPS 2020)
    | https://arxiv.org/abs/2002.08347
    | Trap-MID: Trapdoor-based Defense against Model Inversion Attacks (Liu and Chen, NeurIPS 2024), the defense
    | https://arxiv.org/abs/2411.08460
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.search import keys, piecewise
from mibench.core import AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, Split, Term, Wrapper
from mibench.core.losses import cross_entropy, on_logits
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Untrap", "Untrapped"]

CARD = {
    "summary": "adaptive attacker: estimates the target's hidden triggers and removes them from what it is shown",
    "title": "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks",
    "authors": "Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao",
    "venue": "IEEE S&P",
    "year": 2019,
    "link": "https://doi.org/10.1109/SP.2019.00031",
    "access": "white_box",
    "prior": None,
    "role": "wrapper",
    "cost": None,
    "wraps": "gradients",
}

PRESETS = {"quick": {"images": 8, "steps": 10}}


class Untrapped(Oracle):
    """An oracle that shows the one below every image without the trigger of its identity: clip((x - a tau) / (1 - a)).

    Images that serve all identities at once (a shared pool) are shown as they are.

    Args:
        inner: The oracle below, which counts.
        triggers: The estimates, in [0, 1].
        places: At each identity, which of the triggers is its own.
        alpha: a, in [0, 1).
    """

    def __init__(
        self, inner: Oracle, triggers: Float[Tensor, "k c h w"], places: Int64[Tensor, " classes"], alpha: float
    ) -> None:
        self.inner, self.triggers, self.places, self.alpha = inner, triggers, places, alpha

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _without(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m c h w"]:
        if labels is None:
            return x
        own = self.triggers[self.places[labels]].repeat(len(x) // len(labels), 1, 1, 1)
        return ((x - self.alpha * own) / (1.0 - self.alpha)).clamp(0.0, 1.0)

    def affordable(self, wanted: int, rows: int) -> int:
        """As the oracle below."""
        return self.inner.affordable(wanted, rows)

    def counts(self) -> dict[str, Tensor]:
        """As the oracle below."""
        return self.inner.counts()

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Count what an interrupted process already asked."""
        self.inner.add(counts)

    def loss(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], term: Term, noise: Noise
    ) -> Float[Tensor, " n"]:
        """term(T(x without its trigger)), through the views of the layers below."""
        return self.inner.loss(self._without(x, labels), labels, term, noise)

    def answers(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """Logits and features of what is left."""
        return self.inner.answers(self._without(x, labels), labels)

    def drawn(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None, noise: Noise | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """The same, of a head that is random in training."""
        return self.inner.drawn(self._without(x, labels), labels, noise)

    @torch.no_grad()
    def probs(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """Scores of what is left."""
        return self.inner.probs(self._without(x, labels), labels)

    @torch.no_grad()
    def labels(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Int64[Tensor, " m"]:
        """The class of what is left."""
        return self.inner.labels(self._without(x, labels), labels)


@dataclass(frozen=True)
class Untrap(Wrapper):
    """tau_y = argmin_tau E_x CE(f((1 - a) x + a tau), y) over public images x; then the attack sees f(x without tau_y).

    A decoy lives on its trigger: without it the score is gone, and only a person's features bring it back. The estimate
    is found by tau <- clip(tau - step sign grad, 0, 1) from grey, with other public images at every step. An image that
    wears no trigger loses one too, so that the score of a whole person sinks as well; the search makes up for it.

    Args:
        alpha: a, how much of an image a trigger is; the published .02. 0 removes nothing and asks nothing.
        images: Public images per identity and step.
        steps: Sign steps of the estimate.
        step: Size of one, in pixel units of [0, 1].

    Source: ours, as the first two papers suggest: the attacker knows which defense is used, but not its triggers.
    Differs: from the first paper in that the trigger is blended in with a known a; theirs searches a mask too. Under a
    budget the estimate gets its part of what the whole attack would ask.
    """

    alpha: float = 0.02
    images: int = 16
    steps: int = 20
    step: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1 or not 0 < self.step <= 1:
            raise UserError(f"untrap: alpha must lie in [0, 1) and step in (0, 1], got {self.alpha} and {self.step}")
        if self.images < 1 or self.steps < 1:
            raise UserError(f"untrap: images and steps must be at least 1, got {self.images} and {self.steps}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """The attack's, and a gradient image for each public image of each step."""
        inside, own = self.wrapped.cost(prior, public), self._own
        return Cost(inside.queries + own, inside.gradient_images + own, inside.shared_queries)

    @property
    def _own(self) -> int:
        return self.images * self.steps if self.alpha else 0

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Estimate, then attack what is left."""
        if self.alpha == 0:
            return self.wrapped(oracle, prior, labels, seed, work)
        public = work.images("untrap")
        cost = self.cost(prior, len(public))
        whole = cost.queries + cost.shared_queries
        left = max(0, oracle.affordable(whole, 1) - cost.shared_queries)
        steps = left * self.steps // cost.queries

        def part(rows: slice) -> Tensor:
            return self._estimate(oracle, public, labels[rows], steps, seed, work).flatten(1)

        wide = replace(work, batch=max(1, work.batch // self.images))
        triggers = piecewise("untrap", len(labels), oracle, wide, part).reshape(-1, *public.images.shape[1:])
        places = torch.zeros(oracle.num_classes, dtype=torch.int64, device=labels.device)
        places[labels] = torch.arange(len(labels), device=labels.device)
        return self.wrapped(Untrapped(oracle, triggers, places, self.alpha), prior, labels, seed, work)

    def _estimate(
        self, oracle: Oracle, public: Split, labels: Int64[Tensor, " k"], steps: int, seed: int, work: AttackContext
    ) -> Float[Tensor, "k c h w"]:
        """One universal trigger for each identity."""
        y, key = keys(labels, self.images)
        noise = Noise(seed, key).of("untrap")
        triggers = torch.full((len(labels), *public.images.shape[1:]), 0.5, device=labels.device)
        term = on_logits(cross_entropy)
        held = Held(triggers=triggers)
        for step in work.steps(steps, held):
            drawn = noise.of("step", step)
            # u < 1 in float32, but u * n may round up to n.
            chosen = (drawn.of("image").uniform(1)[:, 0] * len(public)).long().clamp(max=len(public) - 1)
            x = public.at(chosen)
            triggers = held.triggers.requires_grad_()
            with torch.enable_grad():
                worn = triggers[:, None].expand(-1, self.images, -1, -1, -1).flatten(0, 1)
                values = oracle.loss((1.0 - self.alpha) * x + self.alpha * worn, y, term, drawn)
                (gradient,) = torch.autograd.grad(values.sum(), triggers)
            held.triggers = (triggers.detach() - self.step * gradient.sign()).clamp(0.0, 1.0)
        return held.triggers.detach()
