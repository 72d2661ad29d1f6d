"""Any network of timm as `timm:NAME` (ResNeSt: `timm:resnest50d`, `timm:resnest101e`), at 224 px or its own fixed size.

timm is the extra `timm`; without it nothing here is looked at. What enters its classifier is the features.
Normalisation is .5 and .5, with ImageNet weights the network's own.

References:
    | PyTorch Image Models (Wightman, 2019)
    | https://github.com/huggingface/pytorch-image-models
    | ResNeSt: Split-Attention Networks (Zhang et al., 2020)
    | https://arxiv.org/abs/2004.08955
"""

import warnings

from torch import nn

from mibench.models.base import Classifier, Prepare, side_of
from mibench.runtime.errors import UserError

__all__ = ["ARCHITECTURES", "CARD", "build"]

CARD = {
    "summary": "any network of timm as timm:NAME, such as timm:resnest101e; needs mibench[timm]",
    "title": "PyTorch Image Models",
    "authors": "Wightman",
    "venue": "",
    "year": 2019,
    "link": "https://github.com/huggingface/pytorch-image-models",
    "family": "timm_net",
}
ARCHITECTURES = ()

SIDE = 224
"""Of networks that take any size, as in Plug & Play attacks."""


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False) -> Classifier:
    """The named network of timm; grey images are repeated.

    Raises:
        UserError: timm is not installed; ImageNet weights cannot be had.
    """
    try:
        import timm
    except ImportError:
        raise UserError(f"{name} comes from timm, which is not installed: pip install 'mibench[timm]'") from None
    plain = name.removeprefix("timm:")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net: nn.Module = timm.create_model(plain, pretrained=pretrained, num_classes=0)
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            reason = str(error).split("\n", 1)[0] or type(error).__name__
            raise UserError(
                f"no ImageNet weights for '{name}': they cannot be downloaded ({reason}); build it without pretrained "
                "weights, or give a file of them with --weights"
            ) from None
    for module in net.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 (whatever kind of module it is)
    config = dict(net.pretrained_cfg)  # type: ignore[arg-type]
    own = int(config["input_size"][-1])
    side = own if config.get("fixed_input_size") else side_of(SIDE, 64)
    mean, std = (config["mean"], config["std"]) if pretrained else ([0.5] * 3, [0.5] * 3)
    width = int(getattr(net, "head_hidden_size", None) or net.num_features)  # type: ignore[arg-type]
    return Classifier(Prepare(image_shape, mean, std, side), net, nn.Linear(width, num_classes), width)
