"""Improved-residual (IR) face networks: IR-50 and IR-152 as the field's targets and evaluator, and small ones.

y = F(x) + S(x), F = BN-conv3-PReLU-conv3(stride)-BN, S subsampling (a 1x1 pool) or conv1-BN.
No activation follows the sum. Head: BN, dropout, flatten, linear, BN; the last BN's output is the features.

Differs: the field starts these nets from MS1M face weights, which no package ships; here they start from noise.
`facenet64`, `ir152` and `facenet112` take [0, 1] as it is (mean 0, std 1), as the published checkpoints do.

References:
    | ArcFace: Additive Angular Margin Loss for Deep Face Recognition (Deng et al., 2018)
    | https://arxiv.org/abs/1801.07698
    | Knowledge-Enriched Distributional Model Inversion Attacks (Chen et al., 2021), the targets at 64 px
    | https://arxiv.org/abs/2010.04092
"""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from mibench.models.base import Classifier, Prepare, initialise, no_weights, side_of

__all__ = ["ARCHITECTURES", "CARD", "Unit", "build"]

CARD = {
    "summary": "improved-residual face networks: IR-50 (facenet64, facenet112), IR-152, and small ones for CPU",
    "title": "ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
    "authors": "Deng, Guo, Xue and Zafeiriou",
    "venue": "CVPR",
    "year": 2019,
    "link": "https://arxiv.org/abs/1801.07698",
    "family": "ir",
    "offers": ["convolutions", "skips"],
}
ARCHITECTURES = ("ir", "ir3", "facenet64", "ir152", "facenet112")

_PUBLISHED = {"facenet64": ((3, 4, 14, 3), 64), "ir152": ((3, 8, 36, 3), 64), "facenet112": ((3, 4, 14, 3), 112)}
"""Units of each stage, and the side of the input."""


class Unit(nn.Module):
    """y = body(x) + shortcut(x); a defense may swap `shortcut` to weaken the skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.AvgPool2d(1, stride) if stride > 1 else nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """One residual step."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False) -> Classifier:
    """`ir`: four units at the images' own size, 128 features; the published ones have 512 features.

    `ir3` is `ir` with three units in the last stage, as the published nets have: where a stage is a single unit, its
    skip connection is a projection, and defenses of skip connections find hardly one to weaken.

    `facenet64` and `ir152` resize to 64 px, `facenet112` to 112 px; grey images are repeated for these three.

    Raises:
        UserError: `pretrained` was asked for; there are no such weights.
    """
    if pretrained:
        raise no_weights(name)
    if name in _PUBLISHED:
        units, size = _PUBLISHED[name][0], side_of(_PUBLISHED[name][1])
        prepare = Prepare(image_shape, [0.0] * 3, [1.0] * 3, size)
        stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        trunk = _trunk(stem, (64, 128, 256, 512), units, (size // 16, size // 16), dropout=0.5, features=512)
        return Classifier(prepare, trunk, nn.Linear(512, num_classes), 512)
    channels, height, width = image_shape
    prepare = Prepare(image_shape, [0.5], [0.5])
    shrink = 4 if max(height, width) >= 48 else 2
    # Kernels of 2s - 1: one of s + 1 would never see the last row and column of an image.
    stem = nn.Conv2d(channels, 32, 2 * shrink - 1, shrink, shrink - 1, bias=False)
    sides = [-(-side // shrink) for side in (height, width)]
    for _ in range(3):
        sides = [-(-side // 2) for side in sides]
    units = (1, 1, 1, 3 if name == "ir3" else 1)
    trunk = _trunk(stem, (32, 48, 64, 128), units, (sides[0], sides[1]), dropout=0.0, features=128, first=1)
    return Classifier(prepare, trunk, nn.Linear(128, num_classes), 128)


def _trunk(
    stem: nn.Conv2d,
    widths: tuple[int, ...],
    units: tuple[int, ...],
    sides: tuple[int, int],
    dropout: float,
    features: int,
    first: int = 2,
) -> nn.Sequential:
    """Stem, stages whose first unit strides (`first`: the stride of stage 1), and the head up to its last BN."""
    inputs = stem.out_channels
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(stem, nn.BatchNorm2d(inputs), nn.PReLU(inputs))
    )
    for index, (width, count) in enumerate(zip(widths, units, strict=True), start=1):
        stride = first if index == 1 else 2
        rest = [Unit(width, width, 1) for _ in range(count - 1)]
        stages[f"stage{index}"] = nn.Sequential(Unit(inputs, width, stride), *rest)
        inputs = width
    stages["embed"] = nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(inputs * sides[0] * sides[1], features),
        nn.BatchNorm1d(features),
    )
    trunk = nn.Sequential(stages)
    trunk.apply(initialise)
    return trunk
