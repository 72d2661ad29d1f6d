"""Gratings: an identity is an orientation and a frequency. A complete data set in one file.

References:
    | Theory of Communication, part 1 (Gabor, 1946), the sinusoid under a Gaussian window
    | https://doi.org/10.1049/ji-3-2.1946.0074
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.core import Dataset, Source, Split, to_uint8
from mibench.data.fields import whole
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise

__all__ = ["Gratings"]

CARD = {
    "summary": "gratings: an identity is an orientation and a frequency",
    "images": "unlimited; grey",
    "identities": "unlimited",
    "licence": "none needed: computed",
    "link": "",
    "contract": 1,
    "year": 2026,
    "toy": {"short": {"identities": 4, "image_size": 16}},
}


@dataclass(frozen=True)
class Gratings(Source):
    """x = .5 + .5 exp(-r^2 / .5) cos(2 pi f (u cos a + v sin a) + phase) + noise, u and v in [-1, 1].

    Args:
        identities: Private (a, f) pairs, at least 2; as many distractors.
        images: Of each identity: training images; half as many are held out.
        image_size: Side in pixels, 16 to 64.
        seed: Which identities.
    """

    identities: int = 10
    images: int = 10
    image_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        whole("identities", self.identities, 2, 1000)
        whole("images", self.images, 2, 1000)
        whole("image_size", self.image_size, 16, 64)
        whole("seed", self.seed, 0)

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Draw all images; the same fields give the same bytes, and no person of one role is another's."""
        half = self.images // 2
        return Dataset(
            name="gratings",
            classes=tuple(f"grating {i}" for i in range(self.identities)),
            train=self._draw("private", "train", self.images),
            heldout=self._draw("private", "heldout", half),
            public=self._draw("public", "all", self.images),
            distractors=self._draw("distractor", "all", self.images),
            distractors_are_public=False,
            flip=False,
            card={**CARD, "splits": "independent streams of noise", "converted": {}},
        )

    def _draw(self, role: str, split: str, images: int) -> Split:
        people = torch.arange(self.identities).repeat_interleave(images)
        angle, frequency = Noise(self.seed, people).of("gratings", role).uniform(2).unbind(1)
        own = Noise(self.seed, torch.arange(len(people))).of("gratings", role, split)
        x = _grating(math.pi * angle, 1 + 4 * frequency, 2 * math.pi * own.uniform(), self.image_size)
        x = x + 0.05 * own.of("noise").normal(1, self.image_size, self.image_size)
        return Split(to_uint8(x.clamp(0, 1)), people)


def _grating(
    a: Float[Tensor, " n"], f: Float[Tensor, " n"], phase: Float[Tensor, " n"], size: int
) -> Float[Tensor, "n 1 h w"]:
    v, u = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    a, f, phase = (value[:, None, None] for value in (a, f, phase))
    wave = torch.cos(2 * math.pi * f * (u * a.cos() + v * a.sin()) + phase)
    return (0.5 + 0.5 * torch.exp(-(u**2 + v**2) / 0.5) * wave)[:, None]
