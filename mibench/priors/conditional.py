"""What the conditional priors share: a generator told whom to draw, the trunk of its judge, the game they play.

References:
    | Spectral Normalization for Generative Adversarial Networks (Miyato et al., ICLR 2018), the residual networks
    | https://arxiv.org/abs/1802.05957
    | cGANs with Projection Discriminator (Miyato and Koyama, ICLR 2018), the conditioning
    | https://arxiv.org/abs/1802.05637
    | Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network (Yuan et al., AAAI 2023)
    | https://arxiv.org/abs/2302.09814
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from mibench.core import Lacks, Oracle, Prior, PriorTrainer, Split, TrainingContext, augment
from mibench.priors.gan import Loop, average, average_of, levels
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["ConditionalGenerator", "ConditionalNorm", "ConditionalPrior", "ConditionalTrainer", "Game", "Trunk"]


def conv(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    """Same-size convolution; Glorot-uniform weights, wider by sqrt 2 in front of a ReLU, and no bias at the start."""
    made = nn.Conv2d(inputs, outputs, side, padding=side // 2)
    nn.init.xavier_uniform_(made.weight, math.sqrt(2.0) if side == 3 else 1.0)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


def halved(x: Float[Tensor, "n c h w"], layer: nn.Conv2d) -> Float[Tensor, "n c2 h2 w2"]:
    """Mean of 2x2 of layer(x) for a 3x3 layer, as one 4x4 convolution of stride 2: the mean of four shifted kernels."""
    weight = layer.weight
    shifts = [F.pad(weight, (right, 1 - right, down, 1 - down)) for right in (0, 1) for down in (0, 1)]
    kernel = torch.stack(shifts).mean(dim=0)
    return F.conv2d(x, kernel, layer.bias, stride=2, padding=1)


class ConditionalNorm(nn.Module):
    """Batch normalisation with a gain and a bias for each identity: gain[y] (x - mean) / std + bias[y]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Parameter(torch.ones(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """Statistics of the batch while training, the running ones after it."""
        # F.embedding, not indexing: its gradient is summed in the same order on every run, on CUDA too.
        gain, bias = F.embedding(y, self.gain), F.embedding(y, self.bias)
        if self.training:
            x = self.norm(x)
        else:  # one pass over the pixels instead of two
            mean, var = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
            gain = gain * torch.rsqrt(var + self.norm.eps)
            bias = bias - mean * gain
        return torch.addcmul(bias[:, :, None, None].to(x.dtype), x, gain[:, :, None, None].to(x.dtype))


class Up(nn.Module):
    """Norm, ReLU, doubling, conv 3x3, norm, ReLU, conv 3x3; beside it a 1x1 convolution and the doubling.

    A 1x1 convolution commutes with the doubling, so it runs first, on a quarter of the pixels.
    """

    def __init__(self, inputs: int, outputs: int, num_classes: int, upsampling: str) -> None:
        super().__init__()
        self.grow = nn.Upsample(scale_factor=2.0, mode=upsampling)
        self.norms = nn.ModuleList([ConditionalNorm(inputs, num_classes), ConditionalNorm(outputs, num_classes)])
        self.convs = nn.ModuleList([conv(inputs, outputs, 3), conv(outputs, outputs, 3)])
        self.shortcut = conv(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n c2 h2 w2"]:
        """One residual step."""
        inner = self.convs[0](self.grow(F.relu(self.norms[0](x, y))))
        inner = self.convs[1](F.relu(self.norms[1](inner, y)))
        out: Tensor = inner + self.grow(self.shortcut(x))
        return out


class ConditionalGenerator(nn.Module):
    """(z, y) -> Linear -> 4x4 -> residual doublings that halve the channels down to `width` -> 1x1 conv -> sigmoid.

    At 64 px, width 64 and 1000 identities this is PLG-MI's generator (17,973,379 parameters).
    Differs: the authors end in tanh although their images lie in [0, 1].
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, latent_dim: int, width: int, upsampling: str
    ) -> None:
        super().__init__()
        doublings = levels(image_shape)
        self.top = width * 2**doublings
        self.project = nn.Linear(latent_dim, self.top * 16)
        nn.init.xavier_uniform_(self.project.weight)
        self.blocks = nn.ModuleList(
            Up(self.top // 2**level, self.top // 2 ** (level + 1), num_classes, upsampling)
            for level in range(doublings)
        )
        self.norm = ConditionalNorm(width, 1)
        self.last = conv(width, image_shape[0], 1)

    def forward(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1]."""
        x = self.project(z).reshape(len(z), self.top, 4, 4).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, y)
        return torch.sigmoid(self.last(F.relu(self.norm(x, torch.zeros_like(y))))).float()


class Down(nn.Module):
    """ReLU, conv 3x3, ReLU, conv 3x3, mean of 2x2; beside it the mean and a 1x1 convolution; spectral norms.

    The first block of a trunk has no ReLU at its start, and is wide from its first convolution on.
    """

    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        middle = outputs if first else inputs
        self.first = first
        self.convs = nn.ModuleList([spectral_norm(conv(inputs, middle, 3)), spectral_norm(conv(middle, outputs, 3))])
        self.shortcut = spectral_norm(conv(inputs, outputs, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """One residual step."""
        inner = self.convs[0](x if self.first else F.relu(x))
        inner = halved(F.relu(inner), self.convs[1])  # type: ignore[arg-type]
        out: Tensor = inner + self.shortcut(F.avg_pool2d(x, 2))
        return out


class Trunk(nn.Module):
    """Images to features: halvings of `width`, 2 width, ... channels down to 2x2, ReLU, sum over the places."""

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels(image_shape) + 1)]
        self.features = widths[-1]
        self.blocks = nn.Sequential(
            Down(image_shape[0], width, True), *(Down(inputs, outputs, False) for inputs, outputs in pairwise(widths))
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Features."""
        x = x.contiguous(memory_format=torch.channels_last)
        return F.relu(self.blocks(x)).sum(dim=(2, 3))


class ConditionalPrior(Prior):
    """A generator in [0, 1] with z ~ N(0, I) that is told which identity to draw, and the trunk of its judge."""

    conditional = True

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, latent_dim: int, width: int, upsampling: str
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dim = latent_dim
        self.generator = ConditionalGenerator(image_shape, num_classes, latent_dim, width, upsampling)
        self.trunk = Trunk(image_shape, width)

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """G(z, y).

        Raises:
            Lacks: If it is not told whom to draw.
        """
        if y is None:
            raise Lacks(
                f"the prior {type(self).__name__} draws a given identity and was told none", "priors", "unconditional"
            )
        return self.generator(z, y)


def identities(noise: Noise, count: int) -> Int64[Tensor, " n"]:
    """Labels drawn uniformly from `count` identities."""
    return (noise.uniform(1)[:, 0] * count).long().clamp(max=count - 1)


class Game(NamedTuple):
    """The losses of one recipe, as functions of the step."""

    pairs: Callable[[int], tuple[Tensor, Tensor]]
    """Public images and their pseudo labels, for the warm-up."""
    critic: Callable[[int, int], Tensor]
    """What the judge minimises at (step, inner step)."""
    generator: Callable[[int], Tensor]
    """What the generator minimises at a step."""


class _Asked:
    """The oracle's counts as a part of the checkpoint: a resumed run has asked what the interrupted one asked."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def state_dict(self) -> dict[str, Tensor]:
        return self.oracle.counts()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        now = self.oracle.counts()
        self.oracle.add({name: count.cpu() - now[name] for name, count in state.items()})


@dataclass(frozen=True)
class ConditionalTrainer(PriorTrainer):
    """How a conditional prior is learnt; what each recipe adds are its networks and its losses.

    Args:
        latent_dim: Of z ~ N(0, I).
        width: Channels of the generator's last block and of the judge's first.
        upsampling: bilinear (as the authors) or nearest.
        steps: Generator steps.
        critic_steps: Judge steps for each generator step.
        batch: Images a step.
        lr: Adam's learning rate, betas (0, .9).
        warm_up: Steps as the conditional decoder of a variational auto-encoder first; 0 in the papers. Differs: the
            presets below the papers' use it, because they cannot afford their steps.
        decay: Of the running average of the generator that is kept; 0 keeps the last weights (the papers).
        mirror: Mirror public images at random; the papers do not.
    """

    name: ClassVar[str]

    latent_dim: int = 128
    width: int = 64
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    steps: int = 30_000
    critic_steps: int = 5
    batch: int = 64
    lr: float = 2e-4
    warm_up: int = 0
    decay: float = 0.0
    mirror: bool = False

    def __post_init__(self) -> None:
        if min(self.latent_dim, self.width, self.steps, self.critic_steps) < 1 or self.batch < 2:
            raise UserError(
                f"{self.name}: latent_dim, width, steps and critic_steps must be at least 1, batch at least 2"
            )
        if self.decay >= 1:
            raise UserError(f"{self.name}: decay must lie in [0, 1), got {self.decay}")

    @abstractmethod
    def game(self, prior: Any, loop: Loop, oracle: Oracle) -> Game:
        """The losses; asks the target for what is asked once."""

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Warm up, then alternate judge and generator."""
        assert isinstance(prior, ConditionalPrior)
        if oracle is None:
            raise UserError(f"the prior '{self.name}' learns from a target's answers; name one with --target RUN")
        prior.train()
        kept = average_of(prior.generator)
        drawing = list(prior.generator.parameters())
        judging = [part for name, part in prior.named_parameters() if not name.startswith("generator.")]
        of_generator = torch.optim.Adam(drawing, lr=self.lr, betas=(0.0, 0.9))
        of_critic = torch.optim.Adam(judging, lr=self.lr, betas=(0.0, 0.9))
        loop = Loop(
            session,
            public,
            self.batch,
            self.mirror,
            {
                "prior": prior,
                "kept": kept,
                "of_generator": of_generator,
                "of_critic": of_critic,
                "asked": _Asked(oracle),
            },
        )
        game = self.game(prior, loop, oracle)
        loop.warm_up(prior, self.warm_up, self.width, lr=2e-3, pairs=game.pairs)
        if self.warm_up:
            kept.load_state_dict(prior.generator.state_dict())

        def step(number: int) -> dict[str, Tensor]:
            for inner in range(self.critic_steps):
                judged = _descend(game.critic(number, inner), judging, of_critic)
            drawn = _descend(game.generator(number), drawing, of_generator)
            average(kept, prior.generator, self.decay)
            return {"judge": judged, "generator": drawn}

        loop.run("gan", self.steps, step)
        prior.generator.load_state_dict(kept.state_dict())
        return loop.log

    def drawn(self, prior: Prior, loop: Loop, classes: int, *purpose: object) -> tuple[Tensor, Tensor]:
        """A batch of the generator's images, and whom each of them should show."""
        noise = loop.noise("drawn", *purpose)
        y = identities(noise, classes)
        return prior.decode(noise.of("z").normal(self.latent_dim), y), y

    def mirrored(self, x: Float[Tensor, "n c h w"], noise: Noise) -> Float[Tensor, "n c h w"]:
        """Images mirrored at random where the recipe says so."""
        return augment.flip(x, noise) if self.mirror else x


def _descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> Tensor:
    """One step on these parameters only: the gradients of the other player and of the target are never worked out."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss.detach()
