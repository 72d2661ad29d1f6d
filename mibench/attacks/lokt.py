"""Label-only inversion by knowledge transfer: teach surrogates the target's labels, then invert the surrogates.

References:
    | Label-Only Model Inversion Attacks via Knowledge Transfer (Nguyen et al., NeurIPS 2023)
    | https://arxiv.org/abs/2310.19342
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.search import chunks, descend, gathered, keys, piecewise, render
from mibench.attacks.parts.surrogates import Distillation, train_surrogates
from mibench.core import (
    Attack,
    AttackContext,
    Capabilities,
    Cost,
    Oracle,
    Prior,
    Reconstructions,
    augment,
    to_float,
    to_uint8,
)
from mibench.core.losses import max_margin
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of

__all__ = ["LOKT"]

CARD = {
    "summary": "label only: surrogates learn the target's labels on generated images and are inverted instead",
    "title": "Label-Only Model Inversion Attacks via Knowledge Transfer",
    "authors": "Nguyen, Chandrasegaran, Abdollahzadeh and Cheung",
    "venue": "NeurIPS",
    "year": 2023,
    "link": "https://arxiv.org/abs/2310.19342",
    "access": "label_only",
    "prior": "tacgan",
    "role": "attack",
    "cost": [0, 0, 500000],
    "requires": ["conditional"],
    "toy": {
        "short": {"steps": 8, "samples": 60, "surrogates": ("cnn",), "epochs": 1},
        "enough": {"samples": 1000, "surrogates": ("cnn",)},
    },
}

PRESETS = {
    "paper": {},
    "quick": {
        "images": 2,
        "steps": 40,
        "samples": 3000,
        "surrogates": ("cnn", "resnet"),
        "pretrained": False,
        "epochs": 5,
        "batch": 64,
        "lr": 0.05,
    },
}


@dataclass(frozen=True)
class LOKT(Attack):
    """Surrogates S_i learn CE(S(x), t) / 2 + CE(S(view(x)), t) / 2 with x = G(z, y), t = argmax T(x); half of these
    views have no jitter.

    Then min_z sum over views v of mean_i MM(S_i(v(G(z, y))), y) by Adam, MM = max_{k != y} l_k - l_y.

    Args:
        images: Restarts, all of them returned.
        steps: Adam steps on the surrogates; the target is asked nothing.
        rate: Adam's learning rate.
        views: Views of each image at each step; their losses are summed.
        mirror: Mirror half of the views (faces yes, digits no).
        samples: Generated images that the target labels, spread evenly over its classes, attacked or not (the authors'
            500 for each of 1000 classes).
        surrogates: Architectures of the surrogates.
        pretrained: Start the surrogates from ImageNet weights.
        epochs: Passes over the labelled images. The authors make 200 of 30,000 images.
        batch: Images a step while the surrogates learn.
        lr: The surrogates' first learning rate, falling along a cosine to 0; momentum .9.
        weight_decay: Of the surrogates.

    Source: sections 4.2 and 4.3 of the paper; values of the authors' code (commit b751417 of
    https://github.com/ngoc-nguyen-0/LOKT_neurips2023).
    Differs: an epoch here is a pass over all labelled images (500,000 at 1000 classes), so that 12 of them are the
    authors' 200; torchvision's DenseNets see images enlarged to 224 px (the authors' see 64 px).
    """

    images: int = 5
    steps: int = 600
    rate: float = 0.1
    views: int = 2
    mirror: bool = True
    samples: int = 500_000
    surrogates: tuple[str, ...] = ("densenet121", "densenet161", "densenet169")
    pretrained: bool = True
    epochs: int = 12
    batch: int = 256
    lr: float = 0.1
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if min(self.images, self.views, self.epochs) < 1 or self.samples < 2 or not self.surrogates:
            raise UserError(
                "lokt: images, views and epochs must be at least 1, samples at least 2, surrogates at least one "
                "architecture"
            )

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One label for each sample, for all identities together; the inversion asks nothing."""
        return Cost(0, 0, self.samples)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Draw, have labelled, teach, descend from N(0, I) on the surrogates."""
        y, key = keys(labels, self.images)
        count = oracle.affordable(self.samples, 1)
        steps = self.steps if count >= 2 else 0  # one image teaches nobody
        surrogates = self._surrogates(oracle, prior, count, seed, work) if steps else []

        def part(rows: slice) -> Tensor:
            return self._invert(surrogates, prior, y[rows], steps, Noise(seed, key[rows]).of("lokt"), work)

        z = piecewise("lokt", len(y), oracle, work, part)
        return Reconstructions(render(prior, z, y, work), y, z, torch.full_like(y, steps == 0, dtype=torch.bool))

    @torch.no_grad()
    def _surrogates(
        self, oracle: Oracle, prior: Prior, count: int, seed: int, work: AttackContext
    ) -> Sequence[nn.Module]:
        place = torch.arange(count, device=oracle.device)
        y = place % oracle.num_classes
        z = prior.sample(Noise(seed, place).of("lokt-sample"))
        parts = chunks(count, work.batch)
        # As they would be stored, so that the target labels exactly what the surrogates see.
        images = torch.cat([to_uint8(prior.decode(z[rows], y[rows])) for rows in parts])
        said = work.once(
            "lokt-labels",
            oracle,
            lambda: gathered(parts, lambda rows: oracle.labels(to_float(images[rows]), None), work),
        )
        lesson = Distillation(self.lr, 0.9, self.weight_decay, self.batch, self.epochs, "cosine")
        hard = F.one_hot(said, oracle.num_classes).float()
        return train_surrogates(
            "lokt",
            self.surrogates,
            images,
            hard,
            lesson,
            seed_of(seed, "lokt"),
            oracle,
            work,
            lambda x, noise: augment.view(x, noise, self.mirror, jitter=0.5),
            self.pretrained,
        )

    def _invert(
        self,
        surrogates: Sequence[nn.Module],
        prior: Prior,
        y: Int64[Tensor, " n"],
        steps: int,
        noise: Noise,
        work: AttackContext,
    ) -> Tensor:
        point = Point(prior.sample(noise.of("start")))
        optimizer = torch.optim.Adam(point.parameters(), lr=self.rate, eps=60e-8)  # a sum here, a mean over 60 there

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            x = prior.decode(z, y)
            views = [augment.view(x, drawn.of("view", view), self.mirror) for view in range(self.views)]
            margins = [max_margin(surrogate(seen).float(), y) for seen in views for surrogate in surrogates]
            return torch.stack(margins).sum(dim=0) / len(surrogates)

        descend(point, loss, optimizer, steps, noise, work=work)
        return point.z.detach()
