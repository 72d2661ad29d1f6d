"""LOKT's prior: a conditional GAN whose judge learns the target's labels on the fakes, from labels alone.

References:
    | Label-Only Model Inversion Attacks via Knowledge Transfer (Nguyen et al., NeurIPS 2023)
    | https://arxiv.org/abs/2310.19342
    | Conditional Image Synthesis with Auxiliary Classifier GANs (Odena, Olah and Shlens, ICML 2017)
    | https://arxiv.org/abs/1610.09585
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Access, Oracle, Split
from mibench.priors.conditional import ConditionalPrior, ConditionalTrainer, Game
from mibench.priors.gan import Loop

__all__ = ["Tacgan", "TacganPrior"]

CARD = {
    "summary": "conditional GAN whose auxiliary classifier learns the target's labels on the fakes",
    "title": "Label-Only Model Inversion Attacks via Knowledge Transfer",
    "authors": "Nguyen, Chandrasegaran, Abdollahzadeh and Cheung",
    "venue": "NeurIPS",
    "year": 2023,
    "link": "https://arxiv.org/abs/2310.19342",
    "critic": "none",
    "domain": "public",
    "conditional": True,
}

# After a warm-up the judge knows nothing yet: a short, careful game sharpens, the published weights and rates destroy.
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
        "alpha": 0.1,
        "silent": 20,
    },
}


class TacganPrior(ConditionalPrior):
    """The conditional generator; a judge with a logit for 'real' and one for each identity."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, latent_dim: int, width: int, upsampling: str
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim, width, upsampling)
        self.real = nn.Linear(self.trunk.features, 1)
        self.classes = nn.Linear(self.trunk.features, num_classes)

    def judge(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
        """(logit of 'real', logits of the identities)."""
        features = self.trunk(x)
        return self.real(features)[:, 0].float(), self.classes(features).float()


@dataclass(frozen=True)
class Tacgan(ConditionalTrainer):
    """D: BCE(D(x), 1) + BCE(D(f), 0) + alpha CE(C(f), argmax T(f)); G: BCE(D(f), 1) + alpha CE(C(f), y), f = G(z, y).

    x: public images, which have no labels; y uniform. Without the class terms for the first `silent` steps.

    Args:
        alpha: Weight of the class terms.
        silent: Steps at the start without them.

    Source: section 4.1 of the paper; values of the authors' code for CelebA (commit b751417 of
    https://github.com/ngoc-nguyen-0/LOKT_neurips2023).
    Differs: the warm-up, where there is one, asks the target for the labels of the public images.
    """

    target_access: ClassVar[Access | None] = Access.LABEL_ONLY
    name: ClassVar[str] = "tacgan"

    steps: int = 20_000
    batch: int = 128
    alpha: float = 1.5
    silent: int = 1000

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> TacganPrior:
        """The untrained networks."""
        return TacganPrior(image_shape, num_classes, self.latent_dim, self.width, self.upsampling)

    def game(self, prior: Any, loop: Loop, oracle: Oracle) -> Game:
        """Each judge step asks for the labels of its fakes."""
        engine, classes = loop.session.engine, oracle.num_classes
        named = torch.zeros(0)
        if self.warm_up:
            named = loop.ask(oracle.labels)

        def pairs(number: int) -> tuple[Tensor, Tensor]:
            index = loop.index("pairs", number)
            return self.mirrored(loop.at(index), loop.noise("pairs", number, "mirror")), named[index]

        def weight(number: int) -> float:
            return self.alpha if number >= self.silent else 0.0

        def critic(number: int, inner: int) -> Tensor:
            real = loop.real("real", number, inner)
            with engine.autocast():
                with torch.no_grad():
                    fake, _ = self.drawn(prior, loop, classes, "critic", number, inner)
                said = oracle.labels(fake, None) if weight(number) else None
                scores, names = prior.judge(torch.cat([real, fake]))
            on_real, on_fake = scores.chunk(2)
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
            return loss if said is None else loss + self.alpha * F.cross_entropy(names.chunk(2)[1], said)

        def generator(number: int) -> Tensor:
            with engine.autocast():
                fake, y = self.drawn(prior, loop, classes, "generator", number)
                score, names = prior.judge(fake)
            loss = F.softplus(-score).mean()
            return loss + weight(number) * F.cross_entropy(names, y) if weight(number) else loss

        return Game(pairs, critic, generator)
