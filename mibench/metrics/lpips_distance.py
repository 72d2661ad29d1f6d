"""LPIPS: how alike a reconstruction and a private image look to a network calibrated on human judgements.

    d(x, r) = sum_l mean_hw sum_c w_lc ( u_lc(x) - u_lc(r) )^2

where u_l is layer l of the network, scaled to unit length at each position.

It is a squared distance between long vectors, sqrt(w_lc / H_l W_l) u_lc, so every image passes the network
once and the nearest image is found as in `knn`. Each reconstruction counts with the *nearest* private image
of its identity (the minimum): one recovered picture is a leak, however many others it does not resemble.

References:
    | The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018), version 0.1
    | https://arxiv.org/abs/1801.03924
    | the package `lpips`: its calibrated weights w; the network's own weights come from torchvision
    | https://github.com/richzhang/PerceptualSimilarity

Differs:
    Images smaller than 64 pixels are first enlarged to 64 (bilinear): AlexNet has no output for them.
"""

import warnings
from collections.abc import Callable
from importlib.resources import as_file, files

import lpips
import torch
from jaxtyping import Float, Float32, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.metrics import Unavailable, inputs, weights
from mibench.metrics.declaration import Direction, Metric, Need, Unit
from mibench.metrics.knn import knn_distance
from mibench.runtime.errors import UserError, unknown

__all__ = ["CARD", "METRICS", "WEIGHTS", "Lpips", "load", "lpips_distance"]

CARD = {
    "summary": "perceptual distance (LPIPS) to the nearest private image of the same identity",
    "title": "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
    "authors": "Zhang, Isola, Efros, Shechtman and Wang",
    "venue": "CVPR",
    "year": 2018,
    "link": "https://arxiv.org/abs/1801.03924",
}

METRICS = (
    Metric(
        "lpips",
        ("", "lpips"),
        Unit.DISTANCE,
        Direction.LOWER,
        "perceptual distance (LPIPS) to the nearest private training image of the person",
        "[0, inf), about 1 for unrelated images",
        needs=(Need.WEIGHTS, Need.TRAIN),
    ),
)

WEIGHTS = {
    net: weights.WeightFile((name,), f"https://download.pytorch.org/models/{name}", sha256)
    for net, name, sha256 in [
        ("alex", "alexnet-owt-7be5be79.pth", "7be5be79"),
        ("vgg", "vgg16-397923af.pth", "397923af"),
    ]
}

_SMALLEST = 64


class Lpips(nn.Module):
    """Images in [0, 1] to vectors whose squared L2 distance is LPIPS; `load` fills in the weights."""

    def __init__(self, net: str) -> None:
        super().__init__()
        self.parts = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n d"]:
        """Embeddings; refuses images outside [0, 1]. d grows with the image: 32 thousand at 64 px with
        AlexNet."""
        x = inputs.images("lpips", images)
        if min(x.shape[2:]) < _SMALLEST:
            size = (max(x.shape[2], _SMALLEST), max(x.shape[3], _SMALLEST))
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        layers = self.parts.net(self.parts.scaling_layer(2 * x - 1))
        scaled = []
        for layer, head in zip(layers, self.parts.lins, strict=True):
            w = head.model[1].weight / (layer.shape[2] * layer.shape[3])
            scaled.append((lpips.normalize_tensor(layer) * w.sqrt()).flatten(1))
        return torch.cat(scaled, dim=1)


def load(net: str = "alex", device: torch.device | str = "cpu", allow_download: bool = False) -> Lpips | Unavailable:
    """The network with its weights, frozen, or why it cannot be had. `net` is 'alex' (the usual) or 'vgg'.

    Raises:
        UserError: another `net`, or the file found is not the published one.
    """
    if net not in WEIGHTS:
        raise unknown("LPIPS network", net, WEIGHTS)
    path = weights.locate("lpips", WEIGHTS[net], allow_download)
    if isinstance(path, Unavailable):
        return path
    with warnings.catch_warnings(), torch.device("meta"):
        # lpips still calls torchvision by an argument's old name, which warns.
        warnings.simplefilter("ignore", UserWarning)
        model = Lpips(net)
    # The scaling layer holds constants, not weights: a fresh one, off the meta device.
    model.parts.scaling_layer = lpips.ScalingLayer()
    with as_file(files("lpips") / "weights" / "v0.1" / f"{net}.pth") as heads:
        state = torch.load(heads, map_location="cpu", weights_only=True)
    backbone = weights.read(path, WEIGHTS[net])
    for key in model.parts.state_dict():
        part, _, rest = key.partition(".")
        if part == "net":
            # lpips cuts torchvision's `features` into slices and keeps each layer's number.
            source = "features." + rest.partition(".")[2]
            if source not in backbone:
                raise UserError(f"{path} lacks {source}; fetch {WEIGHTS[net].url} again")
            state[key] = backbone[source]
        elif part == "lins":
            number, _, name = rest.partition(".")
            state[key] = state[f"lin{number}.{name}"]
        elif part == "scaling_layer":
            state[key] = model.parts.scaling_layer.state_dict()[rest]
    weights.fill(model.parts, state, path)
    return model.eval().to(device)


@torch.no_grad()
def lpips_distance(
    model: Callable[[Tensor], Tensor],
    images: Shaped[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    reference_images: Shaped[Tensor, "m _ _ _"],
    reference_labels: Int64[Tensor, " m"],
    batch: int = 64,
) -> Float64[Tensor, " n"]:
    """LPIPS of each reconstruction to the nearest reference of its label.

    One identity at a time: the embeddings of all references at once would not fit. `model` is what `load` gives, or a
    function around it that takes images as they are stored; labels lie where embeddings do, images may lie elsewhere.

    Raises:
        UserError: images and references of different sizes (resize the references through the attack's resolution,
            so that sharp ones are not compared with enlarged images), a label without reference, images outside [0, 1].
        ValueError: NaN or infinite pixels.
    """
    if images.shape[1:] != reference_images.shape[1:]:
        raise UserError(
            f"lpips: reconstructions are {tuple(images.shape[1:])}, references "
            f"{tuple(reference_images.shape[1:])}; resize the references to the reconstructions' size"
        )
    result = torch.empty(len(images), dtype=torch.float64, device=labels.device)
    for label in labels.unique().tolist():
        mine, real = (labels == label).nonzero()[:, 0], (reference_labels == label).nonzero()[:, 0]
        if len(real) == 0:
            raise UserError(f"lpips: label {label} has no reference image; every judged label needs one")
        embedded = torch.cat([model(images[rows.to(images.device)]) for rows in mine.split(batch)])
        references = torch.cat([model(reference_images[rows.to(images.device)]) for rows in real.split(batch)])
        result[mine] = knn_distance(embedded, labels[mine], references, reference_labels[real])
    return result
