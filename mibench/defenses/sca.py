"""Sparse coding: the first convolutions become layers that solve for a sparse code of what they see.

What a few atoms cannot say about an image does not enter the network. The dynamics are those of the locally competitive
algorithm: a ~ argmin_(a >= 0) |s - a D|^2 / 2 + lam |a|_1.

References:
    | Improving Robustness to Model Inversion Attacks via Sparse Coding Architectures (Dibbo et al., ECCV 2024)
    | https://arxiv.org/abs/2403.14772
    | Sparse Coding via Thresholding and Local Competition in Neural Circuits (Rozell et al., 2008)
    | https://doi.org/10.1162/neco.2008.03-07-486
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mibench.core import Defense, Lacks
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError

__all__ = ["SparseCoding", "SparseLayer"]

CARD = {
    "summary": "sparse-coding layers in the place of the first convolutions (SCA)",
    "title": "Improving Robustness to Model Inversion Attacks via Sparse Coding Architectures",
    "authors": "Dibbo, Breuer, Moore and Teti",
    "venue": "ECCV",
    "year": 2024,
    "link": "https://arxiv.org/abs/2403.14772",
    "strength": "lam",
    "grid": [0.1, 0.5, 1.0],
    "adaptive": {},
    "conflicts": {"tl": "sca replaces the first layers, which tl keeps as public images have trained them"},
    "requires": ["convolutions"],
    "zero": "its first layers are other layers, even when codes cost nothing",
}

PRESETS = {"paper": {"layers": 2, "lam": 1.5, "iterations": 500, "tau": 100.0}}
"""CelebA/celeba_etn_lca2.py at commit 7a33086 of https://github.com/SayantonDibbo/SCA; tau is the library's default."""


class SparseLayer(nn.Module):
    """Codes of sparse coding, in the shape that a convolution would give.

    s = the input, standardised per image, with the convolution's padding of zeros around it, which codes explain as
    well; D = one atom of unit norm per output channel, placed at every stride;
    u' = u + (D^T s - u - (D^T D - I) a) / tau, a = max(u - lam, 0), from u = 0. A fixed point fulfils the optimality
    conditions D^T (s - D a) = lam where a > 0, and <= lam elsewhere. A constant image has the code 0.

    Always in float32: in bfloat16 small steps would vanish. Memory grows with the square root of the iterations, for
    one more forward pass.

    Args:
        conv: The convolution it replaces; its channels, kernel, stride and padding stay.
        lam: Price of a code's unit, >= 0.
        iterations: Steps of 1 / tau.
        tau: Time constant in steps; must exceed half the largest eigenvalue of D^T D (about 4 to 20 for small stems,
            32 for 64 atoms of 3 x 3 at stride 1), or codes oscillate.
        learn: Whether the atoms learn, by backpropagation through the iterations.
    """

    def __init__(self, conv: nn.Conv2d, lam: float, iterations: int, tau: float, learn: bool) -> None:
        super().__init__()
        self.stride, self.padding = _pair(conv.stride), _pair(conv.padding)
        self.lam, self.iterations, self.tau = lam, iterations, tau
        self.weight = nn.Parameter(torch.randn_like(conv.weight), requires_grad=learn)

    def atoms(self) -> Float[Tensor, "o c h w"]:
        """D."""
        return F.normalize(self.weight.float().flatten(1)).view_as(self.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o h2 w2"]:
        """The code, >= 0."""
        kind = x.device.type
        known = torch.amp.is_autocast_available(kind)  # not to the meta device, on which sizes are planned
        with torch.autocast(kind, enabled=False) if known else nullcontext():
            # Channels last: convolutions of a few channels are several times as fast so, even on a CPU.
            height, width = self.padding
            s = F.pad(F.layer_norm(x.float(), x.shape[1:]), (width, width, height, height))
            s = s.contiguous(memory_format=torch.channels_last)
            atoms = self.atoms().contiguous(memory_format=torch.channels_last)
            u = torch.zeros_like(self._project(s, atoms))
            # Only the ends of pieces are kept for the backward pass; what lies within is computed again.
            piece = math.isqrt(self.iterations)
            for done in range(0, self.iterations, piece):
                steps = min(piece, self.iterations - done)
                u = checkpoint(self._advance, u, s, atoms, steps, use_reentrant=False, preserve_rng_state=False)
            return F.relu(u - self.lam)

    def _project(self, s: Float[Tensor, "n c h w"], atoms: Float[Tensor, "o c k l"]) -> Float[Tensor, "n o h2 w2"]:
        """D^T s."""
        return F.conv2d(s, atoms, None, self.stride)

    def _advance(
        self, u: Float[Tensor, "n o h2 w2"], s: Float[Tensor, "n c h w"], atoms: Float[Tensor, "o c k l"], steps: int
    ) -> Float[Tensor, "n o h2 w2"]:
        # Rows and columns at the far edges that no atom reaches, because the stride skips them.
        axes = zip(s.shape[2:], atoms.shape[2:], self.stride, strict=True)
        left = [(side - kernel) % stride for side, kernel, stride in axes]
        for _ in range(steps):
            a = F.relu(u - self.lam)
            rest = s - F.conv_transpose2d(a, atoms, None, self.stride, 0, left)
            u = u.lerp(self._project(rest, atoms) + a, 1.0 / self.tau)
        return u


def _pair(sizes: Sequence[int] | str) -> tuple[int, int]:
    """A convolution's geometry, which torch types more loosely; words are refused before."""
    return int(sizes[0]), int(sizes[1])


@dataclass(frozen=True)
class SparseCoding(Defense):
    """Replaces the first convolutions by `SparseLayer`s, each followed by a batch norm.

    Args:
        layers: 1 (the authors' "sparse standard") or 2 (their SCA).
        lam: Price of a code's unit; larger is sparser. The authors' scripts have .1, .5 and 1.5.
        iterations: Steps of the dynamics; the authors' 500 are 5 time constants, as here.
        tau: Its time constant in steps, >= 1; see `SparseLayer`. The authors' is 100.
        train: What becomes of the atoms: random (fixed as drawn, which is what the authors' scripts amount to, as they
            never call the update) or backprop.

    Source: the paper; the authors' networks (`celeba_etn_lca2.py` is SCA, `..._lca1.py` "sparse standard",
    https://github.com/SayantonDibbo/SCA) and the library they call (https://github.com/lanl/lca-pytorch), whose codes a
    `SparseLayer` gives from the same atoms.
    Differs: a layer keeps the channels, kernel, stride and padding of the convolution it replaces, so that it fits any
    architecture, where the authors' own small CNN has 16 and 32 channels, kernels of 5, stride 1 and dropout of .09
    behind each; weights are float32, theirs float16. Each layer standardises every image it sees, which removes
    brightness and contrast and so is a change of its own.
    """

    layers: int = 2
    lam: float = 0.5
    iterations: int = 50
    tau: float = 10.0
    train: Literal["random", "backprop"] = "random"

    def __post_init__(self) -> None:
        if self.layers not in (1, 2):
            raise UserError(f"sca: layers must be 1 or 2, got {self.layers}")
        if not 0 <= self.lam < math.inf:
            raise UserError(f"sca: lam must be >= 0 and finite, got {self.lam}")
        if not self.iterations >= 1:
            raise UserError(f"sca: iterations must be >= 1, got {self.iterations}")
        if not 1 <= self.tau < math.inf:
            raise UserError(f"sca: tau must be >= 1 and finite, got {self.tau}")

    def surgery(self, model: nn.Module) -> nn.Module:
        """Swap the convolutions; a batch norm is added where none follows.

        Raises:
            UserError: The trunk does not begin with so many plain convolutions in a row.
        """
        assert isinstance(model, Classifier)
        leaves = [(path, layer) for path, layer in model.trunk.named_modules() if not list(layer.children())]
        places = [place for place, (_, layer) in enumerate(leaves) if isinstance(layer, nn.Conv2d)][: self.layers]
        channels = max(model.prepare.image_shape[0], model.prepare.mean.shape[1])
        for place in places:
            path, conv = leaves[place]
            assert isinstance(conv, nn.Conv2d)
            if not _plain(conv) or conv.in_channels != channels:
                raise self._refusal(f"its layer {path} is grouped, dilated or reads something else")
            channels = conv.out_channels
        if len(places) < self.layers:
            raise self._refusal(f"it has {len(places)}")
        for place in places:
            path, conv = leaves[place]
            assert isinstance(conv, nn.Conv2d)
            layer: nn.Module = SparseLayer(conv, self.lam, self.iterations, self.tau, self.train == "backprop")
            if not any(isinstance(after, nn.BatchNorm2d) for _, after in leaves[place + 1 : place + 2]):
                layer = nn.Sequential(layer, nn.BatchNorm2d(conv.out_channels))
            model.trunk.set_submodule(path, layer)
        return model

    def _refusal(self, why: str) -> Lacks:
        return Lacks(
            f"sca: with layers={self.layers} the architecture must begin with so many plain convolutions, each reading "
            f"the one before, but {why}; ask for fewer layers",
            "models",
            "convolutions",
        )


def _plain(conv: nn.Conv2d) -> bool:
    simple = (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
    return simple and not isinstance(conv.padding, str)
