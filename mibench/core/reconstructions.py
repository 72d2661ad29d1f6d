"""What an attack returns, and the one place where it is checked before anything is stored."""

from dataclasses import InitVar, dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mibench.runtime.errors import UserError

__all__ = ["RANGES", "Checked", "Range", "Reconstructions", "checked"]

Range = Literal["unit", "byte", "signed"]
"""Where pixels lie: [0, 1], [0, 255] or [-1, 1]."""

RANGES: dict[Range, tuple[float, float]] = {"unit": (0.0, 1.0), "byte": (0.0, 255.0), "signed": (-1.0, 1.0)}
"""Every range by name, and its ends."""

HOW = "return mibench.core.Reconstructions(images, labels)"

SLACK = 0.5 / 255
"""How far a pixel may lie outside [0, 1]: what storing it as 8 bits rounds off anyway."""


@dataclass(frozen=True)
class Reconstructions:
    """What an attack returns: the same number of images for each attacked identity, grouped by identity.

    An identity that is left out counts as failed: it is a miss in every accuracy. `failed` marks images for which the
    search found nothing better than its start; they are scored all the same, so a class the attack could not reach
    counts as 0 instead of vanishing. `latents` are where the search ended: decode(latents, labels) gives the images,
    unless the attack changed the prior or searched inside it.

    Args:
        images: In [0, 1], or in the range that is named; kept in [0, 1].
        labels: Whom each image is of.
        latents: None where the attack has none: kept as latents of no dimension.
        failed: None where no search failed.
        range: Where the given pixels lie: 'unit' [0, 1], 'byte' [0, 255], also as uint8, or 'signed' [-1, 1].
    """

    images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    latents: Float[Tensor, "n d"] = None  # type: ignore[assignment]
    failed: Bool[Tensor, " n"] = None  # type: ignore[assignment]
    range: InitVar[Range] = "unit"

    def __post_init__(self, range: Range) -> None:
        if range not in RANGES:
            raise UserError(f"Reconstructions: range '{range}'; allowed: {', '.join(RANGES)}")
        images = self.images
        if not isinstance(images, Tensor):
            raise UserError(f"Reconstructions: images must be a tensor, got {_name(images)}")
        if range == "byte":
            object.__setattr__(self, "images", images.float() / 255.0)
        elif range == "signed":
            object.__setattr__(self, "images", (images + 1.0) / 2.0)
        if self.latents is None:
            object.__setattr__(self, "latents", torch.zeros(len(images), 0, device=images.device))
        if self.failed is None:
            object.__setattr__(self, "failed", torch.zeros(len(images), dtype=torch.bool, device=images.device))


class Checked(NamedTuple):
    """Reconstructions with a row for every image that was asked for, and the identities that the attack left out."""

    made: Reconstructions
    """Grouped by identity in the order asked for; where an identity was left out: grey images, marked as failed."""
    missing: Int64[Tensor, " m"]
    """In the order asked for; on the CPU."""


def _name(value: object) -> str:
    return type(value).__name__


def checked(made: object, attack: str, labels: Int64[Tensor, " k"], image_shape: tuple[int, int, int]) -> Checked:
    """What an attack returned, if it can be stored and scored.

    Args:
        made: What it returned, whatever that is.
        attack: Its name.
        labels: The identities that were asked for, each once.
        image_shape: (channels, height, width) of the target's images.

    Raises:
        UserError: One line that names the attack, what came back, and what to return.
    """
    if not isinstance(made, Reconstructions):
        raise UserError(f"the attack {attack} returned {_name(made)}; {HOW}")
    _check_types(made, attack)
    _check_shapes(made, attack, image_shape)
    _check_pixels(made.images, attack)
    asked, known = labels.cpu(), made.labels.cpu()
    strange = sorted(set(known.tolist()) - set(asked.tolist()))
    if strange:
        raise UserError(
            f"the attack {attack} returned images of {_some(strange)}, which it was not asked for; it was asked for "
            f"{_some(asked.tolist())}: {HOW} with these labels only"
        )
    counts = torch.bincount(known, minlength=int(asked.max()) + 1)[asked]
    each = int(counts.max()) if len(counts) else 0
    if each == 0:
        raise UserError(f"the attack {attack} returned no images at all; return at least one for an identity")
    uneven = (counts > 0) & (counts < each)
    if bool(uneven.any()):
        first = int(asked[uneven][0])
        raise UserError(
            f"the attack {attack} returned {int(counts[uneven][0])} image(s) of identity {first} and {each} of "
            f"{int(asked[counts == each][0])}; return as many of each, and none of an identity to say that it failed"
        )
    return _in_order(made, asked, known, counts, each)


def _in_order(
    made: Reconstructions,
    asked: Int64[Tensor, " k"],
    known: Int64[Tensor, " n"],
    counts: Int64[Tensor, " k"],
    each: int,
) -> Checked:
    """Rows grouped in the order asked for, with grey ones where an identity was left out."""
    labels = asked.repeat_interleave(each)
    if torch.equal(labels, known):
        return Checked(made, asked[:0])
    place = torch.empty(int(asked.max()) + 1, dtype=torch.int64)
    place[asked] = torch.arange(len(asked))
    device = made.images.device
    rows = place[known].argsort(stable=True).to(device)
    present = (counts > 0).repeat_interleave(each).to(device)

    def spread(values: Tensor, fill: float) -> Tensor:
        whole = torch.full((len(labels), *values.shape[1:]), fill, dtype=values.dtype, device=device)
        whole[present] = values[rows]
        return whole

    whole = Reconstructions(
        spread(made.images, 0.5), labels.to(device), spread(made.latents, 0.0), spread(made.failed, True)
    )
    return Checked(whole, asked[counts == 0])


def _check_types(made: Reconstructions, attack: str) -> None:
    wanted = {
        "images": ("a float tensor", lambda one: one.is_floating_point()),
        "labels": ("an int64 tensor", lambda one: one.dtype == torch.int64),
        "latents": ("a float tensor", lambda one: one.is_floating_point()),
        "failed": ("a bool tensor", lambda one: one.dtype == torch.bool),
    }
    for name, (words, right) in wanted.items():
        value = getattr(made, name)
        if not isinstance(value, Tensor):
            raise UserError(f"the attack {attack} returned {name} of type {_name(value)}; make it {words}")
        if not right(value):
            hint = "; for whole numbers from 0 to 255 add range='byte'" if name == "images" else ""
            raise UserError(
                f"the attack {attack} returned {name} of {str(value.dtype).removeprefix('torch.')}; make it "
                f"{words}{hint}"
            )


def _check_shapes(made: Reconstructions, attack: str, image_shape: tuple[int, int, int]) -> None:
    n = len(made.images) if made.images.dim() else 0
    if tuple(made.images.shape[1:]) != image_shape or made.images.dim() != 4:
        raise UserError(
            f"the attack {attack} returned images of shape {tuple(made.images.shape)}; the target's are (n, "
            f"{', '.join(map(str, image_shape))}): return that, as the prior's decode does"
        )
    for name, shape in {"labels": "(n,)", "latents": "(n, d)", "failed": "(n,)"}.items():
        value = getattr(made, name)
        if value.dim() != (2 if name == "latents" else 1) or len(value) != n:
            raise UserError(
                f"the attack {attack} returned {n} images and {name} of shape {tuple(value.shape)}; make it {shape} "
                f"with n = {n}, one row for each image"
            )


def _check_pixels(images: Float[Tensor, "n c h w"], attack: str) -> None:
    if not images.numel():
        return
    if not bool(images.isfinite().all()):
        bad = int((~images.isfinite().flatten(1).all(dim=1)).sum())
        raise UserError(
            f"the attack {attack} returned NaN or infinity in {bad} of {len(images)} images; return none of an "
            "identity whose search broke, so that it counts as failed"
        )
    low, high = (float(end) for end in images.aminmax())
    if low < -SLACK or high > 1 + SLACK:
        raise UserError(
            f"the attack {attack} returned pixels in [{low:.4g}, {high:.4g}]; images lie in [0, 1]: say "
            "Reconstructions(..., range='byte') for [0, 255] or range='signed' for [-1, 1], or clamp them"
        )


def _some(labels: list[int]) -> str:
    """`identities 1, 2, 3`, at most eight of them."""
    shown = ", ".join(map(str, labels[:8]))
    return f"{'identity' if len(labels) == 1 else 'identities'} {shown}{', ...' if len(labels) > 8 else ''}"
