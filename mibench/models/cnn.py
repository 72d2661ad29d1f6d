"""A lean strided CNN: the target that one CPU core trains in a minute.

Four convolutions and a hidden layer, as in LeNet, with batch normalisation.

References:
    | Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)
    | https://doi.org/10.1109/5.726791
"""

import math
from collections import OrderedDict

from torch import nn

from mibench.models.base import Classifier, Prepare, initialise, no_weights

__all__ = ["ARCHITECTURES", "CARD", "build"]

CARD = {
    "summary": "small strided CNN for CPU: four convolutions, a 128-wide hidden layer",
    "title": "Gradient-Based Learning Applied to Document Recognition",
    "authors": "LeCun, Bottou, Bengio and Haffner",
    "venue": "Proceedings of the IEEE",
    "year": 1998,
    "link": "https://doi.org/10.1109/5.726791",
    "family": "cnn",
    "offers": ["convolutions"],
}
ARCHITECTURES = ("cnn",)


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False) -> Classifier:
    """conv5 s2-16, conv3 s2-32, conv3 s2-64, conv3 s2-128, mean pooling to at most 4x4, 128 features.

    Raises:
        UserError: `pretrained` was asked for; there are no such weights.
    """
    if pretrained:
        raise no_weights(name)
    channels, *sides = image_shape
    sixteenths = [-(-side // 16) for side in sides]
    windows = [-(-side // 4) for side in sixteenths]
    area = math.prod(-(-side // window) for side, window in zip(sixteenths, windows, strict=True))
    layers = OrderedDict[str, nn.Module](
        stage1=_stage(channels, 16, 5),
        stage2=_stage(16, 32, 3),
        stage3=_stage(32, 64, 3),
        stage4=_stage(64, 128, 3),
        pool=nn.AvgPool2d((windows[0], windows[1]), ceil_mode=True),
        hidden=nn.Sequential(nn.Flatten(), nn.Linear(128 * area, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()),
    )
    if max(windows) == 1:
        del layers["pool"]  # the same pixels, copied
    trunk = nn.Sequential(layers)
    trunk.apply(initialise)
    return Classifier(Prepare(image_shape, [0.5], [0.5]), trunk, nn.Linear(128, num_classes), 128)


def _stage(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Half the sides."""
    convolution = nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
