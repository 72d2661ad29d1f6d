"""How GMI and KEDMI move latents, whatever the loss: LOMMA changes the loss and keeps the rule.

References:
    | The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks (Zhang et al., CVPR 2020)
    | https://arxiv.org/abs/1911.07135
    | Knowledge-Enriched Distributional Model Inversion Attacks (Chen et al., ICCV 2021)
    | https://arxiv.org/abs/2010.04092
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.latents import DiagonalGaussian, Point
from mibench.attacks.parts.search import adam, descend, keys
from mibench.core import AttackContext, Prior
from mibench.runtime.rng import Noise

__all__ = ["ImageLoss", "draw_gaussians", "fit_gaussians", "fit_points"]

ImageLoss = Callable[[Float[Tensor, "n c h w"], Int64[Tensor, " n"], Noise], Float[Tensor, " n"]]
"""(images, identities, the step's noise) -> what is minimised, one value per image."""


def fit_points(
    prior: Prior,
    y: Int64[Tensor, " n"],
    noise: Noise,
    loss: ImageLoss,
    steps: int,
    lr: float,
    momentum: float,
    reference_batch: int,
    clip: float,
    work: AttackContext | None = None,
) -> Float[Tensor, "n d"]:
    """GMI's rule: Nesterov descent from N(0, I), z clamped to [-clip, clip] after each step; the start is not."""
    point = Point(prior.sample(noise.of("start")))
    optimizer = torch.optim.SGD(point.parameters(), lr=lr, momentum=momentum, nesterov=True)

    def of_latents(z: Tensor, drawn: Noise) -> Tensor:
        return loss(prior.decode(z, y), y, drawn)

    descend(point, of_latents, optimizer, steps, noise, scale=1 / reference_batch, clamp=clip, work=work)
    return point.z.detach()


def fit_gaussians(
    prior: Prior,
    y: Int64[Tensor, " n"],
    noise: Noise,
    loss: ImageLoss,
    steps: int,
    lr: float,
    log_var: float,
    clip: float | None,
    reference_batch: int = 60,
    work: AttackContext | None = None,
) -> Float[Tensor, "n e"]:
    """KEDMI's rule: Adam on (mu, log sigma^2) from (0, log_var), one eps a step; both side by side in a row.

    With `clip`, images are made of clamp(z, -clip, clip). The authors average over 60 identities; see `adam`.
    """
    start = torch.zeros(len(y), prior.latent_dim, device=y.device)
    gaussian = DiagonalGaussian(start, torch.full_like(start, log_var))
    optimizer = adam(gaussian.parameters(), lr, reference_batch)

    def of_latents(z: Tensor, drawn: Noise) -> Tensor:
        return loss(prior.decode(_clipped(z, clip), y), y, drawn)

    descend(gaussian, of_latents, optimizer, steps, noise, work=work)
    return torch.cat(gaussian.parameters(), dim=1).detach()


@torch.no_grad()
def draw_gaussians(
    fitted: Float[Tensor, "k e"], labels: Int64[Tensor, " k"], images: int, seed: int, clip: float | None
) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]:
    """`images` latents from each identity's Gaussian, and whose they are."""
    mu, log_var = fitted.repeat_interleave(images, 0).chunk(2, dim=1)
    y, key = keys(labels, images)
    return _clipped(DiagonalGaussian(mu, log_var).draw(Noise(seed, key).of("kedmi-final")), clip), y


def _clipped(z: Float[Tensor, "n d"], clip: float | None) -> Float[Tensor, "n d"]:
    return z if clip is None else z.clamp(-clip, clip)
