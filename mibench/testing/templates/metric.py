"""Peak signal-to-noise ratio to the nearest private image of the person: how near a reconstruction comes in pixels.

    PSNR(x) = max over references r with the label of x of  -10 log10 mean((x - r)^2)

In dB, for pixels in [0, 1]; equal images have no noise and are given 100 dB. A high value means a copied image; a low
one says little, because a face that has moved by a few pixels is far away.

References:
    | Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004), section I
    | https://doi.org/10.1109/TIP.2003.819861
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.metrics.declaration import Direction, Metric, Need, Unit
from mibench.metrics.inputs import images
from mibench.runtime.errors import UserError

__all__ = ["CARD", "METRICS", "examples", "psnr"]

CARD = {
    "summary": "peak signal-to-noise ratio to the nearest private image of the person",
    "title": "Image Quality Assessment: From Error Visibility to Structural Similarity",
    "authors": "Wang, Bovik, Sheikh and Simoncelli",
    "venue": "IEEE TIP",
    "year": 2004,
    "link": "https://doi.org/10.1109/TIP.2003.819861",
    "contract": 1,
}

METRICS = (
    Metric(
        "psnr",
        ("PSNR", "train"),
        Unit.NUMBER,
        Direction.HIGHER,
        "peak signal-to-noise ratio, in dB, to the nearest private training image of the person",
        "[0, 100]",
        needs=(Need.TRAIN,),
    ),
)
"""Literals: tables, exports, the data dictionary and the glossary read them without importing torch."""

CEILING = 100.0


def psnr(
    x: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    references: Float[Tensor, "m c h w"],
    reference_labels: Int64[Tensor, " m"],
) -> Float[Tensor, " n"]:
    """Of each image, in dB.

    Raises:
        UserError: Pixels outside [0, 1], or a label without a reference.
    """
    x, references = images("psnr", x).flatten(1), images("psnr", references).flatten(1)
    own = labels[:, None] == reference_labels[None, :]
    if not bool(own.any(dim=1).all()):
        raise UserError(f"psnr: no reference for label(s) {labels[~own.any(dim=1)].unique().tolist()}")
    error = torch.stack([(one - references).square().mean(dim=1) for one in x])
    least = error.masked_fill(~own, torch.inf).amin(dim=1)
    return (-10 * least.log10()).clamp(max=CEILING)


def examples() -> list[tuple[str, tuple[Tensor, ...], list[float]]]:
    """What can be worked out by hand: an error of .1 in every pixel is 20 dB, of .01 is 40 dB, none is the ceiling."""
    x, labels = torch.full((2, 3, 8, 8), 0.5), torch.tensor([0, 1])
    references, owners = torch.stack([x[0] + 0.1, x[0] + 0.01, x[0]]), torch.tensor([0, 0, 1])
    return [
        ("psnr", (x, labels, references, owners), [40.0, CEILING]),
        ("psnr", (x[:1], labels[:1], references[:1], owners[:1]), [20.0]),
    ]
