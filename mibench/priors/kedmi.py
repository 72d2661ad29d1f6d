"""KEDMI's inversion-specific GAN: its critic also learns the target's soft labels on the public images.

References:
    | Knowledge-Enriched Distributional Model Inversion Attacks (Chen et al., ICCV 2021)
    | https://arxiv.org/abs/2010.04092
    | Improved Techniques for Training GANs (Salimans et al., NeurIPS 2016), the K+1 critic and minibatch discrimination
    | https://arxiv.org/abs/1606.03498
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Access, Oracle, Prior, PriorTrainer, Split, TrainingContext
from mibench.priors.gan import GanPrior, Loop, Upsampling, average, average_of, critic_blocks
from mibench.runtime.errors import UserError

__all__ = ["KedmiPrior", "KedmiRecipe"]

CARD = {
    "summary": "inversion-specific GAN that learns the target's soft labels on public images",
    "title": "Knowledge-Enriched Distributional Model Inversion Attacks",
    "authors": "Chen, Kahla, Jia and Qi",
    "venue": "ICCV",
    "year": 2021,
    "link": "https://arxiv.org/abs/2010.04092",
    "critic": "kp1",
    "domain": "public",
}

PRESETS = {
    "paper": {},
    "quick": {
        "width": 16,
        "upsampling": "nearest",
        "steps": 200,
        "critic_steps": 2,
        "batch": 32,
        "warm_up": 400,
        "decay": 0.95,
        "mirror": True,
        "kernels": 16,
        "kernel_dim": 16,
    },
}


class KedmiPrior(GanPrior):
    """GMI's generator with a critic of K logits (the fake class has logit 0) and minibatch discrimination.

    Minibatch discrimination compares an image with its batch: o_b(x_i) = sum_{j != i} exp(-|M_ib - M_jb|_1). During an
    inversion that would make an image's realism depend on which identities are attacked beside it, so that the trained
    critic compares every image with the same reference batch of public images instead. Differs: the authors use
    whatever batch is being inverted.
    """

    critic_kind = "kp1"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        latent_dim: int,
        width: int,
        upsampling: Upsampling,
        kernels: int,
        kernel_dim: int,
        batch: int,
    ) -> None:
        super().__init__(image_shape, latent_dim, width, upsampling)
        blocks = critic_blocks(image_shape, width, first_norm=True)
        inside = width * 2 ** (len([m for m in blocks if isinstance(m, nn.Conv2d)]) - 1)
        self.trunk = nn.Sequential(
            blocks,
            nn.Conv2d(inside, inside, 3, 2, 1),
            nn.InstanceNorm2d(inside, affine=True),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.theta = nn.Parameter(torch.randn(inside * 16, kernels * kernel_dim))
        self.logits = nn.Linear(inside * 16 + kernels, num_classes)
        self.register_buffer("reference", torch.zeros(batch - 1, kernels, kernel_dim))

    def kernels(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n b k"]:
        """M = f Theta."""
        return (features @ self.theta).float().reshape(len(features), *self.get_buffer("reference").shape[1:])

    def judge(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n k"]]:
        """(features, logits) with minibatch discrimination inside the batch: what training uses."""
        features = self.trunk(x)
        m = self.kernels(features)
        close = _closeness(m, m) - 1
        return features, self.logits(torch.cat([features, close], dim=1)).float()

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """lse of the K logits, each image compared with the reference batch."""
        features = self.trunk(x)
        m = self.kernels(features)
        close = _closeness(m, self.get_buffer("reference"))
        return torch.logsumexp(self.logits(torch.cat([features, close], dim=1)).float(), dim=1)


def _closeness(m: Float[Tensor, "n b k"], others: Float[Tensor, "r b k"]) -> Float[Tensor, "n b"]:
    """sum_j exp(-|m_ib - others_jb|_1)."""
    return torch.exp(-torch.cdist(m.transpose(0, 1), others.transpose(0, 1), p=1.0)).sum(dim=2).T


@dataclass(frozen=True)
class KedmiRecipe(PriorTrainer):
    """D: CE(D(x), T(x)) + (softplus(lse D(u)) - lse D(u) + softplus(lse D(G(z)))) / 2; G: feature matching + entropy.

    G minimises sum_j |mean f(G(z)) - mean f(u)|_j / J + entropy * sum_batch H(softmax D(G(z))), every critic_steps-th
    step. x and u are independent public batches, T(x) the target's softmax.

    Args:
        latent_dim: Of z ~ N(0, I).
        width: Channels of the generator's last hidden layer and of the critic's first (the authors' 64).
        upsampling: transposed (as the authors) or nearest.
        steps: Generator steps (the authors': 120 epochs of 30,000 images at batch 64, every 5th step).
        critic_steps: Critic steps for each generator step.
        batch: Images a step.
        lr: Adam's learning rate, betas (.5, .999).
        entropy: Weight of the entropy, summed over the batch as in the authors' code.
        warm_up: Steps as the decoder of a variational auto-encoder first; 0 in the paper.
        decay: Of the running average of the generator that is kept; 0 keeps the last weights (the paper).
        mirror: Mirror public images at random.
        kernels: Of the minibatch discrimination (the authors' 64).
        kernel_dim: Numbers of each kernel (the authors' 50).

    Source: section 3.2 of the paper; values of the authors' code.
    Differs: the target is in eval mode while it labels (theirs is not, and its statistics drift); each public image is
    labelled once and the answers kept.
    """

    target_access: ClassVar[Access | None] = Access.BLACK_BOX

    latent_dim: int = 100
    width: int = 64
    upsampling: Literal["transposed", "nearest"] = "transposed"
    steps: int = 11_000
    critic_steps: int = 5
    batch: int = 64
    lr: float = 2e-4
    entropy: float = 1e-4
    warm_up: int = 0
    decay: float = 0.0
    mirror: bool = False
    kernels: int = 64
    kernel_dim: int = 50

    def __post_init__(self) -> None:
        if min(self.latent_dim, self.width, self.steps, self.critic_steps, self.kernels, self.kernel_dim) < 1:
            raise UserError("kedmi: latent_dim, width, steps, critic_steps, kernels and kernel_dim must be at least 1")
        if self.batch < 2:
            raise UserError(f"kedmi: batch must be at least 2, got {self.batch}")
        if self.decay >= 1:
            raise UserError(f"kedmi: decay must lie in [0, 1), got {self.decay}")

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> KedmiPrior:
        """The untrained networks."""
        return KedmiPrior(
            image_shape,
            num_classes,
            self.latent_dim,
            self.width,
            self.upsampling,
            self.kernels,
            self.kernel_dim,
            self.batch,
        )

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Label the public images, warm up, then alternate critic and generator."""
        assert isinstance(prior, KedmiPrior)
        if oracle is None:
            raise UserError("the prior 'kedmi' learns from a target's answers; name one with --target RUN")
        engine = session.engine
        prior.train()
        kept = average_of(prior.generator)
        judges = [*prior.trunk.parameters(), prior.theta, *prior.logits.parameters()]
        of_generator = torch.optim.Adam(prior.generator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        of_critic = torch.optim.Adam(judges, lr=self.lr, betas=(0.5, 0.999))
        loop = Loop(
            session,
            public,
            self.batch,
            self.mirror,
            {"prior": prior, "kept": kept, "of_generator": of_generator, "of_critic": of_critic},
        )
        soft = loop.ask(oracle.probs)
        loop.warm_up(prior, self.warm_up, self.width, lr=2e-3)
        if self.warm_up:
            kept.load_state_dict(prior.generator.state_dict())

        def critic_step(number: int, inner: int) -> Tensor:
            noise = loop.noise("critic", number, inner)
            index = loop.index("labelled", number, inner)
            labelled, answers = loop.at(index), soft[index]
            unlabelled = loop.real("unlabelled", number, inner)
            with torch.no_grad(), engine.autocast():
                fake = prior.generator(noise.normal(self.latent_dim))
            with engine.autocast():
                on_labelled = prior.judge(labelled)[1]
                on_real = torch.logsumexp(prior.judge(unlabelled)[1], dim=1)
                on_fake = torch.logsumexp(prior.judge(fake)[1], dim=1)
            known = -(answers * F.log_softmax(on_labelled, dim=1)).sum(dim=1).mean()
            real = F.softplus(on_real).mean() - on_real.mean() + F.softplus(on_fake).mean()
            of_critic.zero_grad(set_to_none=True)
            (known + 0.5 * real).backward()
            of_critic.step()
            return known.detach()

        def step(number: int) -> dict[str, Tensor]:
            for inner in range(self.critic_steps):
                known = critic_step(number, inner)
            for parameter in judges:
                parameter.requires_grad_(False)
            unlabelled = loop.real("matched", number)
            with engine.autocast():
                fake = prior.generator(loop.noise("generator", number).normal(self.latent_dim))
                features, logits = prior.judge(fake)
                wanted = prior.trunk(unlabelled).detach()
            matched = (features.float().mean(dim=0) - wanted.float().mean(dim=0)).abs().mean()
            log_p = F.log_softmax(logits, dim=1)
            entropy = -(log_p.exp() * log_p).sum()
            of_generator.zero_grad(set_to_none=True)
            (matched + self.entropy * entropy).backward()
            of_generator.step()
            for parameter in judges:
                parameter.requires_grad_(True)
            average(kept, prior.generator, self.decay)
            return {"known": known, "matched": matched.detach()}

        loop.run("gan", self.steps, step)
        prior.generator.load_state_dict(kept.state_dict())
        prior.eval()
        with torch.no_grad():
            reference = prior.kernels(prior.trunk(loop.real("reference")))[:-1]
            prior.get_buffer("reference").copy_(reference)
        return loop.log
