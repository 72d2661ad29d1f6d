"""Toy worlds: small enough to be solved by hand, so that a plug-in that fails there has a mistake."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Access, Attack, AttackContext, Oracle, Prior, Reconstructions, Split, to_uint8
from mibench.models.base import Classifier, Prepare
from mibench.plugins import registry
from mibench.priors.diffusion import DiffusionPrior
from mibench.priors.flow import FlowPrior
from mibench.priors.pixels import PixelPrior
from mibench.priors.public import PublicImages
from mibench.runtime.rng import Noise

__all__ = [
    "SHAPE",
    "GaussianDiffusion",
    "LinearPrior",
    "SmallNet",
    "ToldPrior",
    "World",
    "attack_on",
    "colours",
    "gaussian_flow",
    "public",
    "quick",
    "small_net",
    "workspace",
]

SHAPE = (3, 8, 8)


class LinearPrior(Prior):
    """G(z) = .5 + .5 tanh(z A / 2) with orthonormal rows in A; D(x) punishes contrast, softly.

    It can be entered at as many places as the shipped generator; z A flows through all of them.
    """

    def __init__(self, latent_dim: int, critic_kind: Literal["none", "wgan", "kp1"]) -> None:
        super().__init__()
        pixels = SHAPE[0] * SHAPE[1] * SHAPE[2]
        square = torch.randn(pixels, latent_dim, generator=torch.Generator().manual_seed(1))
        self.directions = nn.Parameter(torch.linalg.qr(square).Q.T.contiguous())
        self.latent_dim = latent_dim
        self.image_shape = SHAPE
        self.critic_kind = critic_kind

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return (0.5 + 0.5 * torch.tanh(z @ self.directions / 2)).reshape(-1, *SHAPE)

    blocks = 4

    def features_at(self, z: Tensor, block: int) -> Tensor:
        return z @ self.directions

    def advance(self, z: Tensor, inside: Tensor, block: int) -> Tensor:
        return inside

    def decode_from(self, z: Tensor, inside: Tensor, block: int) -> Tensor:
        return (0.5 + 0.5 * torch.tanh(inside / 2)).reshape(-1, *SHAPE)

    def skip_size(self, block: int) -> int:
        return 0

    def critic(self, x: Tensor) -> Tensor:
        if self.critic_kind == "none":
            return super().critic(x)
        return 1.0 - (x - 0.5).square().flatten(1).mean(dim=1)


class GaussianDiffusion(DiffusionPrior):
    """The best possible noise prediction for images x ~ N(mean, spread^2 I) in [-1, 1], in closed form.

    A world's images have a spread of about sqrt(12 / 192) / 2 = .125 in 12 directions of 192, and none in the others.
    """

    clip = False

    def __init__(self, num_classes: int, mean: float = 0.0, spread: float = 0.25, steps: int = 10) -> None:
        super().__init__(SHAPE, num_classes, 8, steps, 3.0)
        self.mean, self.spread = mean, spread

    def eps(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        a = self.level(t)
        return (x - a.sqrt() * self.mean) * (1 - a).sqrt() / (a * self.spread**2 + 1 - a)


class GaussianPredictor(nn.Module):
    """E[x_1 | x_t] for images x_1 ~ N(mean, spread^2 I), in closed form; a point where spread is 0."""

    def __init__(self, mean: float | Tensor, spread: float) -> None:
        super().__init__()
        self.mean, self.spread = mean, spread

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        share = t * self.spread**2 / (t.square() * self.spread**2 + (1 - t).square())
        return self.mean + share * (x - t * self.mean)


def gaussian_flow(mean: float | Tensor = 0.0, spread: float = 0.25, steps: int = 10) -> FlowPrior:
    """The best possible flow to images x ~ N(mean, spread^2 I) in [-1, 1]; compare `GaussianDiffusion`."""
    return FlowPrior(SHAPE, GaussianPredictor(mean, spread), steps).eval()


class ToldPrior(Prior):
    """G(z, y) = G(z + .5 e_y): told whom to draw, it comes a little nearer than by chance."""

    conditional = True

    def __init__(self, prior: LinearPrior) -> None:
        super().__init__()
        self.prior = prior
        self.latent_dim, self.image_shape = prior.latent_dim, prior.image_shape

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        return self.prior.decode(z + 0.5 * F.one_hot(y, self.latent_dim))


@dataclass
class World:
    """Identity k is the direction e_k of the latent: l_k = sharpness * <A (2x - 1), e_k> in the linear range.

    Nothing is frozen: an attack that leaves a gradient on the target or moves it is seen.
    """

    classes: int = 10
    critic: Literal["none", "wgan", "kp1"] = "wgan"
    sharpness: float = 4.0
    images: int = 400
    prior: LinearPrior = field(init=False)
    target: Classifier = field(init=False)

    def __post_init__(self) -> None:
        self.prior = LinearPrior(self.classes + 2, self.critic).eval()
        hidden = nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], self.classes + 2)
        trunk = nn.Sequential(nn.Flatten(), hidden)
        head = nn.Linear(self.classes + 2, self.classes)
        self.target = Classifier(Prepare(SHAPE, [0.5], [0.5]), trunk, head, self.classes + 2).eval()
        with torch.no_grad():
            # Prepare maps [0, 1] to 2x - 1 = tanh(z A / 2); A A' = 1, so twice its projection on A is about z.
            hidden.weight.copy_(2.0 * self.prior.directions)
            hidden.bias.zero_()
            head.weight.copy_(self.sharpness * torch.eye(self.classes, self.classes + 2))
            head.bias.zero_()

    def diffusion(self) -> GaussianDiffusion:
        """Knows how bright images are, and which public images the target likes, but no identity."""
        prior = GaussianDiffusion(self.classes)
        with torch.no_grad():
            scores = self.target(self.public().images.float() / 255).softmax(1)
        prior.shown.copy_(scores.topk(8, dim=0).indices.T)
        return prior.eval()

    def truth(self, images: Tensor) -> Tensor:
        """Which identity an image shows, worked out from the prior alone: the largest latent among the identities."""
        z = torch.atanh((2 * images.double() - 1).clamp(-0.999, 0.999)).flatten(1)
        return (z @ self.prior.directions.double().T)[:, : self.classes].argmax(dim=1)

    def public(self, count: int | None = None) -> Split:
        """What the prior draws, as the attacker's images: `images` of them."""
        count = self.images if count is None else count
        z = self.prior.sample(Noise(99, torch.arange(count)))
        with torch.no_grad():
            return Split(to_uint8(self.prior.decode(z)), torch.full((count,), -1))

    def prior_for(self, name: str) -> Prior:
        """The prior that an attack's card requires, of this world."""
        return self.prior_with(registry.card("attacks", name).get("requires", ()))

    def prior_with(self, required: Iterable[str]) -> Prior:
        """A prior that offers this; the linear one offers gradients, a critic and blocks."""
        return next((PRIORS[word](self) for word in required if word in PRIORS), self.prior)

    def oracle(self, access: Access = Access.WHITE_BOX, budget: int | None = None) -> Oracle:
        """The door to the target."""
        return Oracle(self.target, access, self.classes, budget)


PRIORS: dict[str, Callable[[World], Prior]] = {
    "diffusion": World.diffusion,
    "flow": lambda world: gaussian_flow(),
    "conditional": lambda world: ToldPrior(world.prior),
    "pixels": lambda world: PixelPrior(SHAPE),
    "images": lambda world: PublicImages(world.public().images),
}
"""Toy priors by what an attack requires that the world's linear prior does not offer."""


def quick(name: str, **settings: object) -> Attack:
    """An attack in its quick preset."""
    return registry.configure("attacks", name, "quick", settings).plugin


def workspace(world: World, batch: int = 256, folder: Path | None = None) -> AttackContext:
    """A workspace with the world's public images."""
    return AttackContext(batch, folder, world.public())


def attack_on(
    world: World,
    name: str,
    labels: Tensor | None = None,
    seed: int = 0,
    work: AttackContext | None = None,
    oracle: Oracle | None = None,
    **settings: object,
) -> Reconstructions:
    """Run an attack under exactly the access its card declares."""
    oracle = oracle or world.oracle(Access.of(registry.card("attacks", name)["access"]))
    labels = torch.arange(world.classes) if labels is None else labels
    return quick(name, **settings)(oracle, world.prior_for(name), labels, seed, work or workspace(world))


def public(size: int = 16, channels: int = 3, count: int = 24) -> Split:
    """Images of noise, of nobody."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.full((count,), -1))


class SmallNet(nn.Module):
    """Convolution, batch norm, mean pooling, linear: enough to learn colours and stripes."""

    def __init__(self, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(F.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))

    def serve(self, features: Tensor, x: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.serve(self.features(x), x)


def small_net(classes: int = 3, seed: int = 0, dropout: float = 0.0) -> SmallNet:
    """A small network from a seed of its own."""
    torch.manual_seed(seed)
    return SmallNet(classes, dropout)


def colours(count: int = 36, size: int = 12, seed: int = 0) -> Split:
    """Three classes told apart by their brightest channel, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    x = 0.4 * torch.rand(count, 3, size, size, generator=generator) + 0.2
    x[torch.arange(count), labels] += 0.3
    return Split(to_uint8(x), labels)
