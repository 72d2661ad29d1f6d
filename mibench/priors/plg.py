"""PLG-MI's prior: a conditional GAN on public images that the target's own confidence has labelled.

References:
    | Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network (Yuan et al., AAAI 2023)
    | https://arxiv.org/abs/2302.09814
    | cGANs with Projection Discriminator (Miyato and Koyama, ICLR 2018)
    | https://arxiv.org/abs/1802.05637
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from mibench.core import Access, Oracle, Split, augment
from mibench.core.losses import max_margin
from mibench.priors.conditional import ConditionalPrior, ConditionalTrainer, Game, identities
from mibench.priors.gan import Loop
from mibench.runtime.errors import UserError

__all__ = ["Plg", "PlgPrior", "top_n"]

CARD = {
    "summary": "conditional GAN on public images that the target has labelled, guided by its gradients",
    "title": "Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network",
    "authors": "Yuan, Chen, Zhang, Zhang, Yu and Zhang",
    "venue": "AAAI",
    "year": 2023,
    "link": "https://arxiv.org/abs/2302.09814",
    "critic": "none",
    "domain": "public",
    "conditional": True,
}

# After a warm-up the judge knows nothing yet: a short, careful game sharpens, the published rates destroy.
PRESETS = {
    "paper": {},
    "quick": {
        "latent_dim": 64,
        "width": 8,
        "upsampling": "nearest",
        "steps": 80,
        "critic_steps": 2,
        "batch": 32,
        "lr": 1e-4,
        "warm_up": 500,
        "decay": 0.95,
        "mirror": True,
    },
}


def top_n(scores: Float[Tensor, "p k"], n: int) -> Int64[Tensor, "k n"]:
    """For each identity the places of the n images with its largest scores, best first; an image may serve several.

    Raises:
        UserError: If there are fewer than n images.
    """
    if not 1 <= n <= len(scores):
        raise UserError(f"plg: top must lie in 1 ... {len(scores)}, the number of public images; got {n}")
    return scores.topk(n, dim=0).indices.T


class PlgPrior(ConditionalPrior):
    """The conditional generator and its projection discriminator D(x, y) = w'h(x) + b + e_y'h(x), spectrally normed.

    At 64 px, width 64 and 1000 identities: 17,973,379 and 11,165,441 parameters.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, latent_dim: int, width: int, upsampling: str
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim, width, upsampling)
        self.real = spectral_norm(nn.Linear(self.trunk.features, 1))
        self.embedding = spectral_norm(nn.Embedding(num_classes, self.trunk.features))

    def judge(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """D(x, y), higher is more like an image of y."""
        features = self.trunk(x)
        return (self.real(features)[:, 0] + (self.embedding(y) * features).sum(dim=1)).float()


@dataclass(frozen=True)
class Plg(ConditionalTrainer):
    """D: mean [1 - D(x, y)]+ + mean [1 + D(f, y')]+; G: mean -D(f, y') + inversion * MM(T(view(f)), y'), f = G(z, y').

    x of pseudo label y: one of the `top` public images that the target is most confident show y; y and y' uniform.
    MM = max_{k != y} l_k - l_y. The judge sees reals with noise U(0, 1/256) and fakes as they are.

    Args:
        top: Public images an identity is learnt from (the authors' n).
        inversion: Weight of the target's margin.
        mirror_views: Mirror half of the fakes that the target is shown (faces yes, digits no).

    Source: sections 3.2 and 3.3 of the paper; values of the authors' code (commit 3cf8735 of
    https://github.com/LetheSec/PLG-MI-Attack).
    """

    target_access: ClassVar[Access | None] = Access.WHITE_BOX
    name: ClassVar[str] = "plg"

    top: int = 30
    inversion: float = 0.2
    mirror_views: bool = True

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> PlgPrior:
        """The untrained networks."""
        return PlgPrior(image_shape, num_classes, self.latent_dim, self.width, self.upsampling)

    def game(self, prior: Any, loop: Loop, oracle: Oracle) -> Game:
        """Labels every public image once; each generator step shows the target its fakes."""
        engine, classes = loop.session.engine, oracle.num_classes
        table = top_n(loop.ask(oracle.probs), self.top)

        def pairs(*purpose: object) -> tuple[Tensor, Tensor]:
            noise = loop.noise("pairs", *purpose)
            y = identities(noise, classes)
            x = loop.at(table[y, identities(noise.of("place"), self.top)])
            return self.mirrored(x, noise.of("mirror")), y

        def critic(number: int, inner: int) -> Tensor:
            real, named = pairs("critic", number, inner)
            real = real + loop.noise("dequantise", number, inner).uniform(*real.shape[1:]) / 256
            with engine.autocast():
                with torch.no_grad():
                    fake, y = self.drawn(prior, loop, classes, "critic", number, inner)
                on_real, on_fake = prior.judge(torch.cat([real, fake]), torch.cat([named, y])).chunk(2)
            return F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()

        def generator(number: int) -> Tensor:
            with engine.autocast():
                fake, y = self.drawn(prior, loop, classes, "generator", number)
                seen = augment.view(fake, loop.noise("view", number), self.mirror_views, jitter=0.5)
                logits = oracle.answers(seen, None)[0]
                score = prior.judge(fake, y)
            return (self.inversion * max_margin(logits, y) - score).mean()

        return Game(pairs, critic, generator)
