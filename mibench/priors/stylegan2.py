"""A small StyleGAN2 learnt on public images: the prior with a w space of MIRROR, PPA and IF-GMI.

References:
    | Analyzing and Improving the Image Quality of StyleGAN (Karras et al., CVPR 2020)
    | https://arxiv.org/abs/1912.04958
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Oracle, Prior, PriorTrainer, Split, TrainingContext
from mibench.priors.gan import Loop, average, average_of, levels
from mibench.priors.stylegan2_ada_critic import Critic
from mibench.priors.stylegan2_ada_network import Generator
from mibench.priors.stylegan2_network import SLOPE, StyleCritic, StyleGenerator
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of

__all__ = ["StyleGan2", "StylePrior", "StyleSpace", "r1"]

CARD = {
    "summary": "StyleGAN2 on public images, with its w space",
    "title": "Analyzing and Improving the Image Quality of StyleGAN",
    "authors": "Karras, Laine, Aittala, Hellsten, Lehtinen and Aila",
    "venue": "CVPR",
    "year": 2020,
    "link": "https://arxiv.org/abs/1912.04958",
    "critic": "wgan",
    "domain": "public",
    "spaces": ["z", "w", "w+"],
    "enterable": True,
}

PRESETS = {
    "paper": {},
    "quick": {
        "latent_dim": 64,
        "style_dim": 64,
        "layers": 2,
        "width": 8,
        "most": 64,
        "steps": 40,
        "batch": 32,
        "warm_up": 500,
        "decay": 0.95,
        "mirror": True,
        "rate": 1.0,
    },
    # Draws faces after some 12 minutes of one core; the gradient penalty of the paper is for images of 1024 pixels.
    "long": {
        "latent_dim": 64,
        "style_dim": 64,
        "layers": 2,
        "width": 8,
        "most": 64,
        "steps": 4000,
        "batch": 32,
        "gamma": 1.0,
        "warm_up": 500,
        "decay": 0.995,
        "mirror": True,
        "rate": 1.0,
    },
}


def r1(scores: Float[Tensor, " n"], x: Float[Tensor, "n c h w"]) -> Tensor:
    """E |grad_x D(x)|^2 over real images, to be differentiated itself. Source: Mescheder et al., ICML 2018."""
    slope = torch.autograd.grad(scores.sum(), x, create_graph=True)[0]
    return slope.float().square().sum(dim=(1, 2, 3)).mean()


class StyleSpace(Prior):
    """A StyleGAN2 seen through w (one for all layers) or w+ (one per layer, layer after layer).

    sample: w = m + psi (f(z) - m), m the mean of f(z); in w+ only the first `cutoff` layers are truncated.
    """

    differentiable = True
    slope = SLOPE
    critic_kind: Literal["none", "wgan", "kp1"] = "wgan"

    def __init__(self, prior: "StylePrior", name: str) -> None:
        super().__init__()
        self.spaces = (name,)
        self.image_shape, self.blocks = prior.image_shape, prior.blocks
        self.generator, self.critic_network = prior.generator, prior.critic_network
        self.z_dim, self.psi, self.cutoff = prior.latent_dim, prior.psi, prior.cutoff
        self.latent_dim = len(prior.generator.centre) * (prior.generator.layers if name == "w+" else 1)
        self.train(prior.training)

    def _styles(self, w: Tensor) -> Tensor:
        if self.spaces == ("w+",):
            return w.reshape(len(w), self.generator.layers, -1)
        return self.generator.same(w)

    def sample(self, noise: Noise) -> Float[Tensor, "n d"]:
        """The same noise gives the same z in every space."""
        with torch.no_grad():
            w, centre = self.generator.mapping(noise.normal(self.z_dim)), self.generator.centre
        truncated = centre + self.psi * (w - centre)
        if self.spaces == ("w",):
            return truncated
        return torch.cat([truncated if layer < self.cutoff else w for layer in range(self.generator.layers)], dim=1)

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Synthesis from w."""
        styles = self._styles(z)
        return self.generator.finish(styles, self.generator.start(styles), 1)

    def features_at(self, z: Float[Tensor, "n d"], block: int) -> Float[Tensor, "n f"]:
        """Features, then the image so far."""
        inside = self.generator.start(self._styles(z))
        for level in range(1, block):
            inside = self.advance(z, inside, level)
        return inside

    def advance(self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int) -> Float[Tensor, "n g"]:
        """What flows into block `block + 1` when `inside` flows into block `block`."""
        return self.generator.advance(self._styles(z), inside, block)

    def decode_from(
        self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int
    ) -> Float[Tensor, "n c h w"]:
        """The image of what flows into a block."""
        return self.generator.finish(self._styles(z), inside, block)

    def skip_size(self, block: int) -> int:
        """How many values at the end of `features_at`'s rows are the image so far."""
        return self.generator.skip_size(block)

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The discriminator's logit, higher is more real."""
        assert self.critic_network is not None
        return self.critic_network(x)


class StylePrior(Prior):
    """Generator and critic; z ~ N(0, I)."""

    spaces = ("z", "w", "w+")
    critic_kind: Literal["none", "wgan", "kp1"] = "wgan"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: StyleGenerator | Generator,
        critic: StyleCritic | Critic | None,
        latent_dim: int,
        psi: float,
        cutoff: int,
    ) -> None:
        super().__init__()
        self.image_shape, self.latent_dim, self.psi, self.cutoff = image_shape, latent_dim, psi, cutoff
        self.generator, self.critic_network = generator, critic
        self.blocks = len(generator.grown) - 1

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """G(z): no truncation."""
        return self.generator(z)

    def space(self, name: str) -> Prior:
        """z, w, or w+ (for PPA's published start)."""
        return StyleSpace(self, name) if name in ("w", "w+") else super().space(name)

    def _mapped(self, z: Tensor) -> tuple[StyleSpace, Tensor]:
        return StyleSpace(self, "w"), self.generator.mapping(z)

    def features_at(self, z: Float[Tensor, "n d"], block: int) -> Float[Tensor, "n f"]:
        """As in w space, at w = f(z) without truncation."""
        space, w = self._mapped(z)
        return space.features_at(w, block)

    def advance(self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int) -> Float[Tensor, "n g"]:
        """As in w space."""
        space, w = self._mapped(z)
        return space.advance(w, inside, block)

    def decode_from(
        self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int
    ) -> Float[Tensor, "n c h w"]:
        """As in w space."""
        space, w = self._mapped(z)
        return space.decode_from(w, inside, block)

    def skip_size(self, block: int) -> int:
        """How many values at the end of `features_at`'s rows are the image so far."""
        return self.generator.skip_size(block)

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The discriminator's logit, higher is more real."""
        assert self.critic_network is not None
        return self.critic_network(x)

    @torch.no_grad()
    def find_centre(self, seed: int, count: int = 10_000) -> None:
        """Set the mean of f(z) over `count` draws, towards which `sample` truncates."""
        z = Noise(seed, torch.arange(count, device=self.generator.centre.device)).of("centre").normal(self.latent_dim)
        self.generator.centre.copy_(self.generator.mapping(z).mean(dim=0))


@dataclass(frozen=True)
class StyleGan2(PriorTrainer):
    """min_D E softplus(-D(x)) + E softplus(D(G(z))) + gamma / 2 E |grad D(x)|^2;  min_G E softplus(-D(G(z))).

    The penalty is lazy: every `lazy`-th step, `lazy` times as strong, with the critic's Adam corrected by
    c = lazy / (lazy + 1): lr c, beta^c.

    Args:
        latent_dim: Of z ~ N(0, I).
        style_dim: Of w.
        layers: Of the mapping network.
        width: Channels at the image's full size; they double as the side halves.
        most: Most channels of a layer.
        steps: Steps of each network: the paper's 25 million images at batch 32.
        batch: Images a step.
        lr: Adam's learning rate, betas (0, .99).
        rate: Learning rate of the mapping network, relative to the others.
        gamma: Weight of the gradient penalty.
        lazy: How many steps one penalty counts for.
        psi: Truncation of w when latents are drawn: 1 is none.
        cutoff: In w+, how many layers are truncated.
        warm_up: Steps in which the generator first learns as the decoder of a variational auto-encoder; 0 in the paper.
        decay: Of the running average of the generator's weights that is kept.
        mirror: Mirror public images at random.

    Differs: neither path-length regularisation nor mixed styles; see also the networks' notes.
    """

    latent_dim: int = 512
    style_dim: int = 512
    layers: int = 8
    width: int = 64
    most: int = 512
    steps: int = 780_000
    batch: int = 32
    lr: float = 2e-3
    rate: float = 0.01
    gamma: float = 10.0
    lazy: int = 16
    psi: float = 0.5
    cutoff: int = 8
    warm_up: int = 0
    decay: float = 0.998
    mirror: bool = False

    def __post_init__(self) -> None:
        least = min(self.latent_dim, self.style_dim, self.layers, self.width, self.most, self.steps, self.lazy)
        if least < 1 or self.batch < 2:
            raise UserError(
                "stylegan2: latent_dim, style_dim, layers, width, most, steps and lazy must be at least 1, batch at "
                "least 2"
            )
        if self.decay >= 1 or self.rate <= 0:
            raise UserError(f"stylegan2: decay must lie in [0, 1) and rate above 0, got {self.decay} and {self.rate}")

    def blocks_of(self, image_shape: tuple[int, int, int]) -> int:
        """One for each doubling of the side from 4 on."""
        return levels(image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> StylePrior:
        """The untrained networks."""
        generator = StyleGenerator(
            image_shape, self.latent_dim, self.style_dim, self.layers, self.width, self.most, self.rate
        )
        critic = StyleCritic(image_shape, self.width, self.most)
        return StylePrior(image_shape, generator, critic, self.latent_dim, self.psi, self.cutoff)

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Warm up, then alternate critic and generator."""
        assert isinstance(prior, StylePrior)
        judge = prior.critic_network
        assert judge is not None
        engine = session.engine
        prior.train()
        kept = average_of(prior.generator)
        late = self.lazy / (self.lazy + 1)
        of_generator = torch.optim.Adam(prior.generator.parameters(), lr=self.lr, betas=(0.0, 0.99))
        of_critic = torch.optim.Adam(judge.parameters(), lr=self.lr * late, betas=(0.0, 0.99**late))
        loop = Loop(
            session,
            public,
            self.batch,
            self.mirror,
            {"prior": prior, "kept": kept, "of_generator": of_generator, "of_critic": of_critic},
        )
        loop.warm_up(prior, self.warm_up, 16, lr=1e-2)
        if self.warm_up:
            kept.load_state_dict(prior.generator.state_dict())

        def drawn(purpose: str, number: int) -> Tensor:
            return prior.generator(loop.noise(purpose, number).normal(self.latent_dim))

        def critic_step(number: int) -> Tensor:
            punished = number % self.lazy == 0
            real = loop.real("real", number).requires_grad_(punished)
            with engine.autocast():
                with torch.no_grad():
                    fake = drawn("critic", number)
                on_real, on_fake = prior.critic(real), prior.critic(fake)
                loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
                total = loss + self.lazy * self.gamma / 2 * r1(on_real, real) if punished else loss
            of_critic.zero_grad(set_to_none=True)
            total.backward()
            of_critic.step()
            return loss.detach()

        def step(number: int) -> dict[str, Tensor]:
            of_judge = critic_step(number)
            judge.requires_grad_(False)
            with engine.autocast():
                loss = F.softplus(-prior.critic(drawn("generator", number))).mean()
            of_generator.zero_grad(set_to_none=True)
            loss.backward()
            of_generator.step()
            judge.requires_grad_(True)
            average(kept, prior.generator, self.decay)
            return {"critic": of_judge, "generator": loss.detach()}

        loop.run("gan", self.steps, step)
        prior.generator.load_state_dict(kept.state_dict())
        prior.find_centre(seed_of(session.seed, "prior"))
        return loop.log
