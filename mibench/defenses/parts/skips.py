"""The skip connections of a residual network, and their weakening: out = act(F(x) + k S(x)).

References:
    | On the Vulnerability of Skip Connections to Model Inversion Attacks (Koh et al., ECCV 2024)
    | https://arxiv.org/abs/2409.01696
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.core import Lacks
from mibench.models import ir, resnet
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError

__all__ = ["Scaled", "weaken"]


class Scaled(nn.Module):
    """k S(x), k a buffer: kept with the weights, and 1 changes no bit.

    Where k is 0, S gets zero gradients: it is still there and still computed, but plays no part.

    Args:
        skip: S, an identity or a projection.
        k: What is left of the connection, in [0, 1].
    """

    k: Tensor

    def __init__(self, skip: nn.Module, k: float) -> None:
        super().__init__()
        self.skip = skip
        self.register_buffer("k", torch.tensor(k))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """What the block adds to F(x); in the precision of S(x)."""
        out: Tensor = self.k * self.skip(x)
        return out


def _name(block: nn.Module) -> str | None:
    """The attribute that is a block's skip connection, if it is such a block."""
    if isinstance(block, resnet.BasicBlock | ir.Unit):
        return "shortcut"
    # By name, because importing torchvision takes longer than the small nets need to train an epoch.
    kind = type(block)
    if kind.__module__ == "torchvision.models.resnet" and kind.__name__ in ("BasicBlock", "Bottleneck"):
        return "downsample"
    return None


def weaken(model: nn.Module, owner: str, stages: int, k: float) -> nn.Module:
    """Put `Scaled` in the place of every skip connection of the last stages, in place.

    A stage is a child of the trunk that has residual blocks; its first block, the one with a projection, counts too.

    Args:
        owner: The defense, for the error.
        stages: How many of them, from the last.
        k: What is left of each connection, in [0, 1].

    Raises:
        UserError: The trunk has no residual block that this can change, or fewer stages of them than asked for.
    """
    assert isinstance(model, Classifier)
    stages_of = [[block for block in child.modules() if _name(block)] for child in model.trunk.children()]
    stages_of = [blocks for blocks in stages_of if blocks]
    if not stages_of:
        raise Lacks(f"{owner}: this architecture has no skip connections that can be weakened", "models", "skips")
    if stages > len(stages_of):
        raise UserError(f"{owner}: stages must be <= {len(stages_of)} for this architecture, got {stages}")
    for block in [block for blocks in stages_of[len(stages_of) - stages :] for block in blocks]:
        name = _name(block)
        assert name is not None
        # torchvision's blocks write None where the skip connection is the identity.
        setattr(block, name, Scaled(getattr(block, name) or nn.Identity(), k))
    return model
