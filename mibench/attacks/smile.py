"""SMILE: a surrogate distilled from the target's scores is inverted, then a (1+1)-ES finishes on the target.

References:
    | From Head to Tail: Efficient Black-box Model Inversion Attack via Long-tailed Learning (Li et al., CVPR 2025)
    | https://arxiv.org/abs/2503.16266
    | https://github.com/L1ziang/SMILE
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.attacks.parts.embedding import public_classes, train_embedding
from mibench.attacks.parts.evolution import Fitness, log_odds, one_plus_one
from mibench.attacks.parts.experts import Experts, LongTail
from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.pspace import PSpace, RampedAdam, ramp, searched
from mibench.attacks.parts.search import best_of_pool, chunks, descend, gathered, keys, piecewise, render
from mibench.core import (
    Attack,
    AttackContext,
    BudgetExhausted,
    Capabilities,
    Cost,
    Oracle,
    Prior,
    Reconstructions,
    to_float,
    to_uint8,
)
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of

__all__ = ["Smile"]

CARD = {
    "summary": "a surrogate distilled from a pool's scores is inverted, then a (1+1)-ES finishes on the target",
    "title": "From Head to Tail: Efficient Black-box Model Inversion Attack via Long-tailed Learning",
    "authors": "Li, Zhang, Wang, Chen, Hu, Yi, Xu, Yang and Ma",
    "venue": "CVPR",
    "year": 2025,
    "link": "https://arxiv.org/abs/2503.16266",
    "access": "black_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [1000, 0, 2500],
    "requires": ["unconditional"],
    "toy": {
        "short": {"pool": 60, "people": 30, "embedding_epochs": 1, "width": 16, "epochs": 2, "steps": 8, "queries": 12}
    },
}

PRESETS = {
    "paper": {},  # run_SMILE.sh and the README of the authors' code
    # Chosen on other people: digiface with data.seed 7.
    "quick": {
        "images": 2,
        "pool": 500,
        "embedding": "cnn",
        "people": 500,
        "embedding_epochs": 8,
        "width": 256,
        "epochs": 60,
        "batch": 64,
        "steps": 31,
        "rate": 0.03,
        "box": 3.0,
        "queries": 160,
        "sigma": 0.1,
        "final_box": 3.0,
        "start": "better",
    },
    "legacy": {"reweight": "batch"},
}


@dataclass(frozen=True)
class Smile(Attack):
    """Pool of N samples, answered once -> surrogate S of E experts -> min_w CE(S(G(w)), y) -> (1+1)-ES on log p_y.

    The surrogate is the same for all identities. See `parts/experts.py` for its loss, `evolution.one_plus_one` for the
    last stage, which is what nevergrad's NGOpt is here: it chooses MetaModelOnePlusOne, whose quadratic model acts from
    d (d - 1) / 2 + 2 d + 1 queries on (5,151 for 100 latents), far beyond the budget.

    Args:
        images: Reconstructions per identity: searches from the pool's best, second best, ... sample.
        pool: N, shared by all identities.
        embedding: Architecture of the surrogate's frozen body, trained on public images.
        people: At most this many public people (images, where people are not known) are the body's classes.
        embedding_epochs: Passes over their images.
        embedding_lr: The body's first learning rate, falling along a cosine.
        experts: E.
        width: Units of each expert's own layer.
        temperature: Of the distillation.
        ce: Weight of the cross-entropy of the target's best class.
        diversity: Weight of the experts' likeness to their mean; 0 leaves it out.
        beta: Class weights fall from 1 to 1 - beta with the number of pool images that have the class among their best.
        top: How many classes count as best.
        reweight: sample: rare classes weigh more. batch: as released, where all images of a batch weigh the same.
        epochs: Passes over the pool; 0 is no surrogate, the ES starts at the sample.
        batch: Pool images a step.
        lr: Of the experts' Adam.
        steps: Adam steps on the surrogate, without the target. The rate is `pspace.ramp` of k / (steps - 1) from k = 0.
        rate: Their learning rate at the top.
        box: Half-width of their P-space box, in the pool's standard deviations.
        queries: Per identity, for the ES, shared evenly by the images; 0 returns what the surrogate gives.
        sigma: The ES's first step size, in the latent's own units.
        final_box: Half-width of the ES's P-space box.
        start: surrogate: the ES begins at the surrogate's latent (the paper). better: it begins there or at the pool's
            sample, whichever the target scores higher; the sample's score is known.
        space: The prior's latent space; auto is w where the prior has one.

    Source: the authors' code at commit 0c695e1, nevergrad 0.5.0.
    Differs: the authors' body is a published face network (CASIA-WebFace or VGGFace2, real people who are not the
    target's); here the attacker trains one on the public images, and an expert's own layer follows the features instead
    of replacing the last layer. BN's statistics are those of the untrained experts on the pool and dropout is off: the
    authors' network is in training mode for the first of 200 epochs only, because its first test leaves it in eval
    mode. Latents are compared by log-odds, which order as log p_y and do not saturate. No truncation in the generator.
    """

    images: int = 1
    pool: int = 2500
    embedding: str = "resnet"
    people: int = 10_000
    embedding_epochs: int = 40
    embedding_lr: float = 0.05
    experts: int = 3
    width: int = 512
    temperature: float = 0.5
    ce: float = 0.15
    diversity: float = 10.0
    beta: float = 0.9
    top: int = 10
    reweight: Literal["sample", "batch"] = "sample"
    epochs: int = 200
    batch: int = 128
    lr: float = 1e-3
    steps: int = 201
    rate: float = 0.2
    box: float = 1.0
    queries: int = 1000
    sigma: float = 1.0
    final_box: float = 1.7
    start: Literal["surrogate", "better"] = "surrogate"
    space: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.images <= self.pool or self.pool < 2:
            raise UserError(f"smile: 1 <= images <= pool and 2 <= pool, got {self.images} and {self.pool}")
        if self.experts < 1 or (self.experts == 1 and self.diversity):
            raise UserError(f"smile: one expert is its own mean; experts={self.experts} needs diversity 0 or 2 experts")
        if self.temperature <= 0 or self.sigma <= 0 or not 0 <= self.beta < 1 or min(self.top, self.people - 1) < 1:
            raise UserError(
                "smile: temperature and sigma must be above 0, beta in [0, 1), top at least 1 and people at least 2, "
                f"got {self.temperature}, {self.sigma}, {self.beta}, {self.top} and {self.people}"
            )

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """The ES's queries, and the pool once for everybody."""
        return Cost(self.queries // self.images * self.images, 0, self.pool)

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Ask about the pool, teach the surrogate, descend on it, finish on the target."""
        prior = searched(prior, self.space)
        pool = prior.sample(Noise(seed, torch.arange(self.pool, device=labels.device)).of("pool"))
        box = PSpace.around(pool, prior.slope)
        count = oracle.affordable(self.pool, 1)
        if count < max(2, self.images):
            raise BudgetExhausted
        # As they would be stored, so that the target answers exactly what the surrogate sees.
        shown = torch.cat([to_uint8(prior.decode(pool[rows])) for rows in chunks(count, work.batch)])
        log_p = work.once("smile-pool", oracle, lambda: _answers(oracle, shown, work))
        known = best_of_pool(log_p, labels, self.images).flatten()
        y, key = keys(labels, self.images)
        sample, value = pool[known], log_odds(log_p[known].exp(), y)
        latents = sample
        if self.epochs and self.steps:
            body, experts = self._surrogate(oracle, shown, log_p, seed, work)

            def transfer(rows: slice) -> Tensor:
                noise = Noise(seed, key[rows]).of("smile")
                return self._descend(body, experts, prior, box.scaled(self.box), sample[rows], y[rows], noise, work)

            latents = piecewise("smile-transfer", len(y), oracle, work, transfer)
        queries = oracle.affordable(self.queries // self.images, self.images)
        if not queries:
            failed = torch.full_like(y, latents is sample, dtype=torch.bool)
            return Reconstructions(render(prior, latents, y, work), y, latents, failed)
        sample, latents = (one.unflatten(0, (len(labels), self.images)) for one in (sample, latents))
        value = value.unflatten(0, (len(labels), self.images))
        last = box.scaled(self.final_box)

        def finish(rows: slice) -> Tensor:
            ask = Fitness(oracle, prior, labels[rows], self.images, work)
            start, best, at_least = latents[rows], sample[rows], value[rows]
            if self.start == "surrogate":
                at_least = torch.full_like(at_least, float("-inf"))
            noise = Noise(seed, labels[rows]).of("smile")
            z, after = one_plus_one(ask, last.clip_w, start, best, at_least, queries, self.sigma, noise, work)
            return torch.cat([z, (after <= value[rows])[..., None].to(z.dtype)], dim=2).flatten(0, 1)

        few = replace(work, batch=max(1, work.batch // self.images))
        found = piecewise("smile-finish", len(labels), oracle, few, finish)
        z = found[:, :-1].contiguous()
        return Reconstructions(render(prior, z, y, work), y, z, found[:, -1] > 0)

    def _surrogate(
        self, oracle: Oracle, shown: Tensor, log_p: Float[Tensor, "n k"], seed: int, work: AttackContext
    ) -> tuple[Classifier, Experts]:
        """The frozen body and the experts on it; they depend on the pool and its answers, on nobody who is attacked."""
        own, classes = public_classes(work.images("smile"), self.people)
        body = train_embedding(
            "smile", self.embedding, own, classes, self.embedding_epochs, self.embedding_lr, seed, oracle, work
        )
        with torch.random.fork_rng(devices=[]):  # their first weights are drawn again when they are taught
            experts = Experts(body.feature_dim, self.width, oracle.num_classes, self.experts)
        lesson = LongTail(
            self.temperature,
            self.ce,
            self.diversity,
            self.beta,
            self.top,
            self.reweight,
            self.epochs,
            self.batch,
            self.lr,
        )

        def taught() -> dict[str, Tensor]:
            features = torch.cat([body.features(to_float(part)).float() for part in shown.split(self.batch)])
            return lesson.teach(experts, features, log_p, seed_of(seed, "smile"), work)

        experts.load_state_dict(work.once("smile-experts", oracle, taught))
        return body, experts.to(oracle.device).eval().requires_grad_(False)

    def _descend(
        self,
        body: Classifier,
        experts: Experts,
        prior: Prior,
        box: PSpace,
        start: Float[Tensor, "n d"],
        y: Int64[Tensor, " n"],
        noise: Noise,
        work: AttackContext,
    ) -> Float[Tensor, "n d"]:
        """Adam on the surrogate's cross-entropy from the pool's samples, clipped to the box after each step."""
        point = Point(start)
        ramps = [ramp(step / max(1, self.steps - 1)) for step in range(self.steps)]

        def loss(w: Tensor, drawn: Noise) -> Tensor:
            logits = experts(body.features(prior.decode(w, y))).mean(dim=0)
            return F.cross_entropy(logits, y, reduction="none")

        descend(point, loss, RampedAdam(point.z, self.rate, ramps, box), self.steps, noise, work=work)
        return point.z.detach()


def _answers(oracle: Oracle, shown: Tensor, work: AttackContext) -> Float[Tensor, "n k"]:
    """The target's log scores; what it rounds to 0 is the smallest number."""
    p = gathered(chunks(len(shown), work.batch), lambda rows: oracle.probs(to_float(shown[rows]), None), work)
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()
