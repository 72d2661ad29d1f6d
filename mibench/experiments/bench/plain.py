"""The loops as their authors structure them: float32, channels first, one view for the batch, weights that collect
gradients too. The mathematics of each method is that of its module in `mibench.attacks`, where its source stands.

Written anew from the papers and what the authors' code does; a ratio against them says what structure alone is worth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import ColorJitter, Compose, RandomHorizontalFlip, RandomResizedCrop, RandomRotation

from mibench.models.base import Classifier

__all__ = ["Plain", "gmi", "kedmi", "plg", "ppa"]


class Plain:
    """One loop: a step, and the images it stands at.

    Args:
        parameters: What it moves.
        loss: Two parts, as the authors' progress lines show them.
        update: One move, once gradients stand in the parameters.
        decode: The images.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        loss: Callable[[], tuple[Tensor, Tensor]],
        update: Callable[[], object],
        decode: Callable[[], Tensor],
    ) -> None:
        self.parameters, self.loss, self.update, self.decode = parameters, loss, update, decode

    def step(self) -> None:
        """One step, with the progress line's wait for the device."""
        for parameter in self.parameters:
            parameter.grad = None
        first, second = self.loss()
        (first + second).backward()
        self.update()
        float(first.detach()), float(second.detach())

    @torch.no_grad()
    def images(self) -> Tensor:
        """Where it stands, in [0, 1]."""
        return self.decode()


def gmi(target: Classifier, prior: Any, y: Tensor, start: Tensor) -> Plain:
    """Nesterov descent on the critic's realism and the cross-entropy; the box [-1, 1]."""
    z, v = start.clone().requires_grad_(), torch.zeros_like(start)

    def loss() -> tuple[Tensor, Tensor]:
        x = prior.generator(z)
        return -prior.critic_network(x).mean(), 100 * F.cross_entropy(target(x), y)

    @torch.no_grad()
    def update() -> None:
        assert z.grad is not None
        before = v.clone()
        v.mul_(0.9).sub_(0.02 * z.grad)
        z.add_(1.9 * v - 0.9 * before).clamp_(-1, 1)

    return Plain([z], loss, update, lambda: prior.generator(z))


def kedmi(target: Classifier, prior: Any, y: Tensor, start: Tensor) -> Plain:
    """Adam on a Gaussian for each person; minibatch discrimination within the attacked batch."""
    mu, log_var = torch.zeros_like(start).requires_grad_(), torch.ones_like(start).requires_grad_()
    adam = torch.optim.Adam([mu, log_var], lr=0.02)

    def decode() -> Tensor:
        return prior.generator(mu + (0.5 * log_var).exp() * torch.randn_like(mu))

    def loss() -> tuple[Tensor, Tensor]:
        x = decode()
        real = torch.logsumexp(prior.judge(x)[1], dim=1)
        return F.softplus(-real).mean(), 100 * F.cross_entropy(target(x), y)

    return Plain([mu, log_var], loss, adam.step, decode)


def plg(target: Classifier, prior: Any, y: Tensor, start: Tensor) -> Plain:
    """Adam on the margin of two views, crop and turn one after the other; torchvision draws one of each for the batch,
    the authors' kornia one an image. Shortcuts double their input before the 1x1 convolution, norms go before their
    affine map."""
    z, generator = start.clone().requires_grad_(), prior.generator
    adam = torch.optim.Adam([z], lr=0.1)
    view = Compose(
        [
            RandomResizedCrop(64, (0.8, 1.0), (1.0, 1.0)),
            ColorJitter(0.2, 0.2),
            RandomHorizontalFlip(),
            RandomRotation([-5, 5]),
        ]
    )

    def norm(layer: Any, x: Tensor, identities: Tensor) -> Tensor:
        x = layer.norm(x)
        return layer.gain[identities][:, :, None, None] * x + layer.bias[identities][:, :, None, None]

    def decode() -> Tensor:
        x = generator.project(z).reshape(len(z), generator.top, 4, 4)
        for block in generator.blocks:
            inner = block.convs[0](block.grow(F.relu(norm(block.norms[0], x, y))))
            inner = block.convs[1](F.relu(norm(block.norms[1], inner, y)))
            x = inner + block.shortcut(block.grow(x))
        return torch.sigmoid(generator.last(F.relu(norm(generator.norm, x, torch.zeros_like(y)))))

    def margin(logits: Tensor) -> Tensor:
        best = logits.scatter(1, y[:, None], -1e9).amax(dim=1)
        return (best - logits.gather(1, y[:, None])[:, 0]).mean()

    def loss() -> tuple[Tensor, Tensor]:
        x = decode()
        return margin(target(view(x))), margin(target(view(x)))

    return Plain([z], loss, adam.step, decode)


def ppa(target: Classifier, prior: Any, y: Tensor, start: Tensor) -> Plain:
    """Adam on the Poincare loss against dense one-hot rows, under one crop for the whole batch."""
    z = start.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.005, betas=(0.1, 0.1))
    crop = RandomResizedCrop(64, (0.9, 1.0), (1.0, 1.0), antialias=True)

    def loss() -> tuple[Tensor, Tensor]:
        logits = target(crop(prior.decode(z, y)))
        u = logits / logits.norm(p=1, dim=1, keepdim=True)
        v = (torch.eye(logits.shape[1])[y.cpu()].to(z.device) - 1e-4).clamp(0, 1)
        gap = (u - v).square().sum(dim=1) / ((1 - u.square().sum(dim=1)) * (1 - v.square().sum(dim=1)))
        identity = torch.arccosh(1 + 2 * gap).mean()
        return identity, torch.zeros_like(identity)

    return Plain([z], loss, adam.step, lambda: prior.decode(z, y))
