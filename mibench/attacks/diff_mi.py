"""Diff-MI: pixels searched by turns under a diffusion model and under the target, then cleaned by the sampler.

References:
    | Model Inversion Attacks Through Target-Specific Conditional Diffusion Models (Li et al., 2024)
    | https://arxiv.org/abs/2407.11424
    | Diffusion Models as Plug-and-Play Priors (Graikos et al., NeurIPS 2022), the alternating search
    | https://arxiv.org/abs/2206.09012
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.attacks.parts.search import keys, piecewise
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, augment
from mibench.core.losses import cross_entropy, feature_distance, on_logits, top_k_margin
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["DiffMI"]

CARD = {
    "summary": "pixels pulled by turns by a diffusion model and by the target, then denoised",
    "title": "Model Inversion Attacks Through Target-Specific Conditional Diffusion Models",
    "authors": "Li, Hao, Wang, Zhu, Wang, Zhang and Feng",
    "venue": "arXiv",
    "year": 2024,
    "link": "https://arxiv.org/abs/2407.11424",
    "access": "white_box",
    "prior": "ddpm",
    "role": "attack",
    "cost": [655, 650, None],
    "requires": ["diffusion"],
    "partial": {
        "quick": "its diffusion model is hardly more than a Gaussian for each person, of the public images that the "
        "target picked, and is not tuned on the target, the paper's main step"
    },
    "toy": {"short": {"steps": 4, "pgd_steps": 2}},
    "inside": "searches pixels; the prior's latents are its sampler's noise",
}

# Fewer steps need a larger share of the target's gradient. The closing attack on the target is left out: see pgd_steps.
PRESETS = {"paper": {}, "quick": {"images": 2, "steps": 20, "views": 2, "clip": 3.0, "pgd_steps": 0}}

Images = Float[Tensor, "n c h w"]
Labels = Int64[Tensor, " n"]


@runtime_checkable
class Diffusion(Protocol):
    """What this attack asks of a prior: see `DiffusionPrior`, which an attack does not import."""

    image_shape: tuple[int, int, int]

    @property
    def shown(self) -> Int64[Tensor, "k top"]:
        """Per identity, places of the public images that illustrate it."""

    def noisy(self, x: Images, t: Labels, eps: Images) -> Images:
        """A draw from q(x_t | x_0)."""

    def guided(self, x: Images, t: Labels, y: Labels, weight: float) -> Images:
        """The predicted noise under classifier-free guidance."""

    def denoise(
        self,
        x: Images,
        start: int,
        y: Labels,
        steps: int,
        weight: float,
        eta: float = 0.0,
        noise: Noise | None = None,
        clip: bool | None = None,
    ) -> Iterator[Images]:
        """DDIM; the last image is the sample."""


@dataclass(frozen=True)
class DiffMI(Attack):
    """Adamax by turns on |guided eps(x_t) - eps|^2 and on TKM(T(x)) + features |phi(x) - centroid_y|^2, from N(0, I).

    Pixels x lie in [-1, 1]. Step i noises x to level t(i), which falls from 1000 to 200 (see `level_at`). The target's
    gradient is cut to `clip` times the running average of the diffusion model's. In the end x is noised to level
    `renoise` and denoised; then the target may have the last word (`pgd_steps`).

    Args:
        images: Restarts, all of them returned.
        steps: Pairs of steps.
        lr: Of the one Adamax that both kinds of step share.
        guidance: Of the diffusion model; see `DiffusionPrior.guided`.
        views: Random views per step of the target: mirror, brightness .2, Gaussian blur (7 pixels, sigma 3), each
            with probability 1/2.
        margin: How many other logits the margin averages (at most classes - 1).
        features: Weight of the mean squared distance to the centroid of the identity's public images.
        clip: Largest ratio of the two gradients' norms.
        memory: Of the running average of the diffusion model's gradient norm.
        renoise: Level from which the result is denoised; 0 leaves it as it is.
        sampler_steps: Of DDIM (eta 1).
        pgd_steps: Steps of a targeted L2 attack on the target that close the authors' procedure: radius `radius`,
            step `stride`, both in units of [0, 1], random start, best iterate. It adds adversarial noise that raises
            the target's confidence and not the likeness; the preset quick leaves it out.
        radius: Of its ball.
        stride: Of its step.

    Source: sections 3.3 and 3.4 of the paper; values of the authors' code (commit 4778b9e of
    https://github.com/Ouxiang-Li/Diff-MI).
    Differs: noise levels, losses, gradient norms and their running averages are one per image (theirs are one per
    batch of 64). Views are made of pixels in [0, 1]; theirs of pixels in [-1, 1], where kornia's ColorJitter clamps to
    [0, 1], so that half of their views lose all that is darker than mid-grey. The network is told the level that an
    image has; theirs is told one more in the search, and up to nine more in the sampler, which takes abar_91, abar_81
    ... for what it calls 100, 90 ...
    """

    images: int = 5
    steps: int = 30
    lr: float = 1.0
    guidance: float = 3.0
    views: int = 4
    margin: int = 20
    features: float = 1.0
    clip: float = 1.25
    memory: float = 0.5
    renoise: int = 100
    sampler_steps: int = 10
    pgd_steps: int = 10
    radius: float = 0.5
    stride: float = 0.1

    def __post_init__(self) -> None:
        if min(self.images, self.views, self.sampler_steps) < 1:
            raise UserError("diff_mi: images, views and sampler_steps must be at least 1")
        if self.memory >= 1 or self.renoise >= 1000:
            raise UserError(
                f"diff_mi: memory must lie in [0, 1), renoise below 1000, got {self.memory} and {self.renoise}"
            )

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """Restarts x (steps x views + PGD and its last look), and the features of every public image once."""
        gradients = self.images * (self.steps * self.views + self.pgd_steps)
        looks = self.images if self.pgd_steps else 0
        return Cost(gradients + looks, gradients, public if self.features else 0)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Search, denoise, and where asked give the target the last word."""
        self.require(prior)
        model = cast(Diffusion, prior)
        centroids = work.once("diff_mi-centroids", oracle, lambda: self._centroids(oracle, model, work))
        y, key = keys(labels, self.images)
        steps = oracle.affordable(self.steps, self.images * self.views)
        looks = self.pgd_steps + 1 if self.pgd_steps else 0
        left = oracle.affordable(steps * self.views + looks, self.images) - steps * self.views
        pgd_steps = max(0, left - 1)

        def part(rows: slice) -> Tensor:
            noise = Noise(seed, key[rows]).of("diff_mi")
            x, lost = self._search(oracle, model, y[rows], steps, centroids, noise, work)
            image = self._clean(model, x, y[rows], noise)
            if pgd_steps:
                image = self._last_word(oracle, image, y[rows], pgd_steps, noise.of("pgd"), work)
            return torch.cat([x.flatten(1), image.flatten(1), lost[:, None]], dim=1)

        found = piecewise("diff_mi", len(y), oracle, work, part)
        pixels = math.prod(model.image_shape)
        x, image, lost = found.split([pixels, pixels, 1], dim=1)
        return Reconstructions(image.reshape(-1, *model.image_shape), y, x, lost[:, 0] > 0)

    @torch.no_grad()
    def _centroids(self, oracle: Oracle, model: Diffusion, work: AttackContext) -> Float[Tensor, "k d"]:
        """The mean feature of each identity's public images; all public images are asked once, whoever is attacked."""
        if not self.features:
            return torch.zeros(oracle.num_classes, 1, device=oracle.device)
        features = [oracle.answers(part, None)[1] for part in work.images("diff_mi").parts(work.batch, oracle.device)]
        return torch.cat(features)[model.shown].mean(dim=1)

    def _search(
        self,
        oracle: Oracle,
        model: Diffusion,
        y: Labels,
        steps: int,
        centroids: Float[Tensor, "k d"],
        noise: Noise,
        work: AttackContext,
    ) -> tuple[Images, Float[Tensor, " n"]]:
        """Pixels, and 1 for each image whose loss under the target has not fallen."""
        x = noise.of("start").normal(*model.image_shape).requires_grad_()
        optimizer = torch.optim.Adamax([x], lr=self.lr)
        nothing = torch.zeros(len(y), device=y.device)
        held = Held(x=x, usual=None, first=nothing, last=nothing)
        for step in work.steps(steps, held, optimizer):
            drawn = noise.of("step", step)
            with torch.enable_grad():
                gradient = torch.autograd.grad(self._unreal(model, x, y, level_at(step, steps), drawn).sum(), x)[0]
            size = norms(gradient)
            held.usual = size if held.usual is None else self.memory * held.usual + (1 - self.memory) * size
            x.grad = gradient
            optimizer.step()
            with torch.enable_grad():
                last = self._unlike(oracle, x, y, centroids, drawn)
                gradient = torch.autograd.grad(last.sum(), x)[0]
            held.first, held.last = last.detach() if step == 0 else held.first, last.detach()
            x.grad = gradient * (self.clip * held.usual / norms(gradient).clamp(min=1e-30)).clamp(max=1.0)
            optimizer.step()
        if not x.isfinite().all():
            raise UserError(f"diff_mi: pixels stopped being finite (lr {self.lr}); lower it with --set lr=...")
        return x.detach(), (held.last >= held.first).float()

    def _unreal(self, model: Diffusion, x: Images, y: Labels, level: float, noise: Noise) -> Float[Tensor, " n"]:
        """|guided eps(x_t, y) - eps|^2 / d at t = floor(level + U{-50 ... 50}) - 1, counted from 0."""
        shift = (noise.of("level").uniform(1)[:, 0] * 101).floor() - 50
        t = (level + shift).long().clamp(1, 1000) - 1
        eps = noise.of("eps").normal(*model.image_shape)
        predicted = model.guided(model.noisy(x, t, eps), t, y, self.guidance)
        return (predicted - eps).square().flatten(1).mean(dim=1)

    def _unlike(
        self, oracle: Oracle, x: Images, y: Labels, centroids: Float[Tensor, "k d"], noise: Noise
    ) -> Float[Tensor, " n"]:
        """The target's loss, averaged over views."""
        margin = min(self.margin, oracle.num_classes - 1)

        def term(logits: Float[Tensor, "n k"], features: Float[Tensor, "n d"], own: Labels) -> Float[Tensor, " n"]:
            identity = top_k_margin(logits, own, margin)
            if not self.features:
                return identity
            return identity + self.features * feature_distance(features, centroids[own])

        image = ((x + 1) / 2).clamp(0.0, 1.0)
        views = (noise.of("view", number) for number in range(self.views))
        return torch.stack([oracle.loss(view(image, one), y, term, one) for one in views]).mean(dim=0)

    @torch.no_grad()
    def _clean(self, model: Diffusion, x: Images, y: Labels, noise: Noise) -> Images:
        """Noised to level `renoise`, then denoised; in [0, 1]."""
        if self.renoise:
            eps = noise.of("renoise").normal(*model.image_shape)
            x = model.noisy(x, torch.full_like(y, self.renoise), eps)
            *_, x = model.denoise(x, self.renoise, y, self.sampler_steps, self.guidance, 1.0, noise, False)
        return ((x + 1) / 2).clamp(0.0, 1.0)

    def _last_word(
        self, oracle: Oracle, image: Images, y: Labels, steps: int, noise: Noise, work: AttackContext
    ) -> Images:
        """argmin CE(T(image + d), y) over |d|_2 <= radius by `steps` projected gradient steps; the best iterate."""
        d = noise.of("start").normal(*image.shape[1:])
        d = d * (self.radius * noise.of("radius").uniform(1) / norms(d)[:, 0, 0])[:, :, None, None]
        held = Held(d=d, best=image, least=torch.full((len(y),), float("inf"), device=y.device))
        for step in work.steps(steps + 1, held):
            seen = (image + held.d).clamp(0.0, 1.0).detach().requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                value = oracle.loss(seen, y, on_logits(cross_entropy), noise.of("step", step))
            better = value < held.least
            held.best = torch.where(better[:, None, None, None], seen.detach(), held.best)
            held.least = torch.where(better, value.detach(), held.least)
            if step < steps:
                gradient = torch.autograd.grad(value.sum(), seen)[0]
                d = seen.detach() - image - self.stride * gradient / norms(gradient).clamp(min=1e-30)
                held.d = d * (self.radius / norms(d).clamp(min=1e-30)).clamp(max=1.0)
        return torch.as_tensor(held.best)


def level_at(step: int, steps: int) -> float:
    """t(i) = 800 ((S - i) / 1.5 + (S - i) / 3 cos(3 i / (10 pi))) / S + 200. Source: the authors' code."""
    return 800.0 * (steps - step) / steps * (1 / 1.5 + math.cos(3 * step / (10 * math.pi)) / 3) + 200.0


def norms(x: Images) -> Float[Tensor, "n 1 1 1"]:
    """The L2 norm of each row."""
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def view(x: Images, noise: Noise) -> Images:
    """Mirror, brightness U(.8, 1.2), Gaussian blur of 7 pixels and sigma 3, each with probability 1/2 per image."""
    chosen = noise.of("chosen").uniform(2)[:, :, None, None, None] < 0.5
    x = augment.flip(x, noise.of("mirror"))
    x = torch.where(chosen[:, 0], augment.colour_jitter(x, noise.of("brightness"), 0.2, 0.0, 0.0), x)
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, device=x.device) / 3.0) ** 2)
    kernel = (taps / taps.sum()).repeat(x.shape[1], 1)[:, None]
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would keep 8 bits of a pixel
        blurred = F.pad(x, (3, 3, 3, 3), mode="reflect")
        blurred = F.conv2d(blurred, kernel[:, :, :, None], groups=x.shape[1])
        blurred = F.conv2d(blurred, kernel[:, :, None, :], groups=x.shape[1])
    return torch.where(chosen[:, 1], blurred, x)
