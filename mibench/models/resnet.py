"""A small residual network for CPU: accurate enough to evaluate, quick enough for one core.

y = relu(F(x) + S(x)), F = conv3-BN-relu-conv3-BN, S the identity or a strided conv1-BN.
Differs: the stem shrinks the image to about 16 pixels a side before the first block (CIFAR nets keep 32).

References:
    | Deep Residual Learning for Image Recognition (He et al., 2015)
    | https://arxiv.org/abs/1512.03385
"""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from mibench.models.base import Classifier, Prepare, initialise, no_weights

__all__ = ["ARCHITECTURES", "CARD", "BasicBlock", "build"]

CARD = {
    "summary": "small residual network for CPU: stem, three stages of one basic block, a 128-wide embedding",
    "title": "Deep Residual Learning for Image Recognition",
    "authors": "He, Zhang, Ren and Sun",
    "venue": "CVPR",
    "year": 2016,
    "link": "https://arxiv.org/abs/1512.03385",
    "family": "resnet",
    "offers": ["convolutions", "skips"],
}
ARCHITECTURES = ("resnet",)
WIDTH = 32
FEATURES = 128


class BasicBlock(nn.Module):
    """y = relu(body(x) + shortcut(x)); a defense may swap `shortcut` to weaken the skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """One residual step."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False) -> Classifier:
    """Stem conv3 (stride 2 from 48 px on), blocks of 32, 64 and 128 channels that halve the side, fc 128 with BN.

    The embedding reads the whole map, not its mean: where a face's parts lie tells people apart.

    Raises:
        UserError: `pretrained` was asked for; there are no such weights.
    """
    if pretrained:
        raise no_weights(name)
    channels = image_shape[0]
    stride = 2 if max(image_shape[1:]) >= 48 else 1
    stem = [nn.Conv2d(channels, WIDTH, 3, stride, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    height, width = (-(-side // (8 * stride)) for side in image_shape[1:])
    trunk = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*stem),
            stage1=nn.Sequential(BasicBlock(WIDTH, WIDTH, 2)),
            stage2=nn.Sequential(BasicBlock(WIDTH, 2 * WIDTH, 2)),
            stage3=nn.Sequential(BasicBlock(2 * WIDTH, 4 * WIDTH, 2)),
            embed=nn.Sequential(
                nn.Flatten(), nn.Linear(4 * WIDTH * height * width, FEATURES, bias=False), nn.BatchNorm1d(FEATURES)
            ),
        )
    )
    trunk.apply(initialise)
    return Classifier(Prepare(image_shape, [0.5], [0.5]), trunk, nn.Linear(FEATURES, num_classes), FEATURES)
