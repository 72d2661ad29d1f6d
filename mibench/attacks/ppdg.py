"""PPDG-MI: what an attack has found tunes the prior, class by class, and the attack runs again with the tuned prior.

References:
    | Pseudo-Private Data Guided Model Inversion Attacks (Peng et al., NeurIPS 2024)
    | https://arxiv.org/abs/2410.02330
    | Exploiting Chain Rule and Bayes' Theorem to Compare Probability Distributions (Zheng and Zhou, NeurIPS 2021), the
      conditional transport
    | https://arxiv.org/abs/2012.14100
    | A Kernel Two-Sample Test (Gretton et al., JMLR 2012), the MMD
    | https://jmlr.org/papers/v13/gretton12a.html
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.attacks.parts.search import keys, robust_confidence
from mibench.attacks.parts.views import Allowance
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, Wrapper
from mibench.core.steps import Held
from mibench.priors.tuned import Tuned, Weights
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["PPDG", "conditional_transport", "features", "mmd", "pivot_rate", "pointwise"]

CARD = {
    "summary": "PPDG-MI: tune a copy of the prior towards each identity's best reconstructions, then attack again",
    "title": "Pseudo-Private Data Guided Model Inversion Attacks",
    "authors": "Peng, Han, Liu, Liu and Zhou",
    "venue": "NeurIPS",
    "year": 2024,
    "link": "https://arxiv.org/abs/2410.02330",
    "access": "white_box",
    "prior": None,
    "role": "wrapper",
    "cost": None,
    "requires": ["gradients"],
    "inside": "tunes the prior",
}

PRESETS = {
    "paper": {},
    "quick": {"candidates": 3, "keep": 3, "pivot_steps": 20, "pivot_lr": 0.15, "steps": 10, "lr": 0.001},
}

# high_resolution of tmlr-group/PPDG-MI at commit b8e73b6: configs/attacking/CelebA_FFHQ_tuneG.yaml, the README's
# commands and attack_tuneG.py. Both rounds return all 100 candidates. PPDG-PW, -CT and -MMD.
AROUND = {
    "ppa": {
        "paper": {
            "ppa.pool": 500,
            "ppa.candidates": 100,
            "ppa.images": 100,
            "ppa.steps": 70,
            "ppa.reference_batch": 20,
        },
        "paper_ct": {
            "ppa.pool": 500,
            "ppa.candidates": 100,
            "ppa.images": 100,
            "ppa.steps": 70,
            "ppa.reference_batch": 20,
            "loss": "conditional_transport",
            "keep": 10,
            "pivot_steps": 150,
            "steps": 25,
        },
        "paper_mmd": {
            "ppa.pool": 500,
            "ppa.candidates": 100,
            "ppa.images": 100,
            "ppa.steps": 70,
            "ppa.reference_batch": 20,
            "loss": "mmd",
            "keep": 10,
            "pivot_steps": 100,
        },
    }
}

Sources = Float[Tensor, "k s d"]
Targets = Float[Tensor, "k t d"]


def features(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Images as vectors whose squared distance compares them at four scales.

    |features(x) - features(y)|^2 = 64 mean_s mean (pool_s(2x - 1) - pool_s(2y - 1))^2, pool_s the average over squares
    of s = 1, 2, 4 and 8 pixels (fewer where the image is smaller). The 64 gives the dot products of two images the
    size at which a softmax over them neither picks one nor ignores them.
    """
    x = 2.0 * x.float() - 1.0
    scales = [scale for scale in (1, 2, 4, 8) if scale <= min(x.shape[2:])]
    pooled = [F.avg_pool2d(x, scale).flatten(1) for scale in scales]
    return torch.cat([part * math.sqrt(64.0 / (len(scales) * part.shape[1])) for part in pooled], dim=1)


def pointwise(source: Sources, target: Sources) -> Float[Tensor, " k"]:
    """mean_i |s_i - t_i|^2: each image is drawn to one of its own."""
    return (source - target).square().sum(dim=2).mean(dim=1)


def conditional_transport(source: Sources, target: Targets) -> Float[Tensor, " k"]:
    """The mean cost of carrying each image of one set to the other set's likeliest counterparts, both ways.

    1/2 mean_s sum_t softmax_t(<t, s>) c(s, t) + 1/2 mean_t sum_s softmax_s(<t, s>) c(s, t), c = 1 - cos.
    """
    likeness = target @ source.transpose(1, 2)
    cost = 1.0 - F.normalize(target, dim=2) @ F.normalize(source, dim=2).transpose(1, 2)
    forward = (likeness.softmax(dim=1) * cost).sum(dim=1).mean(dim=1)
    backward = (likeness.softmax(dim=2) * cost).sum(dim=2).mean(dim=1)
    return 0.5 * (forward + backward)


def mmd(source: Sources, target: Targets) -> Float[Tensor, " k"]:
    """E k(s, s') + E k(t, t') - 2 E k(s, t), biased: every pair counts, also an image with itself.

    k(a, b) = sum_{i=-2}^{2} exp(-|a - b|^2 / (2^i w)), w the mean of |a - b|^2 over different members of both sets
    together (held fixed when differentiated).
    """
    both = torch.cat([source, target], dim=1)
    count, own = both.shape[1], source.shape[1]
    # Differences, not |a|^2 + |b|^2 - 2ab: near 0 that loses every digit.
    squared = (both[:, :, None] - both[:, None]).square().sum(dim=3)
    width = (squared.detach().sum(dim=(1, 2), keepdim=True) / (count * (count - 1))).clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-squared / (2.0**power * width)) for power in range(-2, 3)]).sum(dim=0)
    inside = kernel[:, :own, :own].mean(dim=(1, 2)) + kernel[:, own:, own:].mean(dim=(1, 2))
    return inside - 2.0 * kernel[:, :own, own:].mean(dim=(1, 2))


def pivot_rate(t: float) -> float:
    """StyleGAN2's projector at t = step / steps: (1/2 - cos(pi min(1, 4 (1 - t))) / 2) min(1, 20 t); 0 at the first."""
    return (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / 0.25))) * min(1.0, t / 0.05)


DISTANCES: dict[str, Callable[[Sources, Targets], Tensor]] = {
    "pointwise": pointwise,
    "conditional_transport": conditional_transport,
    "mmd": mmd,
}


@dataclass(frozen=True)
class PPDG(Wrapper):
    """for each round: x = attack(prior); keep the best of x; tune a copy of the generator towards them; attack again.

    Tuning, for each identity: latents w, found from the mean latent by min_w d(G(w), kept), so that they lie where the
    prior has mass; then min over G's weights of d(G(w), kept). d is `loss` between the images' `features`.
    The last round is the attack as configured, the same seed and a tuned prior: without steps its result is that of
    the attack alone. Earlier ones return (and where the attack optimises candidates, optimise) `candidates` images.

    Args:
        rounds: Attacks; the paper's 2.
        candidates: Reconstructions per identity that all rounds but the last return.
        keep: How many of these make the pseudo-private set: the best by mean p_y over random views. The authors: 5
            with pointwise, 10 with the other losses.
        views: Random views for that; none are needed if all are kept.
        view_scale: Area of a view's crop; the authors crop around LOMMA and PLG (.8-1), not around PPA.
        mirror: Mirror half of the views.
        loss: pointwise (PW), conditional_transport (CT) or mmd.
        pivot_steps: Adam steps for w. The authors: 300 (PW), 150 (CT), 100 (MMD).
        pivot_lr: Its learning rate, rising from 0 over the first 5% of the steps, falling as a cosine over the last
            25%; see `pivot_rate`.
        pivot_noise: Noise on w at the first step, as a share of the latents' spread
            (mean |w - mean w|^2)^(1/2); falls as max(0, 1 - t / .75)^2.
        steps: Adam steps for the weights. The authors: 150 (PW and MMD), 25 (CT).
        lr: Their learning rate.

    Source: sections 3 and 4 of the paper; values of the authors' code around PPA, which lets PPA search 500 latents
    and return all 100 candidates in both rounds: see AROUND.
    Differs: d is a distance of pixels at four scales (theirs of VGG features, which need weights from the web), without
    the weak adversarial term; the copies are tuned in this way around every attack (around LOMMA and PLG the authors
    train the whole GAN on, on public images and kept ones). Images that an attack has decode without an identity (PPA's
    pool) come from the prior as it was, so that all identities share them. Every round searches with the same seed.
    """

    rounds: int = 2
    candidates: int = 100
    keep: int = 5
    views: int = 100
    view_scale: tuple[float, float] = (1.0, 1.0)
    mirror: bool = True
    loss: Literal["pointwise", "conditional_transport", "mmd"] = "pointwise"
    pivot_steps: int = 300
    pivot_lr: float = 0.01
    pivot_noise: float = 0.05
    steps: int = 150
    lr: float = 3e-4

    def __post_init__(self) -> None:
        if self.rounds < 2 or not 1 <= self.keep <= self.candidates:
            raise UserError(
                f"ppdg: rounds must be at least 2 and 1 <= keep <= candidates, got {self.rounds}, {self.keep} and "
                f"{self.candidates}"
            )
        if not 0 < self.view_scale[0] <= self.view_scale[1] <= 1:
            raise UserError(f"ppdg: view_scale must satisfy 0 < low <= high <= 1, got {self.view_scale}")
        if self.keep < 2 and self.loss != "pointwise":
            raise UserError(f"ppdg: the loss {self.loss} compares sets; keep at least 2 reconstructions")

    def seen(self, prior: Capabilities) -> Capabilities:
        """A prior whose copies are tuned (`Tuned`) has one latent space and cannot be entered."""
        tuned = Capabilities()
        tuned.critic_kind, tuned.differentiable = prior.critic_kind, prior.differentiable
        tuned.conditional, tuned.spaces = prior.conditional, prior.spaces[:1]
        return tuned

    def require(self, prior: Capabilities) -> None:
        """Also of the rounds that ask for `candidates` images."""
        super().require(prior)
        self.wide.require(self.seen(prior))

    @property
    def wide(self) -> Attack:
        """The attack with `candidates` images, which all rounds but the last run."""
        return _with_images(self.wrapped, self.candidates)

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """All rounds and the ranking between them."""
        costs = self._costs(prior, public)
        return Cost(*(sum(counts) for counts in zip(*costs, strict=True)))

    def _costs(self, prior: Capabilities, public: int) -> list[Cost]:
        """Of each round; all but the last with the ranking of what they found."""
        wide = self.wide.cost(prior, public)
        ranked = Cost(wide.queries + self.candidates * self._views, wide.gradient_images, wide.shared_queries)
        return [ranked] * (self.rounds - 1) + [self.wrapped.cost(prior, public)]

    @property
    def _views(self) -> int:
        return self.views if self.keep < self.candidates else 0

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Attack, keep, tune, attack again."""
        costs = self._costs(prior, len(work.public) if work.public is not None else 0)
        tuned = Tuned(prior, {})
        for number, cost in enumerate(costs[:-1]):
            inside = work.below(f"ppdg-{number}")
            share = _share(oracle, cost, costs[number:])
            found = self.wide(share, tuned, labels, seed, inside)
            kept = self._best(share, found, seed, number, inside)
            tuned = self._tune(tuned, kept, labels, seed, number, share, inside)
        return self.wrapped(oracle, tuned, labels, seed, work.below(f"ppdg-{len(costs) - 1}"))

    def _best(
        self, oracle: Oracle, found: Reconstructions, seed: int, number: int, work: AttackContext
    ) -> Float[Tensor, "k s c h w"]:
        """The pseudo-private set of each identity, best first."""
        images = found.images.reshape(-1, self.candidates, *found.images.shape[1:])
        if self.keep == self.candidates:
            return images
        _, key = keys(found.labels[:: self.candidates], self.candidates)
        noise = Noise(seed, key).of("ppdg-rank", number)
        views = oracle.affordable(self.views, self.candidates)

        def rank() -> Tensor:
            return robust_confidence(
                oracle,
                lambda rows: found.images[rows],
                found.labels,
                noise,
                views,
                self.mirror,
                work,
                self.view_scale,
                (1.0, 1.0),
            )

        confidence = work.once("ppdg-rank", oracle, rank).reshape(-1, self.candidates)
        best = confidence.topk(self.keep, dim=1).indices
        return images[torch.arange(len(best), device=best.device)[:, None], best]

    def _tune(
        self,
        prior: Tuned,
        kept: Float[Tensor, "k s c h w"],
        labels: Int64[Tensor, " k"],
        seed: int,
        number: int,
        oracle: Oracle,
        work: AttackContext,
    ) -> Tuned:
        """The prior with a copy for each identity, tuned towards its set."""
        if self.steps == 0:
            return prior

        def copy(place: int, label: int) -> Weights:
            wanted = features(kept[place])
            noise = Noise(seed, labels[place][None]).of("ppdg-pivots", number)
            return self._copy(prior, self._pivots(prior, wanted, label, noise, work), wanted, label, work)

        copies = {
            label: work.once(f"ppdg-copy-{label}", oracle, partial(copy, place, label))
            for place, label in enumerate(labels.tolist())
        }
        return Tuned(prior.prior, copies)

    def _pivots(
        self, prior: Tuned, wanted: Float[Tensor, "s d"], label: int, noise: Noise, work: AttackContext
    ) -> Float[Tensor, "s l"]:
        """Latents near the mean whose images resemble the set: the rule of StyleGAN2's projector."""
        count, device = len(wanted), wanted.device
        draws = prior.sample(Noise(noise.seed, torch.arange(600, device=device)).of("ppdg-mean"))
        mean = draws.mean(dim=0)
        spread = (draws - mean).square().sum(dim=1).mean().sqrt()
        y = torch.full((count,), label, device=device)
        w = mean.expand(count, -1).clone().requires_grad_()
        optimizer = torch.optim.Adam([w], lr=self.pivot_lr)
        for step in work.steps(self.pivot_steps, Held(w=w), optimizer):
            t = step / self.pivot_steps
            optimizer.param_groups[0]["lr"] = self.pivot_lr * pivot_rate(t)
            jitter = self.pivot_noise * spread * max(0.0, 1.0 - t / 0.75) ** 2
            with torch.enable_grad():
                moved = w + jitter * noise.of("step", step).normal(*w.shape)[0]
                distance = DISTANCES[self.loss](features(prior.decode(moved, y))[None], wanted[None]).sum()
                w.grad = torch.autograd.grad(distance, w)[0]
            optimizer.step()
        return w.detach()

    def _copy(
        self, prior: Tuned, pivots: Float[Tensor, "s l"], wanted: Float[Tensor, "s d"], label: int, work: AttackContext
    ) -> Weights:
        """One identity's weights of the generator after tuning: those that its images depend on."""
        y = torch.full((len(pivots),), label, device=pivots.device)
        start = dict(prior.prior.named_parameters()) | prior.copies.get(label, {})
        weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        optimizer = torch.optim.Adam(weights.values(), lr=self.lr)
        for _ in work.steps(self.steps, Held(weights=list(weights.values())), optimizer):
            with torch.enable_grad():
                drawn = features(prior.with_weights(weights, pivots, y))
                distance = DISTANCES[self.loss](drawn[None], wanted[None]).sum()
                gradients = torch.autograd.grad(distance, list(weights.values()), allow_unused=True)
            for value, gradient in zip(weights.values(), gradients, strict=True):
                value.grad = gradient
            optimizer.step()
        return {name: value.detach() for name, value in weights.items() if value.grad is not None}


def _with_images(attack: Attack, count: int) -> Attack:
    """The attack returning (and, where it selects among candidates, optimising) `count` images per identity."""
    if isinstance(attack, Wrapper):
        return replace(attack, attack=_with_images(attack.wrapped, count))
    known = {item.name for item in fields(attack)}
    changes: dict[str, Any] = {name: count for name in ("images", "candidates") if name in known}
    return replace(attack, **changes)


def _share(oracle: Oracle, cost: Cost, ahead: list[Cost]) -> Oracle:
    """The oracle for the next round: under a budget, with its shared images and its part of all the rest."""
    queries, shared = sum(one.queries for one in ahead), sum(one.shared_queries for one in ahead)
    left = oracle.affordable(queries + shared, 1)
    if left == queries + shared:
        return oracle
    return Allowance(oracle, 0, cost.shared_queries + max(0, left - shared) * cost.queries // max(1, queries))
