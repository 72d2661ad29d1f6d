"""Synthetic people drawn from the shipped face generator: as many as you like, with nobody's privacy at stake.

An identity is an anchor latent a ~ N(0, I); its images are G(sqrt(1 - s^2) a + s e) with e ~ N(0, I), so every latent
is N(0, I) and two images of one person correlate by 1 - s^2. s = .45 is an easy task, s = .65 a hard one.
Public images come from independent latents, one person each; distractors are further anchors.

Attacking it with the shipped generator (prior `dcgan`) is the attacker's best case: that prior drew the private data.
A prior trained on its public images is the realistic case.

References:
    | DigiFace-1M: 1 million digital face images for face recognition (Bae et al., 2023), what the generator learnt from
    | https://arxiv.org/abs/2210.02579
    | gan-face-generate 1.1.1 (Chien Liu, 2023, MIT), the generator
    | https://pypi.org/project/gan-face-generate/1.1.1/
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mibench.assets import dcgan
from mibench.core import Dataset, Shape, Source, Split, to_uint8
from mibench.data.cache import cached, hash_of
from mibench.data.fields import fraction, whole
from mibench.runtime.pixels import empty
from mibench.runtime.progress import Reporter, Silent, Task
from mibench.runtime.rng import Noise

__all__ = ["CARD", "Digiface", "mixed_latents"]

CARD = {
    "summary": "Synthetic faces in colour, drawn from a generator trained on DigiFace-1M renders; exact ground truth",
    "images": "unlimited; 64 x 64 colour; by default 2,500 private, 2,000 public, 2,000 of distractors",
    "identities": "unlimited; by default 100 private, 100 distractors; every public image is another person",
    "title": "DigiFace-1M: 1 Million Digital Face Images for Face Recognition",
    "authors": "Bae, de La Gorce, Baltrusaitis, Hewitt, Chen, Valentin, Cipolla and Shen",
    "venue": "WACV",
    "licence": "generator weights MIT, (c) 2023 Chien Liu; DigiFace-1M itself is released for research",
    "link": "https://github.com/microsoft/DigiFace1M",
    "year": 2023,
}

_BATCH = 8
_MOST = 2**20
"""Images of one identity that a key leaves room for."""


def mixed_latents(
    people: Int64[Tensor, " n"], images: int, spread: float, seed: int, role: str, split: str, dim: int = 100
) -> Float[Tensor, "n m d"]:
    """sqrt(1 - s^2) a_i + s e_ij; a_i depends on (seed, role, i) alone, e_ij on (seed, role, split, i, j) alone."""
    anchor = Noise(seed, people).of("digiface", role, "anchor").normal(dim)
    keys = (people[:, None] * _MOST + torch.arange(images)).flatten()
    noise = Noise(seed, keys).of("digiface", role, "image", split).normal(dim).reshape(len(people), images, dim)
    return (1.0 - spread**2) ** 0.5 * anchor[:, None] + spread * noise


@dataclass(frozen=True)
class Digiface(Source):
    """Synthetic people; see the module.

    Args:
        identities: Private people.
        train_images: Images of each that targets are trained on.
        heldout_images: Images of each that no model sees.
        public_images: The attacker's images, each of another person.
        distractors: Other people that the evaluation models learn.
        distractor_images: Images of each.
        spread: s in (0, 1): how much a person's images differ.
        image_size: Side in pixels, 8 to 64; below 64 by area averaging.
        seed: Which people.
        bystanders: People who play no other part, as many images of each as of distractors; a verifier learns them. The
            data set does not hold them, so that their number is no part of its identity.

    The numbers do not depend on each other: person i looks the same however many there are. Images are drawn and
    rounded in float64, so that every kind of processor gives the same bytes: by default no pixel of the data set lies
    nearer than 1e-9 grey levels to a rounding boundary, and processors differ by less than 1e-12.
    """

    refusable: ClassVar[bool] = False

    identities: int = 100
    train_images: int = 20
    heldout_images: int = 5
    public_images: int = 2000
    distractors: int = 100
    distractor_images: int = 20
    spread: float = 0.65
    image_size: int = 64
    seed: int = 0
    bystanders: int = 300

    def __post_init__(self) -> None:
        whole("identities", self.identities, 2, 1_000_000)
        for name in ("train_images", "heldout_images", "distractor_images"):
            whole(name, getattr(self, name), 1, _MOST)
        for name in ("public_images", "distractors"):
            whole(name, getattr(self, name), 1, 1_000_000)
        fraction("spread", self.spread)
        whole("image_size", self.image_size, 8, 64)
        whole("seed", self.seed, 0)
        whole("bystanders", self.bystanders, 0, 1_000_000)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the data set's bytes."""
        return {name: value for name, value in asdict(self).items() if name != "bystanders"}

    def anchors(self, prior: str) -> Float[Tensor, "k d"] | None:
        """a_i of every private person, for the prior that is the generator that drew them."""
        if prior != "dcgan":
            return None
        return Noise(self.seed, torch.arange(self.identities)).of("digiface", "private", "anchor").normal(100)

    @property
    def bystander_count(self) -> int:
        """As many as asked for: people are unlimited."""
        return self.bystanders

    @property
    def heldout_count(self) -> int:
        """As many of everybody as asked for."""
        return self.heldout_images

    def load_bystanders(self, reporter: Reporter | None = None) -> Split:
        """Draw them, or read them from the cache.

        Raises:
            UserError: If none were asked for.
        """
        if self.bystanders == 0:
            return super().load_bystanders(reporter)
        people = torch.arange(self.bystanders)
        images = self.distractor_images
        latents = mixed_latents(people, images, self.spread, self.seed, "bystander", "all").flatten(0, 1)

        def draw() -> tuple[dict[str, Tensor], dict[str, str]]:
            with (reporter or Silent()).task("draw bystanders of digiface", len(latents), "images") as task:
                return {"images": _render(dcgan.load_dcgan(), latents, self.image_size, task)}, {}

        code = (Path(__file__), Path(dcgan.__file__), dcgan.WEIGHTS)
        drawn, _ = cached(hash_of("bystanders", asdict(self), files=code), draw)
        return Split(drawn["images"], people.repeat_interleave(images))

    def shape(self) -> Shape:
        """As the fields say."""
        return Shape(self.identities, (3, self.image_size, self.image_size), self.public_images)

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Draw all images, or read them from the cache: the first time takes about 5 ms an image on one core."""
        code = (Path(__file__), Path(dcgan.__file__), dcgan.WEIGHTS)
        drawn, _ = cached(hash_of(self.identity(), files=code), lambda: self._draw(reporter or Silent()))
        people, others = torch.arange(self.identities), torch.arange(self.distractors)
        return Dataset(
            name="digiface",
            classes=tuple(f"person {i}" for i in range(self.identities)),
            train=Split(drawn["train"], people.repeat_interleave(self.train_images)),
            heldout=Split(drawn["heldout"], people.repeat_interleave(self.heldout_images)),
            public=Split(drawn["public"], torch.full((self.public_images,), -1)),
            distractors=Split(drawn["distractors"], others.repeat_interleave(self.distractor_images)),
            distractors_are_public=False,
            flip=True,
            card={
                **CARD,
                "splits": "anchors, private images, public images and distractors from independent streams of noise",
                "converted": {},
            },
        )

    def _draw(self, reporter: Reporter) -> tuple[dict[str, Tensor], dict[str, str]]:
        def people(count: int, images: int, role: str, split: str) -> Float[Tensor, "n d"]:
            return mixed_latents(torch.arange(count), images, self.spread, self.seed, role, split).flatten(0, 1)

        strangers = Noise(self.seed, torch.arange(self.public_images)).of("digiface", "public")
        latents = {
            "train": people(self.identities, self.train_images, "private", "train"),
            "heldout": people(self.identities, self.heldout_images, "private", "heldout"),
            "public": strangers.normal(100),
            "distractors": people(self.distractors, self.distractor_images, "distractor", "all"),
        }
        network = dcgan.load_dcgan()
        total = sum(len(z) for z in latents.values())
        with reporter.task("draw the people of digiface", total, "images") as task:
            return {name: _render(network, z, self.image_size, task) for name, z in latents.items()}, {}


def _render(network: dcgan.DCGAN, latents: Float[Tensor, "n d"], size: int, task: Task) -> UInt8[Tensor, "n 3 s s"]:
    """Images of latents, in float64 until they are bytes."""
    pixels = empty((len(latents), 3, size, size))
    for start in range(0, len(latents), _BATCH):
        images = dcgan.draw(network, latents[start : start + _BATCH])
        if size < 64:
            images = F.interpolate(images, size=(size, size), mode="area")
        pixels[start : start + _BATCH] = to_uint8(images)
        task.advance(len(images))
    return pixels
