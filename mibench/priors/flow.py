"""SFMI's prior: a flow-matching model of the public images, which carries noise to images along straight paths.

Inside, images lie in [-1, 1]; x_0 is noise, x_1 an image, x_t = (1 - t) x_0 + t x_1; `decode` gives [0, 1].

References:
    | Steering the Flow: Inverting Face Recognition Models via Gradient-Guided Flow Matching (Lu et al., 2026)
    | https://arxiv.org/abs/2608.16791
    | Flow Matching for Generative Modeling (Lipman et al., ICLR 2023), the path and the loss
    | https://arxiv.org/abs/2210.02747
    | Back to Basics: Let Denoising Generative Models Denoise (Li and He, CVPR 2026), predicting x_1 under a loss on v
    | https://arxiv.org/abs/2511.13720
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., NeurIPS 2022), Heun's steps
    | https://arxiv.org/abs/2206.00364
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mibench.core import Oracle, Prior, PriorTrainer, Split, TrainingContext
from mibench.core.steps import Held, Stateful
from mibench.priors.gan import Loop, average, average_of
from mibench.priors.unet import Eigenspace, UNet
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Flow", "FlowPrior", "Predictor", "logit_normal"]

CARD = {
    "summary": "flow-matching model of the public images, sampled by Heun's steps",
    "title": "Steering the Flow: Inverting Face Recognition Models via Gradient-Guided Flow Matching",
    "authors": "Lu, Wang, Zhang, Yan, Liu, Liu and Sun",
    "venue": "arXiv",
    "year": 2026,
    "link": "https://arxiv.org/abs/2608.16791",
    "critic": "none",
    "domain": "public",
    "flow": True,
}

# `paper`: section IV-A of the paper (500k steps of AdamW, 2e-5, linear warm-up, cosine decay, logit(t) ~ N(-.8, .8^2),
# 50 steps of the sampler). `quick`: the eigenfaces make the blur of a face before the first step, as in `ddpm`.
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
        "steps": 400,
        "batch": 32,
        "lr": 1e-3,
        "warm_up": 0.1,
        "decay": 0.98,
        "mirror": True,
        "sampler_steps": 10,
    },
}

Images = Float[Tensor, "n c h w"]
Times = Float[Tensor, " n"]

LEVELS = 1000
"""The U-Net is told 1000 t, the range that its waves were made for."""

FITTED = 4096
"""Most public images that the eigenfaces are made of: their covariance is solved as a matrix of that side."""


class FlowPrior(Prior):
    """The flow dx / dt = v(x, t) = (M(x, t) - x) / (1 - t) from noise to images; a latent is the flattened noise x_0.

    Differentiable: gradients flow through all steps. Each evaluation of M is recomputed in the backward pass, so that
    memory does not grow with the steps.

    Args:
        image_shape: (channels, height, width).
        network: M: (x_t in [-1, 1] plus noise, t in [0, 1)) -> the expected x_1.
        steps: Of the sampler behind `decode`.
    """

    flow = True

    def __init__(self, image_shape: tuple[int, int, int], network: nn.Module, steps: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dim = math.prod(image_shape)
        self.network = network
        self.steps = steps

    def predict(self, x: Images, t: float) -> Images:
        """M(x_t, t): the clean image that x_t leads to, in [-1, 1] but for the network's errors."""
        return self.network(x, torch.full((len(x),), t, device=x.device))

    def velocity(self, x: Images, t: float) -> Images:
        """v(x, t) = (M(x, t) - x) / (1 - t), for 0 <= t < 1. Source: equation 4 of SFMI."""
        clean = checkpoint(self.predict, x, t, use_reentrant=False) if torch.is_grad_enabled() else self.predict(x, t)
        return (clean - x) / (1 - t)

    def integrate(
        self,
        x: Images,
        steps: int,
        velocity: Callable[[Images, float], Images] | None = None,
        loop: Callable[[Stateful], Iterator[int]] | None = None,
    ) -> Images:
        """x_1 from x_0 = x by Heun's method, with equal steps: the velocity at both ends of each, averaged.

        The last step is Euler's: at t = 1 the velocity divides by 0. It lands on M(x, 1 - 1 / steps).

        Args:
            x: Noise.
            steps: How many; 2 steps - 1 evaluations.
            velocity: The field; the prior's own unless it is given.
            loop: Numbers the steps from the first that is left, given what they change (`AttackContext.steps`).
        """
        field = velocity or self.velocity
        held = Held(x=x)
        for step in range(steps) if loop is None else loop(held):
            first = field(held.x, step / steps)
            ahead = held.x + first / steps
            last = step + 1 == steps
            held.x = ahead if last else held.x + (first + field(ahead, (step + 1) / steps)) / (2 * steps)
        return torch.as_tensor(held.x)

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Images:
        """The image at the end of the flow from z."""
        return ((self.integrate(z.reshape(-1, *self.image_shape), self.steps) + 1) / 2).clamp(0.0, 1.0)


class Predictor(nn.Module):
    """M: a U-Net that is told t, or what it adds to the best prediction for Gaussian images (see `Eigenspace`)."""

    def __init__(self, net: UNet, pixels: int, eigenfaces: int) -> None:
        super().__init__()
        self.net = net
        self.gaussian = Eigenspace(pixels, 1, eigenfaces) if eigenfaces else None

    def forward(self, x: Images, t: Times) -> Images:
        """x_1; before training 0, or the Gaussian's."""
        nobody = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        out = self.net(x, LEVELS * t, nobody)
        return out if self.gaussian is None else out + self.gaussian.clean(x, t[:, None, None, None], nobody)


def logit_normal(noise: Noise, mean: float, spread: float) -> Times:
    """t = 1 / (1 + exp(-u)), u ~ N(mean, spread^2): one for each stream, in (0, 1)."""
    return torch.sigmoid(mean + spread * noise.normal(1)[:, 0])


@dataclass(frozen=True)
class Flow(PriorTrainer):
    """Learn E |v(x_t, t) - (x_1 - x_0)|^2, x_1 a public image, x_0 ~ N(0, I), logit(t) ~ N(mean, spread^2).

    No target is asked: one model serves every target.

    Args:
        width, multipliers, blocks, attention, heads, patch: Of the network; see `UNet`.
        eigenfaces: With k > 0 the network predicts what the best linear predictor leaves over: that of a Gaussian with
            the public images' mean and k leading eigenvectors, see `Eigenspace`. 0 in the paper. Differs: a network
            that can afford few steps would spend them all on learning that predictor.
        steps: Of AdamW.
        batch: Images a step.
        lr: AdamW's learning rate at its peak.
        warm_up: Share of the steps in which it rises from 0, linearly; then it falls to 0 as a cosine.
        decay: Of the running average of the weights that is kept.
        mean: Of logit(t).
        spread: Of logit(t).
        mirror: Mirror public images at random.
        sampler_steps: Of Heun's method in `decode`.

    Source: algorithm 1 and section IV-A of the paper; no code of the authors was found.
    Differs: the network is ADM's U-Net at the size that Diff-MI uses for 64 pixels (theirs is a vision transformer with
    patches of 16 pixels and 16 heads). The paper does not print the batch, the length of the warm-up or whether weights
    are averaged: these are ours. The loss is a mean over pixels, which under AdamW is as good as their sum.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (16, 8)
    heads: int = 4
    patch: int = 1
    eigenfaces: int = 0
    steps: int = 500_000
    batch: int = 64
    lr: float = 2e-5
    warm_up: float = 0.01
    decay: float = 0.9999
    mean: float = field(default=-0.8, metadata={"signed": True})
    spread: float = 0.8
    mirror: bool = False
    sampler_steps: int = 50

    def __post_init__(self) -> None:
        sizes = (self.width, *self.multipliers, self.blocks, self.heads, self.patch, self.steps, self.batch)
        if min(*sizes, self.sampler_steps, len(self.multipliers)) < 1 or self.eigenfaces < 0:
            raise UserError(
                "flow: width, multipliers, blocks, heads, patch, steps, batch and sampler_steps must be at least 1, "
                "eigenfaces at least 0"
            )
        if self.width % (2 * self.heads):
            raise UserError(f"flow: width must be a multiple of 2 * heads, got {self.width} and {self.heads} heads")
        if not 0 <= self.decay < 1 or not 0 <= self.warm_up < 1 or not self.spread >= 0:
            raise UserError(
                "flow: decay and warm_up must lie in [0, 1), spread must not be negative; "
                f"got {self.decay}, {self.warm_up} and {self.spread}"
            )

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> FlowPrior:
        """The untrained network."""
        net = UNet(image_shape, 0, self.width, self.multipliers, self.blocks, self.attention, self.heads, self.patch)
        eigenfaces = min(self.eigenfaces, len(public) // 2)
        return FlowPrior(image_shape, Predictor(net, math.prod(image_shape), eigenfaces), self.sampler_steps)

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Fit the eigenfaces, then learn the velocity."""
        assert isinstance(prior, FlowPrior) and isinstance(prior.network, Predictor)
        net = prior.network.net
        prior.train()
        kept = average_of(net)
        learner = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=0.0)
        loop = Loop(session, public, self.batch, self.mirror, {"prior": prior, "kept": kept, "learner": learner})
        if prior.network.gaussian is not None:
            count = min(len(public), FITTED)
            places = torch.linspace(0, len(public) - 1, count, dtype=torch.float64).round().long()
            everybody = torch.arange(count, device=loop.place.device)[None]
            prior.network.gaussian.fit((2 * loop.at(places) - 1).flatten(1), everybody)

        def step(number: int) -> dict[str, Tensor]:
            learner.param_groups[0]["lr"] = self.lr * rate(number, self.steps, self.warm_up)
            with session.engine.autocast():
                loss = self.loss(prior, 2 * loop.real("real", number) - 1, loop.noise("flow", number))
            learner.zero_grad(set_to_none=True)
            loss.backward()
            learner.step()
            average(kept, net, self.decay)
            return {"loss": loss.detach()}

        loop.run("flow", self.steps, step, every=max(200, self.steps // 50))
        net.load_state_dict(kept.state_dict())
        prior.eval()
        return loop.log

    def loss(self, prior: FlowPrior, x: Images, noise: Noise) -> Float[Tensor, ""]:
        """|v(x_t, t) - (x_1 - x_0)|^2 = |M(x_t, t) - x_1|^2 / (1 - t)^2, averaged over images x_1 = x and pixels."""
        t = logit_normal(noise.of("t"), self.mean, self.spread)
        at = t[:, None, None, None]
        start = noise.of("x0").normal(*prior.image_shape)
        predicted = prior.network((1 - at) * start + at * x, t)
        return ((predicted - x) / (1 - at)).square().mean()


def rate(step: int, steps: int, warm_up: float) -> float:
    """Linear from 0 over the first `warm_up` of the steps, then (1 + cos) / 2 down to 0; the peak is 1."""
    done = (step + 1) / steps
    if done <= warm_up:
        return done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))
