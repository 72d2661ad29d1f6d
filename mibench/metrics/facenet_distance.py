"""FaceNet distance: how near a face recogniser finds a reconstruction to an image of the attacked person.

    d(x) = min over references r with the label of x of  || e(x) - e(r) ||^2,    || e || = 1

e is InceptionResnetV1 trained on VGGFace2, at 160 pixels: a network that neither attack nor target has seen.
0 is the same picture, 4 the opposite; d = 2 (1 - cosine). Faces only.

References:
    | FaceNet: A Unified Embedding for Face Recognition and Clustering (Schroff et al., 2015)
    | https://arxiv.org/abs/1503.03832
    | Plug & Play Attacks: Towards Robust and Flexible Model Inversion Attacks (Struppek et al., 2022), as delta_face
    | https://arxiv.org/abs/2201.12179
    | the package `facenet-pytorch`: its network wants (255 x - 127.5) / 128, not [0, 1]
    | https://github.com/timesler/facenet-pytorch
"""

from collections.abc import Callable
from pathlib import Path

import torch
from facenet_pytorch import InceptionResnetV1
from jaxtyping import Float, Float32, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.metrics import Unavailable, inputs, weights
from mibench.metrics.declaration import Direction, Metric, Need, Unit
from mibench.metrics.knn import knn_distance
from mibench.runtime.errors import UserError

__all__ = ["CARD", "METRICS", "WEIGHTS", "FaceNet", "facenet_distance", "load", "read"]

CARD = {
    "summary": "squared L2 distance to the nearest private image of the same person, in FaceNet embeddings",
    "title": "FaceNet: A Unified Embedding for Face Recognition and Clustering",
    "authors": "Schroff, Kalenichenko and Philbin",
    "venue": "CVPR",
    "year": 2015,
    "link": "https://arxiv.org/abs/1503.03832",
}

METRICS = (
    Metric(
        "facenet",
        ("", "facenet"),
        Unit.SQUARED_L2,
        Direction.LOWER,
        "squared L2 distance to the nearest private training image of the person, in FaceNet's unit vectors",
        "[0, 4]",
        needs=(Need.WEIGHTS, Need.TRAIN),
    ),
)

WEIGHTS = weights.WeightFile(
    names=("20180402-114759-vggface2.pt",),
    url="https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
    sha256="",
)


class FaceNet(nn.Module):
    """Face images in [0, 1] to unit vectors; `load` fills in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = InceptionResnetV1()

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n 512"]:
        """Embeddings of unit length; refuses images outside [0, 1]. Resized to 160 px, bilinear with
        antialiasing."""
        x = inputs.images("facenet", images)
        x = F.interpolate(x, size=(160, 160), mode="bilinear", align_corners=False, antialias=True)
        return self.net((255 * x - 127.5) / 128)


def load(device: torch.device | str = "cpu", allow_download: bool = False) -> FaceNet | Unavailable:
    """The network with its weights, frozen, or why it cannot be had.

    Raises:
        UserError: the file found does not fit the network.
    """
    path = weights.locate("facenet", WEIGHTS, allow_download)
    if isinstance(path, Unavailable):
        return path
    return read(path).to(device)


def read(path: Path) -> FaceNet:
    """The network with the weights of a file, frozen.

    Raises:
        UserError: the file does not fit the network.
    """
    with torch.device("meta"):
        model = FaceNet()
    state = weights.read(path, WEIGHTS)
    # The embedding is what the metric uses, not the classifier of the 8,631 training people.
    kept = {key: value for key, value in state.items() if not key.startswith("logits.")}
    weights.fill(model.net, kept, path)
    return model.eval()


@torch.no_grad()
def facenet_distance(
    model: Callable[[Tensor], Tensor],
    images: Shaped[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    reference_images: Shaped[Tensor, "m _ _ _"],
    reference_labels: Int64[Tensor, " m"],
    batch: int = 64,
) -> Float64[Tensor, " n"]:
    """Squared L2 distance of each face's embedding to the nearest reference of its label.

    `model` is what `load` gives, or a function around it that takes images as they are stored; labels lie where
    embeddings do.

    Raises:
        UserError: images and references of different sizes, a label without reference, images outside [0, 1].
        ValueError: NaN or infinite pixels.
    """
    if images.shape[1:] != reference_images.shape[1:]:
        raise UserError(
            f"facenet: reconstructions are {tuple(images.shape[1:])}, references "
            f"{tuple(reference_images.shape[1:])}; resize the references to the reconstructions' size"
        )
    embedded = torch.cat([model(part) for part in images.split(batch)])
    references = torch.cat([model(part) for part in reference_images.split(batch)])
    return knn_distance(embedded, labels, references, reference_labels)
