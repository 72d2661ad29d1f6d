"""Distances by published networks: LPIPS, FaceNet, Inception; where their weights are not here, why and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from mibench.core import Dataset, Split, to_float
from mibench.data.cache import cached, hash_of
from mibench.evaluation.judgement import distances
from mibench.evaluation.records import Distances
from mibench.metrics import Unavailable, facenet_distance, inception, lpips_distance
from mibench.runtime.errors import UserError

__all__ = ["Perceptual", "inception_features", "perceptual"]


class Perceptual(NamedTuple):
    """Values of each image by metric, all images in Inception's features, and what could not be computed."""

    images: dict[str, Tensor]
    inception: Distances | None
    unavailable: tuple[Unavailable, ...]


def inception_features(
    pool3: Callable[[Tensor], Tensor], real: Split, data: Dataset, device: torch.device
) -> Float[Tensor, "m 2048"]:
    """Inception's features of private images; kept on disk, since they take longest of all metrics."""
    known = (data.fingerprint(), real.labels.unique().tolist(), inception.WEIGHTS, device.type, torch.__version__)

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        with torch.no_grad():
            return {"features": torch.cat([pool3(part).cpu() for part in real.images.split(64)])}, {}

    tensors, _ = cached(hash_of("inception", *known, files=[Path(inception.__file__)]), make)
    return tensors["features"].to(device)


def perceptual(
    data: Dataset, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], device: torch.device
) -> Perceptual:
    """Each reconstruction's LPIPS and FaceNet distance to the nearest private image of its person; Inception's FID.

    Raises:
        UserError: images of another size than the data's. These networks resize whatever they get, so sharp references
            would be compared with enlarged images.
    """
    if images.shape[1:] != data.image_shape:
        raise UserError(
            f"images to score are of shape {tuple(images.shape[1:])}, those of '{data.name}' of {data.image_shape}; "
            "bring both to one size"
        )
    lpips, facenet, pool3 = (kind.load(device=device) for kind in (lpips_distance, facenet_distance, inception))
    missing = tuple(model for model in (lpips, facenet, pool3) if isinstance(model, Unavailable))
    if len(missing) == 3:
        return Perceptual({}, None, missing)
    real = data.train.take(torch.isin(data.train.labels, labels).nonzero()[:, 0])
    pairs = images, labels.to(device), real.images, real.labels.to(device)

    def stored(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: model(to_float(x).to(device))

    columns, sets = {}, None
    if not isinstance(lpips, Unavailable):
        columns["lpips"] = lpips_distance.lpips_distance(stored(lpips), *pairs).cpu()
    if not isinstance(facenet, Unavailable):
        columns["facenet"] = facenet_distance.facenet_distance(stored(facenet), *pairs).cpu()
    if not isinstance(pool3, Unavailable):
        with torch.no_grad():
            generated = torch.cat([stored(pool3)(part) for part in images.split(64)])
        sets = distances(inception_features(stored(pool3), real, data, device), generated)
    return Perceptual(columns, sets, missing)
