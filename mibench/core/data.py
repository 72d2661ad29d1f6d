"""Images with labels, one private population, and where it comes from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.pixels import take_rows
from mibench.runtime.progress import Reporter

__all__ = ["Dataset", "Shape", "Source", "Split", "to_float", "to_uint8"]


def to_float(images: UInt8[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """Stored images to [0, 1]: x / 255."""
    return images.to(torch.float32) / 255.0


def to_uint8(images: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    """Images in [0, 1] to what is stored and scored: round(255 x), half to even, clamped; in float32 or float64."""
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    return (precise * 255.0).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Split:
    """Images with one label each, as uint8; the pixels may lie in a file (`mibench.pixels`) or on another device."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.images)

    def on(self, engine: Engine) -> "Split":
        """The labels on the engine's device; the pixels too, if it has room for them (`Engine.resident`)."""
        return Split(engine.resident(self.images), self.labels.to(engine.device))

    def take(self, rows: Int64[Tensor, " m"]) -> "Split":
        """A copy of some images, in order."""
        return Split(take_rows(self.images, rows), self.labels[rows.to(self.labels.device)])

    def at(self, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m c h w"]:
        """Some images in [0, 1], on the device of `rows`, wherever the pixels lie."""
        return to_float(self.images[rows.to(self.images.device)].to(rows.device))

    def parts(self, batch: int, device: torch.device) -> Iterator[Float[Tensor, "_ c h w"]]:
        """All images in [0, 1], in order, `batch` of them at a time on this device."""
        return (to_float(part.to(device)) for part in self.images.split(batch))

    def hashes(self) -> list[str]:
        """sha256 of each image's bytes, to find the same picture in two splits."""
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.images.cpu()]

    def fingerprint(self) -> str:
        """sha256 over shape, pixels and labels, in order."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in self.images.split(64):
            digest.update(part.cpu().contiguous().flatten().numpy())
        digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """One private population, what the attacker may know of its kind, and who else the evaluation models know.

    Args:
        name: The data set's name.
        classes: Names of the private identities; label i is classes[i] everywhere.
        train: Private images the targets are trained on.
        heldout: The same people, images that no model has seen.
        public: The attacker's images: other people. Labels are public identities, or -1 where unknown.
        distractors: People who are neither private nor (where the data allow) public; an evaluation model learns them
            too, so that it can answer 'someone else'. Labels count from 0.
        distractors_are_public: The data were too few to keep the distractors apart from the attacker's images; then
            `public_search` scores 0 under the open-set evaluation by construction.
        flip: A mirrored image still shows the same class.
        card: Source, licence, how splits were drawn, conversions made.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    heldout: Split
    public: Split
    distractors: Split
    distractors_are_public: bool
    flip: bool
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        overlap = (set(self.train.hashes()) | set(self.heldout.hashes())) & (
            set(self.public.hashes()) | set(self.distractors.hashes())
        )
        if overlap:
            raise UserError(
                f"{len(overlap)} private image(s) of data set '{self.name}' also lie in its public images; the "
                "attacker must not own private data: remove them from public/ and prepare the data again"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    @property
    def distractor_count(self) -> int:
        """How many people the evaluation models know besides the private ones."""
        return int(self.distractors.labels.max()) + 1 if len(self.distractors) else 0

    def fingerprint(self) -> str:
        """sha256 over all splits and class names: two data sets with one fingerprint are the same data."""
        parts = [split.fingerprint() for split in (self.train, self.heldout, self.public, self.distractors)]
        return hashlib.sha256("\n".join([*self.classes, *parts]).encode("utf-8", "surrogatepass")).hexdigest()


class Shape(NamedTuple):
    """What of a data set is needed to plan: counts, no pixels."""

    classes: int
    """Private identities."""
    image_shape: tuple[int, int, int]
    """(channels, height, width)."""
    public: int
    """The attacker's images."""


@dataclass(frozen=True)
class Source(ABC):
    """Where a data set comes from: a frozen dataclass whose fields are the choices that change its images."""

    refusable: ClassVar[bool] = True
    """Whether `load` may refuse what the fields name: files are read even to plan. A source that draws its images says
    no."""

    @abstractmethod
    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Read or draw all images, telling how far it has come; the same fields give the same bytes."""

    def prepare(self, reporter: Reporter | None = None, processes: int = 0) -> None:
        """Check the files and decode them once, where that takes long; most sources have nothing to prepare.

        Args:
            reporter: Is told how far it is.
            processes: How many work at it; 0 is one for each core.

        Raises:
            UserError: What is missing or damaged, before anything is decoded.
        """
        return

    @property
    def shows_faces(self) -> bool:
        """Whether its images are photographs of real faces, so that published face recognisers may verify them."""
        return False

    @property
    def bystander_count(self) -> int:
        """How many people it can show who play no other part, told without reading an image; 0 is none."""
        return 0

    @property
    def heldout_count(self) -> int | None:
        """Fewest held-out images of a private person; None where that cannot be told without reading an image."""
        return None

    def load_bystanders(self, reporter: Reporter | None = None) -> Split:
        """Images of people who are neither private nor public nor distractors: whom a verifier learns to tell apart.

        Labels count from 0.

        Raises:
            UserError: If it has none.
        """
        raise UserError(
            f"{type(self).__name__} has no people besides the private, the public and the distractors, so that no "
            "verifier can be trained on it"
        )

    def anchors(self, prior: str) -> Float[Tensor, "k d"] | None:
        """The latent of every private person in a prior's own space, where the data were drawn around known ones.

        Args:
            prior: The prior's name.
        """
        return None

    def shape(self) -> "Shape":
        """How many people and images there are; a source that can count without reading its images says so here."""
        data = self.load()
        return Shape(len(data.classes), data.image_shape, len(data.public))

    def identity(self) -> dict[str, Any]:
        """What decides the bytes, for run ids: the fields, or a content hash where a field is a path."""
        return asdict(self)
