"""Any torchvision classifier by its name, at 224 px (`inception_v3` at 299), as in Plug & Play attacks.

Its last layer, which must be linear, becomes the head; what enters that layer is the features.
Images are resized inside, bilinear and antialiased. Normalisation: the ImageNet mean and std for ImageNet weights,
.5 and .5 otherwise, and for `inception_v3` and `googlenet` always (their ImageNet weights were trained so).

The auxiliary head of `inception_v3` stays for training, which adds its loss with weight 1 as Plug & Play does (theirs
keeps ImageNet's 1,000 outputs, ours has as many as there are classes). Differs: those of `googlenet` are dropped; a
pretrained vision transformer takes the size its weights were trained at, 224 but for `vit_h_14` (518).

References:
    | TorchVision: PyTorch's Computer Vision library (maintainers and contributors, 2016)
    | https://docs.pytorch.org/vision/stable/models.html
    | Plug & Play Attacks (Struppek et al., 2022)
    | https://arxiv.org/abs/2201.12179
"""

import os
import pickle
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from mibench.models.base import Classifier, Prepare, side_of
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file

__all__ = ["ARCHITECTURES", "CARD", "build", "imagenet_state"]

CARD = {
    "summary": "any torchvision classifier by its name, at 224 or 299 px, optionally with ImageNet weights",
    "title": "TorchVision: PyTorch's Computer Vision Library",
    "authors": "TorchVision maintainers and contributors",
    "venue": "",
    "year": 2016,
    "link": "https://docs.pytorch.org/vision/stable/models.html",
    "family": "torchvision_net",
}
ARCHITECTURES = ()

_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False) -> Classifier:
    """The named torchvision network; grey images are repeated.

    Raises:
        UserError: Its last layer is not linear (squeezenet), or the ImageNet weights cannot be had.
    """
    from torchvision import models

    if name.startswith("squeezenet"):
        raise UserError(
            f"'{name}' ends in a convolution and so has no penultimate feature vector; choose another small net, "
            "for example mobilenet_v3_small or shufflenet_v2_x0_5"
        )
    options: dict[str, Any] = {}
    auxiliary = name in _WITH_AUXILIARY_HEADS
    if auxiliary:
        options["aux_logits"] = name == "inception_v3"
    if pretrained:
        weights = models.get_model_weights(name).DEFAULT
        # torchvision unpickles without restriction. This read refuses anything but tensors, so that what torchvision
        # then finds in its cache is harmless.
        imagenet_state(name, weights)
        options["weights"] = weights
    elif auxiliary:
        options["init_weights"] = True
    net = models.get_model(name, **options)
    if auxiliary:
        net.transform_input = False
        net.aux_logits = False  # the trunk returns its features alone, in train mode as well
    second = "AuxLogits" if name == "inception_v3" else None
    if second is not None:
        net.AuxLogits.fc = type(net.AuxLogits.fc)(net.AuxLogits.fc.in_features, num_classes)
        if _side(name, net) < 299:  # its kernel of 5 has no place in what is left
            net.AuxLogits.conv1.conv.padding = (2, 2)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False

    path, last = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    net.set_submodule(path, nn.Identity())
    head = nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    imagenet = pretrained and not auxiliary
    prepare = Prepare(
        image_shape,
        _IMAGENET_MEAN if imagenet else [0.5] * 3,
        _IMAGENET_STD if imagenet else [0.5] * 3,
        size=_side(name, net),
    )
    return Classifier(prepare, net, head, last.in_features, second)


def _side(name: str, net: nn.Module) -> int:
    """Of the images that it looks at; windows and positions need all of theirs."""
    if name == "inception_v3":
        return side_of(299, 107)
    if name.startswith("maxvit"):
        return 224
    own = getattr(net, "image_size", None)
    return side_of(224) if own is None else int(own)


def imagenet_state(name: str, weights: Any) -> dict[str, Tensor]:
    """The published weights as tensors, from torch hub's cache or else downloaded into it.

    Args:
        name: The architecture, for the error.
        weights: A member of torchvision's weights enumeration.

    Raises:
        UserError: The file cannot be downloaded, or is not a weights file: names the file, its URL and its place.
    """
    url = str(weights.url)
    place = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(url).path))
    cached = os.path.exists(place)
    try:
        if cached:
            open_file(place).close()
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        what = f"{place} is not readable as weights" if cached else "they cannot be downloaded"
        raise UserError(
            f"no ImageNet weights for '{name}': {what} ({reason}); put {url} at {place}, or build without "
            "pretrained weights"
        ) from error
    return state
