"""The Inception network of FID and KID: 2,048 pooled features, from the weights the metric was defined with.

The network differs from torchvision's `inception_v3` in four ways: its average pools leave the padding out of
the mean, the pool of its very last block takes the maximum instead, it knows 1,008 classes, and its input is
2x - 1 after a bilinear resize to 299 pixels. A distance in torchvision's own weights or pools is another
number.

References:
    | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017)
    | https://arxiv.org/abs/1706.08500
    | Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015), the network
    | https://arxiv.org/abs/1512.00567
    | pytorch-fid, the port of the weights; its resize (half-pixel centres, no antialiasing) is used here
    | https://github.com/mseitzer/pytorch-fid

Differs:
    torch-fidelity resizes as TensorFlow 1 did, which moves FID by a little; compare numbers of one kind only.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from mibench.metrics import Unavailable, inputs, weights

__all__ = ["WEIGHTS", "Inception", "load"]

WEIGHTS = weights.WeightFile(
    names=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)


def _with_pool(branches: list[Tensor], pooled: Tensor) -> Tensor:
    """A block's output with another last branch. The block has computed its own, 3% of the work, in vain."""
    return torch.cat([*branches[:-1], pooled], dim=1)


def _mean(x: Tensor) -> Tensor:
    """3x3 average in which padding does not count."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class _A(InceptionA):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: Tensor) -> Tensor:
        return _with_pool(self._forward(x), self.branch_pool(_mean(x)))


class _C(InceptionC):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: Tensor) -> Tensor:
        return _with_pool(self._forward(x), self.branch_pool(_mean(x)))


class _E(InceptionE):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: Tensor) -> Tensor:
        return _with_pool(self._forward(x), self.branch_pool(_mean(x)))


class _EMax(InceptionE):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        return _with_pool(self._forward(x), self.branch_pool(pooled))


class Inception(nn.Module):
    """Images in [0, 1] to Inception's pooled features; `load` fills in the weights."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [BasicConv2d, _A, InceptionB, _C, InceptionD, _E, InceptionAux]
        self.net = Inception3(
            num_classes=1008, aux_logits=False, transform_input=False, inception_blocks=blocks, init_weights=False
        )
        self.net.Mixed_7c = _EMax(2048)
        self.net.dropout, self.net.fc = nn.Identity(), nn.Identity()

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n 2048"]:
        """Pooled features; refuses images outside [0, 1]."""
        x = inputs.images("inception", images)
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return self.net(2 * x - 1)


def load(device: torch.device | str = "cpu", allow_download: bool = False) -> Inception | Unavailable:
    """The network with its weights, frozen, or why it cannot be had.

    Raises:
        UserError: the file found is not the published one.
    """
    path = weights.locate("fid", WEIGHTS, allow_download)
    if isinstance(path, Unavailable):
        return path
    with torch.device("meta"):
        model = Inception()
    state = weights.read(path, WEIGHTS)
    # The classifier on top of the features is not part of the metric.
    weights.fill(model.net, {key: value for key, value in state.items() if not key.startswith("fc.")}, path)
    return model.eval().to(device)
