"""Ground truth on synthetic people: is the latent that the attack ended at nearest to the person's own anchor?

On data that a generator drew around known anchors a_k (digiface), an attack that searches that very generator ends at a
latent z, and the person whom z shows is known without any network:

    cos(z, a_y),        rank-1 = [ argmax_k cos(z, a_k) = y ]

A lower bound of likeness: different latents can draw nearly the same face (mirrored ones do), which count as misses.
For a real image of the person cos has the mean sqrt(1 - s^2), s being the data's spread.

References:
    | DigiFace-1M (Bae et al., WACV 2023), what the generator learnt from
    | https://github.com/microsoft/DigiFace1M
"""

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.metrics.declaration import Direction, Metric, Need, Unit
from mibench.stats.inputs import require_finite

__all__ = ["CARD", "METRICS", "latent_cosine", "latent_rank1"]

CARD = {
    "summary": "ground truth on synthetic people: the person whose anchor latent is nearest to the attack's",
    "title": "DigiFace-1M: 1 Million Digital Face Images for Face Recognition",
    "authors": "Bae, de La Gorce, Baltrusaitis, Hewitt, Chen, Valentin, Cipolla and Shen",
    "venue": "WACV",
    "year": 2023,
    "link": "https://github.com/microsoft/DigiFace1M",
}

METRICS = (
    Metric(
        "latent_rank1",
        ("latent", "rank-1"),
        Unit.SHARE,
        Direction.HIGHER,
        "ground truth: whether the attack's latent is nearest to the person's own anchor; a lower bound of likeness",
        "[0, 1]",
        needs=(Need.GROUND_TRUTH,),
    ),
    Metric(
        "latent_cosine",
        ("latent", "cosine"),
        Unit.NUMBER,
        Direction.HIGHER,
        "ground truth: cosine of the attack's latent and the person's anchor",
        "[-1, 1]",
        needs=(Need.GROUND_TRUTH,),
    ),
)


def _cosines(z: Float[Tensor, "n d"], anchors: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    require_finite("latent", "latents", z)
    return F.normalize(z.double(), dim=1) @ F.normalize(anchors.double(), dim=1).T


def latent_rank1(
    z: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], anchors: Float[Tensor, "k d"]
) -> Bool[Tensor, " n"]:
    """Whether each latent is nearest, by its angle, to the anchor of the person it claims to show.

    Raises:
        ValueError: NaN or infinite latents.
    """
    return _cosines(z, anchors).argmax(dim=1) == labels


def latent_cosine(
    z: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], anchors: Float[Tensor, "k d"]
) -> Float[Tensor, " n"]:
    """cos(z, a_y) of each latent, in [-1, 1].

    Raises:
        ValueError: NaN or infinite latents.
    """
    return _cosines(z, anchors).gather(1, labels[:, None])[:, 0]
