"""Diff-MI's prior: a conditional diffusion model of the public images that the target finds most like each identity.

References:
    | Model Inversion Attacks Through Target-Specific Conditional Diffusion Models (Li et al., 2024)
    | https://arxiv.org/abs/2407.11424
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, NeurIPS 2021), the network
    | https://arxiv.org/abs/2105.05233
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Access, Oracle, Prior, PriorTrainer, Split, TrainingContext, augment
from mibench.core.losses import feature_distance, top_k_margin
from mibench.priors.diffusion import LEVELS, DiffusionPrior
from mibench.priors.gan import Loop, average, average_of
from mibench.runtime.engine import at_once
from mibench.runtime.errors import UserError

__all__ = ["Ddpm", "DdpmPrior", "Eigenspace", "UNet"]

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


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv, then GroupNorm scaled and shifted by the embedding, SiLU, conv (zero at the start), + x."""

    def __init__(self, inside: int, outside: int, embedding: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(math.gcd(32, inside), inside)
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * outside)
        self.second_norm = nn.GroupNorm(math.gcd(32, outside), outside)
        self.second = zeroed(nn.Conv2d(outside, outside, 3, padding=1))
        self.skip = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Float[Tensor, "n c h w"], embedding: Float[Tensor, "n e"]) -> Float[Tensor, "n c2 h w"]:
        """x + f(x, embedding)."""
        out = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.embed(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        out = self.second_norm(out) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(out))


class Attention(nn.Module):
    """x + projection(softmax(q k' / sqrt(d)) v) over all places of the map; the projection is zero at the start."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels)
        self.mix = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Every place looks at every other."""
        parts = self.mix(self.norm(x)).flatten(2).reshape(len(x), 3, self.heads, -1, x.shape[2] * x.shape[3])
        q, k, v = parts.transpose(3, 4).unbind(dim=1)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.project(seen.reshape(x.shape))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that starts as 0, so that its block starts as the identity."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class UNet(nn.Module):
    """ADM's network: residual blocks down, a middle with attention, residual blocks up with skips, 0 at the start.

    Args:
        image_shape: (channels, height, width).
        num_classes: Identities; one more embedding stands for nobody.
        width: Channels of the first level.
        multipliers: Channels of each level, in widths; each level halves the side.
        blocks: Residual blocks a level.
        attention: Sides of feature maps that get attention (the middle always does).
        heads: Of the attention.
        patch: The network sees squares of patch x patch pixels as one place with more channels; 1 is the paper's.

    Raises:
        UserError: If the side cannot be cut and halved that often.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, across = image_shape
        finest = patch * 2 ** (len(multipliers) - 1)
        if height % finest or across % finest:
            raise UserError(
                f"ddpm: images of {height} x {across} cannot be cut into patches of {patch} and halved "
                f"{len(multipliers) - 1} times; their sides must be multiples of {finest}"
            )
        self.width, self.patch = width, patch
        embedding = 4 * width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(num_classes + 1, embedding)
        self.enter = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        side, inside, skips = height // patch, width, [width]

        def stage(into: int, outside: int) -> nn.ModuleList:
            extra = [Attention(outside, heads)] if side in attention else []
            return nn.ModuleList([ResBlock(into, outside, embedding), *extra])

        for number, factor in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(stage(inside, factor * width))
                inside = factor * width
                skips.append(inside)
            if number + 1 < len(multipliers):
                self.down.append(nn.ModuleList([nn.Conv2d(inside, inside, 3, stride=2, padding=1)]))
                skips.append(inside)
                side //= 2
        self.middle = nn.ModuleList(
            [ResBlock(inside, inside, embedding), Attention(inside, heads), ResBlock(inside, inside, embedding)]
        )
        for number, factor in reversed(list(enumerate(multipliers))):
            for place in range(blocks + 1):
                layers = stage(inside + skips.pop(), factor * width)
                inside = factor * width
                if place == blocks and number > 0:
                    layers.extend([nn.Upsample(scale_factor=2.0), nn.Conv2d(inside, inside, 3, padding=1)])
                    side *= 2
                self.up.append(layers)
        self.leave = nn.Sequential(
            nn.GroupNorm(math.gcd(32, inside), inside),
            nn.SiLU(),
            zeroed(nn.Conv2d(inside, channels * patch**2, 3, padding=1)),
        )

    def forward(
        self, x: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """A field of the images' shape; exactly 0 before training."""
        embedding = self.time(waves(t, self.width)) + self.label(y)
        out = self.enter(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = [out]

        def through(stage: nn.ModuleList, out: Tensor) -> Tensor:
            for layer in stage:
                out = layer(out, embedding) if isinstance(layer, ResBlock) else layer(out)
            return out

        for stage in self.down:
            out = through(stage, out)  # type: ignore[arg-type]
            skips.append(out)
        out = through(self.middle, out)
        for stage in self.up:
            out = through(stage, torch.cat([out, skips.pop()], dim=1))  # type: ignore[arg-type]
        return F.pixel_shuffle(self.leave(out), self.patch).float()


def waves(t: Int64[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """cos and sin of t at width / 2 frequencies, from 1 down to 1 / 10000. Source: Transformer, as in DDPM."""
    rate = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = t[:, None].float() * rate
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Eigenspace(nn.Module):
    """The best prediction of the noise, were each identity's images Gaussian: N(m_y, U diag(l) U' + r (I - U U')).

    eps = sqrt(1 - abar) S^-1 (x_t - sqrt(abar) m_y), S = abar Cov + (1 - abar) I, in closed form. All identities share
    the covariance; the last mean is that of nobody in particular.
    """

    def __init__(self, pixels: int, num_classes: int, count: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes + 1, pixels))
        self.register_buffer("faces", torch.zeros(pixels, count))
        self.register_buffer("spread", torch.ones(count))
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n d"], shown: Int64[Tensor, "k top"]) -> None:
        """Means of the identities' images `x[shown]` and of all of them; eigenvectors of the covariance of all.

        `rest` is the mean of the eigenvalues that are left out.
        """
        own = torch.stack([x[places].mean(dim=0) for places in shown])
        mean = own.mean(dim=0)
        centred = (x[shown.unique()] - mean).double()
        n, pixels = centred.shape
        count = self.get_buffer("faces").shape[1]
        # n x n is smaller than d x d: with X X' / n = V diag(l) V', the eigenvectors of the covariance are X' V.
        values, vectors = torch.linalg.eigh(centred @ centred.T / n)
        values, vectors = values.flip(0)[:count].clamp(min=1e-12), vectors.flip(1)[:, :count]
        total = centred.square().sum() / n
        self.get_buffer("means").copy_(torch.cat([own, mean[None]]))
        self.get_buffer("faces").copy_((centred.T @ vectors) / (values * n).sqrt())
        self.get_buffer("spread").copy_(values)
        self.get_buffer("rest").copy_(((total - values.sum()) / (pixels - count)).clamp(min=1e-6))

    def forward(
        self, x: Float[Tensor, "n c h w"], level: Float[Tensor, "n 1 1 1"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """eps for images with abar = level.

        In float32: at the highest levels the sampler divides its rounding by sqrt(abar) = .006.
        """
        with torch.autocast(x.device.type, enabled=False):
            faces, a = self.get_buffer("faces"), level[:, :, 0, 0]
            away = x.flatten(1) - a.sqrt() * self.get_buffer("means")[y]
            rest = 1 / (a * self.get_buffer("rest") + 1 - a)
            inside = (1 / (a * self.get_buffer("spread") + 1 - a) - rest) * (away @ faces)
            return ((1 - a).sqrt() * (rest * away + inside @ faces.T)).reshape(x.shape)


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
            found = prior.eps(prior.noisy(2 * x - 1, t, eps), t, y)
        loss = (found - eps).square().mean()
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
