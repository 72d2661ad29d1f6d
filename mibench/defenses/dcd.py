"""Data-centric defense: some people's labels also get the faces of strangers, so that inversion lands on the strangers.

Only the training rows change; network, loss and optimiser stay. An attacker who looks for person y finds the surrogate,
whose images have a low and flat loss, before the person, whose images have a high and sharp one.

References:
    | Data-Centric Defense: Shaping Loss Landscape with Augmentations to Counter Model Inversion (Chen et al., TMLR
      2024)
    | https://openreview.net/forum?id=r8wXaLJBIS
    | https://github.com/SCccc21/DCD, the rows (datasets/celeba.py)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Dataset, Defense, Split, to_uint8
from mibench.defenses.at_at import other_classes
from mibench.runtime.errors import UserError
from mibench.runtime.pixels import concatenate, take_rows
from mibench.runtime.rng import Noise

__all__ = ["DataCentric", "looks"]

CARD = {
    "summary": "rows of public look-unlikes under some people's labels, and mislabelled rows of their own (DCD)",
    "title": "Data-Centric Defense: Shaping Loss Landscape with Augmentations to Counter Model Inversion",
    "authors": "Chen, Kang, Abhyankar, Jin and Jia",
    "venue": "TMLR",
    "year": 2024,
    "link": "https://openreview.net/forum?id=r8wXaLJBIS",
    "strength": "share",
    "grid": [0.1, 0.25, 0.5, 1.0],
    "adaptive": {
        "+align sigma=0.015": "averages over a neighbourhood that lies within the shell of mislabelled copies"
    },
    "conflicts": {"dp_sgd": "each image would be in several rows, so that clipping rows does not bound what it adds"},
    "zero": {"share": 0.0},
}

PRESETS = {"paper": {"share": 0.01, "pi1": 0.2, "pi2": 1.0, "eps": 0.003, "sigma": 0.031372549, "images": 5}}
"""CelebA: 10 of 1,000 people (`CelebASurrMulti100Dup` in datasets/celeba.py at commit d9c462b)."""

SIDE = 16
"""Looks are compared at 16 x 16 pixels."""


def looks(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """What two images are compared by: their pixels in [0, 1], averaged down to 16 x 16."""
    parts = [F.adaptive_avg_pool2d(part.float() / 255.0, SIDE).flatten(1) for part in images.cpu().split(512)]
    return torch.cat(parts)


@dataclass(frozen=True)
class DataCentric(Defense):
    """For a share of the people, each y with a surrogate s(y) of its own among the public people:

    - images of s(y), repeated to the mean number of images that a person has, are rows of y;
    - a share pi1 of y's own rows gets another label, drawn once from all classes but y;
    - each row of s(y) has a copy x + eps N(0, I) labelled y, and each row still labelled y a copy x + sigma N(0, I), of
      which a share pi2 gets another label. Copies are clipped to [0, 1], rounded to 8 bits and drawn once.

    Reports `impostor_acceptance`, the share of other images of the surrogates that the target takes for y (the price:
    the strangers are let in), and natural accuracy of the protected and the unprotected people (`accuracy_protected`,
    `accuracy_unprotected`). Attack accuracy over all people mixes both.

    Where public images have no identity, a surrogate is a look: an image and those most like it, every other of which
    is a row. Who knows the defense finds a surrogate by asking about public images (the floor `public_search`), and can
    forbid the search to return to it; no attack here does that yet.

    Args:
        share: Of the people, spaced evenly from a random one on (so that the first so many hold their share), who are
            protected; 0 is no defense. Whether it bears 1 is untested in the
            paper.
        pi1: Share of their own rows with another label.
        pi2: Share of the noisy copies of these rows with another label.
        eps: Noise of the surrogates' copies, in units of [0, 1].
        sigma: Noise of the own rows' copies.
        images: Different images of each surrogate.
        surrogate: far (the public person whose mean image, at 16 x 16 pixels, is farthest from y's), or random.

    Source: the authors' CelebA rows.
    Differs: theirs is a public person of the other sex with a like hair colour, from attributes that public images here
    do not have; repeated to the mean size of the surrogates' classes; copies are cut to 8 bits, which darkens them by
    half a grey level.
    """

    share: float = 0.25
    pi1: float = 0.2
    pi2: float = 1.0
    eps: float = 0.003
    sigma: float = 8 / 255
    images: int = 5
    surrogate: Literal["far", "random"] = "far"

    def __post_init__(self) -> None:
        for name in ("share", "pi1", "pi2", "eps", "sigma"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"dcd: {name} must lie in [0, 1], got {getattr(self, name)}")
        if self.images < 1:
            raise UserError(f"dcd: images must be at least 1, got {self.images}")

    def memory(self, classes: int, image_shape: tuple[int, int, int]) -> nn.Module | None:
        """Who is protected, and by which public images: those that are rows (`used`) and others of the same person."""
        if self.share == 0:
            return None
        count = max(1, round(self.share * classes))
        kept = nn.Module()
        kept.register_buffer("protected", torch.zeros(count, dtype=torch.long))
        kept.register_buffer("used", torch.full((count, self.images), -1))
        kept.register_buffer("unused", torch.full((count, self.images), -1))
        return kept

    def rows(self, train: Split, public: Split, memory: nn.Module, noise: Noise) -> Split:
        """The rows as above: own rows with their new labels, surrogates, copies of surrogates, copies of own rows.

        Raises:
            UserError: There are not enough public people, or no public images at all.
        """
        if self.share == 0:
            return train
        classes = int(train.labels.max()) + 1
        people = Noise(noise.seed, torch.arange(classes), noise.purpose)
        protected = memory.get_buffer("protected")
        spaced = torch.arange(len(protected)) + people.of("protected").uniform(1)[0, 0]
        protected.copy_((spaced * classes / len(protected)).long().clamp(max=classes - 1))
        used, unused = self._surrogates(train, public, protected, people)
        memory.get_buffer("used").copy_(used)
        memory.get_buffer("unused").copy_(unused)

        own = torch.isin(train.labels, protected)
        labels = _mislabelled(train.labels, own, self.pi1, classes, noise.of("pi1"))
        repeats = math.ceil(len(train) / classes / self.images)
        places, owners = used.repeat(1, repeats).flatten(), protected.repeat_interleave(repeats * self.images)
        strangers = take_rows(public.images, places)
        still = (own & (labels == train.labels)).nonzero()[:, 0]
        copied = _mislabelled(labels, torch.isin(torch.arange(len(labels)), still), self.pi2, classes, noise.of("pi2"))
        # Streams beyond the training split's own, so that no two rows share one.
        more = Noise(noise.seed, len(train) + torch.arange(len(places)), noise.purpose).of("copy")
        return Split(
            concatenate(
                [
                    train.images.cpu(),
                    strangers,
                    _noisy(strangers, self.eps, more),
                    _noisy(take_rows(train.images, still), self.sigma, noise.rows(still).of("copy")),
                ]
            ),
            torch.cat([labels, owners, owners, copied[still]]),
        )

    def _surrogates(
        self, train: Split, public: Split, protected: Int64[Tensor, " p"], people: Noise
    ) -> tuple[Int64[Tensor, "p m"], Int64[Tensor, "p m"]]:
        """Public images of each surrogate: those to train on, and others of the same person (-1: there are none)."""
        named = bool((public.labels >= 0).any())
        if named:
            counts = torch.bincount(public.labels.clamp(min=0)[public.labels >= 0])
            able = (counts >= self.images).nonzero()[:, 0]
        else:
            able = torch.arange(len(public) // (2 * self.images))
        if len(able) < len(protected):
            what = f"public people with {self.images} images" if named else f"{2 * self.images} public images"
            raise UserError(
                f"dcd: {len(protected)} protected people need {'as many ' if named else ''}{what} each"
                f"{'' if named else ', each theirs alone'}; there are {len(able)}. Lower share or images, or give more "
                "public images"
            )
        theirs = looks(public.images)
        if named:
            sums = theirs.new_zeros(len(counts), theirs.shape[1]).index_add(0, public.labels.clamp(min=0), theirs)
            faces = sums[able] / counts[able, None]
        else:
            faces = theirs
        free = torch.ones(len(faces), dtype=torch.bool)
        used, unused = [], []
        for y in protected.tolist():
            mine = looks(take_rows(train.images, (train.labels == y).nonzero()[:, 0])).mean(dim=0)
            if self.surrogate == "far":
                score = (faces - mine).square().sum(dim=1)
            else:
                score = Noise(people.seed, torch.arange(len(faces)), people.purpose).of("surrogate", y).uniform(1)[:, 0]
            best = int(score.masked_fill(~free, -math.inf).argmax())
            if named:
                group = (public.labels == able[best]).nonzero()[:, 0]
                free[best] = False
                used.append(group[: self.images])
                others = group[self.images : 2 * self.images]
                unused.append(F.pad(others, (0, self.images - len(others)), value=-1))
            else:
                near = (faces - faces[best]).square().sum(dim=1).masked_fill(~free, math.inf)
                group = near.argsort(stable=True)[: 2 * self.images]
                free[group] = False
                used.append(group[::2])
                unused.append(group[1::2])
        return torch.stack(used), torch.stack(unused)

    def report(
        self, memory: nn.Module, data: Dataset, answers: Callable[[UInt8[Tensor, "n c h w"]], Float[Tensor, "n k"]]
    ) -> dict[str, float]:
        """`impostor_acceptance`, and natural accuracy of those who are protected and of those who are not, if any."""
        if self.share == 0:
            return {}
        protected, unused = memory.get_buffer("protected").cpu(), memory.get_buffer("unused").cpu()
        owner = protected[:, None].expand_as(unused)[unused >= 0]
        measured = {}
        if len(owner):
            taken = answers(take_rows(data.public.images, unused[unused >= 0])).argmax(dim=1).cpu()
            measured["impostor_acceptance"] = float((taken == owner).float().mean())
        labels = data.heldout.labels.cpu()
        right = (answers(data.heldout.images).argmax(dim=1).cpu() == labels).float()
        own = torch.isin(labels, protected)
        for name, rows in (("protected", own), ("unprotected", ~own)):
            if rows.any():
                measured[f"accuracy_{name}"] = float(right[rows].mean())
        return measured


def _mislabelled(
    labels: Int64[Tensor, " n"], own: Tensor, share: float, classes: int, noise: Noise
) -> Int64[Tensor, " n"]:
    """Of each class's rows among `own`, the given share (rounded down) with another label."""
    order = noise.of("which").uniform(1)[:, 0]
    changed = torch.zeros_like(own)
    for y in labels[own].unique().tolist():
        rows = ((labels == y) & own).nonzero()[:, 0]
        changed[rows[order[rows].argsort(stable=True)[: int(share * len(rows))]]] = True
    return torch.where(changed, other_classes(labels, classes, noise.of("label")), labels)


def _noisy(images: UInt8[Tensor, "n c h w"], deviation: float, noise: Noise) -> UInt8[Tensor, "n c h w"]:
    """clip(x + deviation N(0, I), 0, 1), rounded to 8 bits."""
    if deviation == 0 or len(images) == 0:
        return images
    streams = torch.arange(len(images)).split(256)
    parts = [images[rows].float() / 255.0 + deviation * noise.rows(rows).normal(*images.shape[1:]) for rows in streams]
    return torch.cat([to_uint8(part) for part in parts])
