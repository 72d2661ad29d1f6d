"""What diffusion priors share: the noise schedule, classifier-free guidance, the DDIM sampler.

Inside, images lie in [-1, 1] and noise levels are t = 0 ... 999; decode and every other door give [0, 1].

References:
    | Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, NeurIPS 2020), the schedule and the loss
    | https://arxiv.org/abs/2006.11239
    | Denoising Diffusion Implicit Models (Song, Meng and Ermon, ICLR 2021), the sampler
    | https://arxiv.org/abs/2010.02502
    | Classifier-Free Diffusion Guidance (Ho and Salimans, NeurIPS 2021 workshop)
    | https://arxiv.org/abs/2207.12598
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mibench.core import Prior
from mibench.runtime.rng import Noise

__all__ = ["LEVELS", "DiffusionPrior", "signal", "timesteps"]

LEVELS = 1000
"""Noise levels t = 0 ... LEVELS - 1."""

Images = Float[Tensor, "n c h w"]
Labels = Int64[Tensor, " n"]


def signal(low: float = 1e-4, high: float = 2e-2) -> Float[Tensor, " levels"]:
    """abar_t = prod_{s <= t} (1 - beta_s), beta linear from `low` to `high` over all levels. Source: DDPM."""
    return torch.cumprod(1 - torch.linspace(low, high, LEVELS, dtype=torch.float64), dim=0).float()


def timesteps(start: int, steps: int) -> list[int]:
    """The levels a sampler visits: `steps` of them, evenly from `start` down; after the last comes the clean image."""
    return [round(start * (steps - i) / steps) for i in range(steps)]


class DiffusionPrior(Prior):
    """An eps-predicting diffusion model with identities; a latent is the flattened noise that DDIM starts from.

    Differentiable: gradients flow through all steps of the sampler. Each step is recomputed in the backward pass, so
    that memory does not grow with the steps.

    Args:
        image_shape: (channels, height, width).
        num_classes: Identities 0 ... num_classes - 1; the label num_classes stands for nobody in particular.
        top: How many public images illustrate each identity (see `exemplars`).
        steps: Of the sampler behind `decode`.
        guidance: Of `decode`; see `guided`.
    """

    conditional = True
    diffusion = True
    clip: bool = True
    """Whether the sampler clips its predictions of the clean image to [-1, 1]."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, top: int, steps: int, guidance: float
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = image_shape
        self.latent_dim = channels * height * width
        self.num_classes = num_classes
        self.steps = steps
        self.guidance = guidance
        self.register_buffer("signal", signal(), persistent=False)
        self.register_buffer("exemplars", torch.zeros(num_classes, top, dtype=torch.int64))

    @property
    def shown(self) -> Int64[Tensor, "k top"]:
        """Per identity, places in the public split of the images that the target finds most like it, best first."""
        return self.get_buffer("exemplars")

    @abstractmethod
    def eps(self, x: Images, t: Labels, y: Labels) -> Images:
        """The noise in x_t, predicted; y = num_classes asks for it without an identity."""

    def level(self, t: Labels) -> Float[Tensor, "n 1 1 1"]:
        """abar_t."""
        return self.get_buffer("signal")[t][:, None, None, None]

    def noisy(self, x: Images, t: Labels, eps: Images) -> Images:
        """A draw from q(x_t | x_0): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        level = self.level(t)
        return level.sqrt() * x + (1 - level).sqrt() * eps

    def guided(self, x: Images, t: Labels, y: Labels, weight: float) -> Images:
        """weight * eps(x, y) - (weight - 1) * eps(x, nobody): beyond 1, the identity is exaggerated."""
        if weight == 1.0:
            return self.eps(x, t, y)
        nobody = torch.full_like(y, self.num_classes)
        both = self.eps(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, nobody]))
        own, none = both.chunk(2)
        return weight * own - (weight - 1) * none

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
        """DDIM from x_start: yields the prediction of the clean image at each step; the last one is the sample.

        x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps + sigma n, with eps from x0 (clipped where `clip`),
        sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s), and s the next of `timesteps`.

        Args:
            x: Noisy images at level `start`.
            start: Their level.
            y: Identities.
            steps: How many.
            weight: Of the guidance.
            eta: 0 is deterministic, 1 gives DDPM's noise.
            noise: Draws n where eta > 0.
            clip: As `clip` of the prior, unless it is said here.
        """
        clip = self.clip if clip is None else clip
        visited = timesteps(start, steps)
        for place, now in enumerate(visited):
            t = torch.full_like(y, now)
            level = self.level(t)
            if torch.is_grad_enabled():
                eps = checkpoint(self.guided, x, t, y, weight, use_reentrant=False)
            else:
                eps = self.guided(x, t, y, weight)
            clean = (x - (1 - level).sqrt() * eps) / level.sqrt()
            if clip:
                clean = clean.clamp(-1.0, 1.0)
            yield clean
            if place + 1 == steps:
                return
            eps = (x - level.sqrt() * clean) / (1 - level).sqrt()
            after = self.level(torch.full_like(y, visited[place + 1]))
            sigma = eta * ((1 - after) / (1 - level)).sqrt() * (1 - level / after).sqrt()
            x = after.sqrt() * clean + (1 - after - sigma.square()).clamp(min=0.0).sqrt() * eps
            if noise is not None and eta > 0:
                x = x + sigma * noise.of("ddim", place).normal(*self.image_shape)

    def decode(self, z: Float[Tensor, "n d"], y: Labels | None = None) -> Images:
        """DDIM (eta = 0) from the noise z; without y, an image of nobody in particular."""
        labels = torch.full((len(z),), self.num_classes, device=z.device) if y is None else y
        weight = 1.0 if y is None else self.guidance
        *_, clean = self.denoise(z.reshape(-1, *self.image_shape), LEVELS - 1, labels, self.steps, weight)
        return ((clean + 1) / 2).clamp(0.0, 1.0)
