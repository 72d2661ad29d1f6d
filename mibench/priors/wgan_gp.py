"""A Wasserstein GAN with gradient penalty, learnt on public images alone: the prior of GMI.

References:
    | Improved Training of Wasserstein GANs (Gulrajani et al., NeurIPS 2017)
    | https://arxiv.org/abs/1704.00028
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.core import Oracle, Prior, PriorTrainer, Split, TrainingContext
from mibench.priors.gan import GanPrior, Loop, Upsampling, average, average_of, critic_blocks
from mibench.runtime.errors import UserError

__all__ = ["WganGp", "WganPrior"]

CARD = {
    "summary": "WGAN-GP on public images",
    "title": "Improved Training of Wasserstein GANs",
    "authors": "Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville",
    "venue": "NeurIPS",
    "year": 2017,
    "link": "https://arxiv.org/abs/1704.00028",
    "critic": "wgan",
    "domain": "public",
}

PRESETS = {
    "paper": {},
    "quick": {
        "width": 16,
        "upsampling": "nearest",
        "steps": 100,
        "critic_steps": 2,
        "batch": 32,
        "warm_up": 400,
        "decay": 0.95,
        "mirror": True,
    },
}


class WganPrior(GanPrior):
    """Generator and critic of GMI."""

    critic_kind = "wgan"

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, width: int, upsampling: Upsampling) -> None:
        super().__init__(image_shape, latent_dim, width, upsampling)
        blocks = critic_blocks(image_shape, width, first_norm=False)
        inside = width * 2 ** (len([m for m in blocks if isinstance(m, nn.Conv2d)]) - 1)
        self.critic_network = nn.Sequential(
            blocks,
            nn.Conv2d(inside, 2 * inside, 5, 2, 2),
            nn.InstanceNorm2d(2 * inside, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * inside, 1, 4),
            nn.Flatten(0),
        )

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The critic's score, higher is more real."""
        return self.critic_network(x).float()


@dataclass(frozen=True)
class WganGp(PriorTrainer):
    """min_G max_D E D(x) - E D(G(z)) - penalty E (|grad D(x^)| - 1)^2, x^ on the line between x and G(z).

    Args:
        latent_dim: Of z ~ N(0, I).
        width: Channels of the generator's last hidden layer and of the critic's first.
        upsampling: transposed (5x5 transposed convolutions, as in GMI) or nearest (doubling, then 3x3 convolution).
        steps: Generator steps. The paper's default is 280 epochs of 30,000 images at batch 64, every 5th step.
        critic_steps: Critic steps for each generator step.
        batch: Images a step.
        lr: Adam's learning rate, betas (.5, .999).
        penalty: Weight of the gradient penalty.
        warm_up: Steps in which the generator first learns as the decoder of a variational auto-encoder; 0 in the
            paper. Differs: the presets below the paper's use it, because they cannot afford its epochs.
        decay: Of the running average of the generator's weights that is kept; 0 keeps the last weights (the paper).
        mirror: Mirror public images at random.
    """

    latent_dim: int = 100
    width: int = 64
    upsampling: Literal["transposed", "nearest"] = "transposed"
    steps: int = 26_000
    critic_steps: int = 5
    batch: int = 64
    lr: float = 2e-4
    penalty: float = 10.0
    warm_up: int = 0
    decay: float = 0.0
    mirror: bool = False

    def __post_init__(self) -> None:
        if min(self.latent_dim, self.width, self.steps, self.critic_steps) < 1 or self.batch < 2:
            raise UserError("wgan_gp: latent_dim, width, steps and critic_steps must be at least 1, batch at least 2")
        if self.decay >= 1:
            raise UserError(f"wgan_gp: decay must lie in [0, 1), got {self.decay}")

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> WganPrior:
        """The untrained networks."""
        return WganPrior(image_shape, self.latent_dim, self.width, self.upsampling)

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Warm up, then alternate critic and generator."""
        assert isinstance(prior, WganPrior)
        engine = session.engine
        prior.train()
        kept = average_of(prior.generator)
        of_generator = torch.optim.Adam(prior.generator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        of_critic = torch.optim.Adam(prior.critic_network.parameters(), lr=self.lr, betas=(0.5, 0.999))
        loop = Loop(
            session,
            public,
            self.batch,
            self.mirror,
            {"prior": prior, "kept": kept, "of_generator": of_generator, "of_critic": of_critic},
        )
        loop.warm_up(prior, self.warm_up, self.width, lr=2e-3)
        if self.warm_up:
            kept.load_state_dict(prior.generator.state_dict())

        def critic_step(number: int, inner: int) -> Tensor:
            noise = loop.noise("critic", number, inner)
            real = loop.real("real", number, inner)
            with torch.no_grad(), engine.autocast():
                fake = prior.generator(noise.normal(self.latent_dim))
            mix = real + noise.of("mix").uniform(1, 1, 1) * (fake - real)
            mix.requires_grad_()
            with engine.autocast():
                scores = prior.critic(torch.cat([real, fake]))
                slope = torch.autograd.grad(prior.critic(mix).sum(), mix, create_graph=True)[0]
            on_real, on_fake = scores.chunk(2)
            distance = on_real.mean() - on_fake.mean()
            penalty = (slope.float().flatten(1).norm(dim=1) - 1).square().mean()
            of_critic.zero_grad(set_to_none=True)
            (self.penalty * penalty - distance).backward()
            of_critic.step()
            return distance.detach()

        def step(number: int) -> dict[str, Tensor]:
            for inner in range(self.critic_steps):
                distance = critic_step(number, inner)
            prior.critic_network.requires_grad_(False)
            with engine.autocast():
                score = prior.critic(prior.generator(loop.noise("generator", number).normal(self.latent_dim))).mean()
            of_generator.zero_grad(set_to_none=True)
            (-score).backward()
            of_generator.step()
            prior.critic_network.requires_grad_(True)
            average(kept, prior.generator, self.decay)
            return {"wasserstein": distance, "score": score.detach()}

        loop.run("gan", self.steps, step)
        prior.generator.load_state_dict(kept.state_dict())
        return loop.log
