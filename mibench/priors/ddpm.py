"""Diff-MI's prior: a conditional diffusion model of the public images that the target finds most like each identity.

References:
    | Model Inversion Attacks Through Target-Specific Conditional Diffusion Models (Li et al., 2024)
    | https://arxiv.org/abs/2407.11424
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mibench.core import Access, Oracle, Prior, PriorTrainer, Split, TrainingContext, augment
from mibench.core.losses import feature_distance, top_k_margin
from mibench.priors.diffusion import LEVELS, DiffusionPrior
from mibench.priors.gan import Loop, average, average_of
from mibench.priors.unet import Attention, Eigenspace, ResBlock, UNet
from mibench.runtime.engine import at_once
from mibench.runtime.errors import UserError

__all__ = ["Ddpm", "DdpmPrior"]

CARD = {
    "summary": "conditional diffusion model on pseudo-labelled public images, tuned on the target",
    "title": "Model Inversion Attacks Through Target-Specific Conditional Diffusion Models",
    "authors": "Li, Hao, Wang, Zhu, Wang, Zhang and Feng",
    "venue": "arXiv",
    "year": 2024,
    "link": "https://arxiv.org/abs/2407.11424",
    "critic": "none",
    "domain": "public",
    "conditional": True,
    "diffusion": True,
}

# The eigenfaces make faces before the first step of training, and carry most of what this preset knows; 250 steps of
# the small network add little (loss at t = 50: .152 -> .135). Tuning on the target is left to longer runs.
PRESETS = {
    "paper": {},
    "quick": {
        "width": 32,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (),
        "heads": 2,
        "patch": 4,
        "eigenfaces": 256,
        "steps": 250,
        "batch": 32,
        "lr": 1e-3,
        "decay": 0.98,
        "mirror": True,
        "tune_steps": 0,
    },
}


class DdpmPrior(DiffusionPrior):
    """A UNet that predicts the noise, or what the eigenfaces leave of it."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        top: int,
        steps: int,
        guidance: float,
        net: UNet,
        eigenfaces: int,
    ) -> None:
        super().__init__(image_shape, num_classes, top, steps, guidance)
        self.net = net
        self.gaussian = Eigenspace(self.latent_dim, num_classes, eigenfaces) if eigenfaces else None

    def eps(
        self, x: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """The network's prediction."""
        out = self.net(x, t, y)
        return out if self.gaussian is None else out + self.gaussian(x, self.level(t), y)


@dataclass(frozen=True)
class Ddpm(PriorTrainer):
    """Label public images by the target, learn E |eps(x_t, t, y) - eps|^2 on them, then tune on the target's gradient.

    The `top` public images with the largest p_y illustrate identity y (an image may illustrate several).
    Tuning draws images by DDIM and lowers TKM(margin) + features * |phi - centroid_y|^2 / d of the target on views of
    every intermediate prediction; it moves the label embedding, the middle's convolutions and its attention's
    projection, nothing else.

    Args:
        width, multipliers, blocks, attention, heads, patch: Of the network; see `UNet`.
        eigenfaces: With k > 0 the network predicts what the best linear predictor leaves over: that of Gaussians with
            the identities' means and the public images' k leading eigenvectors, see `Eigenspace`. 0 in the paper.
            Differs: a network that can afford few steps would spend them all on learning that predictor.
        top: Public images that illustrate an identity.
        steps: Of AdamW before tuning.
        batch: Images a step.
        lr: AdamW's learning rate.
        decay: Of the running average of the weights that is kept.
        drop: Probability that a whole batch is learnt without identities.
        mirror: Mirror public images at random.
        sampler_steps: Of DDIM in tuning and in `decode`.
        guidance: Of both; see `DiffusionPrior.guided`.
        tune_steps: Of AdamW on the target's gradient (the authors': up to 100 epochs of 300 identities).
        tune_batch: Identities a step.
        tune_lr: Its learning rate.
        tune_views: Random views of each prediction.
        margin: How many other logits the margin averages (at most classes - 1).
        features: Weight of the distance to the centroid of the identity's public images in feature space.

    Source: sections 3.2 and 3.3 of the paper; values of the authors' code (commit 4778b9e of
    https://github.com/Ouxiang-Li/Diff-MI).
    Differs: tuning draws by DDIM (theirs by DPM-Solver++ of order 2) and takes a fixed number of steps (theirs stop
    at 99% target accuracy); views are made of images in [0, 1] (theirs of images in [-1, 1], which kornia's ColorJitter
    clamps to [0, 1]); `decode` clips its predictions of the clean image to [-1, 1]: the authors' samplers do not, and
    neither do tuning and the attack.
    """

    target_access: ClassVar[Access | None] = Access.WHITE_BOX

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (16, 8)
    heads: int = 4
    patch: int = 1
    eigenfaces: int = 0
    top: int = 30
    steps: int = 50_000
    batch: int = 150
    lr: float = 1e-4
    decay: float = 0.9999
    drop: float = 0.1
    mirror: bool = False
    sampler_steps: int = 10
    guidance: float = 3.0
    tune_steps: int = 7500
    tune_batch: int = 4
    tune_lr: float = 2e-4
    tune_views: int = 2
    margin: int = 20
    features: float = 1.0

    def __post_init__(self) -> None:
        sizes = (self.width, *self.multipliers, self.blocks, self.heads, self.patch, self.top, self.steps, self.batch)
        if min(*sizes, self.sampler_steps, self.tune_batch, self.tune_views, len(self.multipliers)) < 1:
            raise UserError(
                "ddpm: width, multipliers, blocks, heads, patch, top, steps, batch, sampler_steps, tune_batch and "
                "tune_views must be at least 1"
            )
        if self.width % (2 * self.heads):
            raise UserError(f"ddpm: width must be a multiple of 2 * heads, got {self.width} and {self.heads} heads")
        if not self.drop <= 1 or not self.decay < 1:
            raise UserError(f"ddpm: drop must lie in [0, 1], decay in [0, 1), got {self.drop} and {self.decay}")
        if self.sampler_steps >= LEVELS:
            raise UserError(f"ddpm: sampler_steps must be below {LEVELS}, got {self.sampler_steps}")

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> DdpmPrior:
        """The untrained network."""
        net = UNet(
            image_shape, num_classes, self.width, self.multipliers, self.blocks, self.attention, self.heads, self.patch
        )
        eigenfaces = min(self.eigenfaces, len(public) // 2)
        top = min(self.top, len(public))
        return DdpmPrior(image_shape, num_classes, top, self.sampler_steps, self.guidance, net, eigenfaces)

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Label the public images, learn to denoise, tune."""
        assert isinstance(prior, DdpmPrior)
        if oracle is None:
            raise UserError("the prior 'ddpm' learns from a target's answers; name one with --target RUN")
        net = prior.net
        prior.train()
        kept = average_of(net)
        tuned = [net.label.weight]
        for layer in net.middle:
            if isinstance(layer, Attention):
                tuned += [*layer.project.parameters()]
            elif isinstance(layer, ResBlock):
                tuned += [*layer.first.parameters(), *layer.second.parameters()]
        learner = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=0.0)
        tuner = torch.optim.AdamW(tuned, lr=self.tune_lr, weight_decay=0.0)
        loop = Loop(
            session, public, self.batch, self.mirror, {"prior": prior, "kept": kept, "learner": learner, "tuner": tuner}
        )
        centroids = self._label(prior, loop, oracle)
        if prior.gaussian is not None:
            places, shown = prior.shown.unique(return_inverse=True)
            prior.gaussian.fit((2 * loop.at(places) - 1).flatten(1), shown)

        def step(number: int) -> dict[str, Tensor]:
            if number < self.steps:
                return {"loss": self._learn(prior, kept, learner, loop, number)}
            if number == self.steps:
                net.load_state_dict(kept.state_dict())
            return {"tuning": self._tune(prior, tuner, loop, oracle, centroids, number)}

        steps = self.steps + self.tune_steps
        loop.run("diffusion", steps, step, every=max(200, steps // 50))
        if not self.tune_steps:
            net.load_state_dict(kept.state_dict())
        prior.eval()
        return loop.log

    @torch.no_grad()
    def _label(self, prior: DdpmPrior, loop: Loop, oracle: Oracle) -> Float[Tensor, "k d"]:
        """Choose each identity's exemplars; returns the centroid of their features. Each image is asked once."""
        engine = loop.session.engine
        with engine.autocast():
            shown = loop.images.split(at_once(256, loop.images.shape, engine.device))
            parts = [oracle.answers(engine.images(part), None) for part in shown]
        logits, features = (torch.cat(part) for part in zip(*parts, strict=True))
        prior.shown.copy_(logits.softmax(dim=1).topk(prior.shown.shape[1], dim=0).indices.T)
        return features[prior.shown].mean(dim=1)

    def _learn(
        self, prior: DdpmPrior, kept: nn.Module, optimizer: torch.optim.Optimizer, loop: Loop, number: int
    ) -> Tensor:
        """One step of denoising; the loss."""
        noise = loop.noise("denoise", number)
        u = noise.of("which").uniform(3)
        y = (u[:, 0] * prior.num_classes).long()
        x = loop.at(prior.shown[y, (u[:, 1] * prior.shown.shape[1]).long()])
        if self.mirror:
            x = augment.flip(x, noise.of("mirror"))
        # The whole batch at once, as in the authors' code: its first row's draw decides.
        dropped = noise.of("drop").uniform(1)[0, 0] < self.drop
        y = torch.where(dropped, prior.num_classes, y)
        t = (u[:, 2] * LEVELS).long()
        eps = noise.of("eps").normal(*prior.image_shape)
        with loop.session.engine.autocast():
            predicted = prior.eps(prior.noisy(2 * x - 1, t, eps), t, y)
        loss = (predicted - eps).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average(kept, prior.net, self.decay)
        return loss.detach()

    def _tune(
        self,
        prior: DdpmPrior,
        optimizer: torch.optim.Optimizer,
        loop: Loop,
        oracle: Oracle,
        centroids: Float[Tensor, "k d"],
        number: int,
    ) -> Tensor:
        """One step on the target's gradient; the loss."""
        noise = loop.noise("tune", number).rows(torch.arange(self.tune_batch, device=centroids.device))
        y = (noise.of("which").uniform(1)[:, 0] * prior.num_classes).long()
        eps = noise.of("start").normal(*prior.image_shape)
        margin = min(self.margin, prior.num_classes - 1)
        loss = torch.zeros((), device=centroids.device)
        with loop.session.engine.autocast():
            drawing = prior.denoise(eps, LEVELS - 1, y, self.sampler_steps, self.guidance, clip=False)
            for place, x in enumerate(drawing):
                for view in range(self.tune_views):
                    drawn = noise.of("view", place, view)
                    seen = augment.view(((x + 1) / 2).clamp(0.0, 1.0), drawn, True, jitter=0.5)
                    logits, features = oracle.answers(seen, None)
                    away = feature_distance(features, centroids[y])
                    loss = loss + (top_k_margin(logits, y, margin) + self.features * away).mean()
        optimizer.zero_grad(set_to_none=True)
        gradients = torch.autograd.grad(loss, optimizer.param_groups[0]["params"])
        for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return loss.detach() / (self.sampler_steps * self.tune_views)
