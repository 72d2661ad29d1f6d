"""What every classifier is: logits = head(trunk(prepare(x))), with features = trunk(prepare(x))."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mibench.runtime.errors import UserError

__all__ = ["Classifier", "Prepare", "initialise", "no_larger_than", "no_weights", "side_of", "unfilled"]

_most: int | None = None


@contextmanager
def no_larger_than(side: int) -> Iterator[None]:
    """While it lasts, networks are built that look at smaller images than theirs where they can: for rehearsals.

    Args:
        side: In pixels.
    """
    global _most
    before, _most = _most, side
    try:
        yield
    finally:
        _most = before


def side_of(usual: int, least: int = 32) -> int:
    """The side at which a network looks at images: its usual one, but within `no_larger_than`.

    Args:
        usual: In pixels.
        least: The smallest that it takes.
    """
    return usual if _most is None else min(usual, max(least, _most))


DRAWS = (
    *(torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
)
"""What draws into a parameter; of `nn.init` those that are handed over as a whole."""


class unfilled(TorchFunctionMode):
    """While it lasts, no random number is drawn into a parameter: for networks that get all of theirs from a file.

    What the parameters hold then is whatever lay in memory. Buffers and plain tensors are drawn as ever.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call itself, or nothing in the place of a drawing."""
        kwargs = kwargs or {}
        if func in DRAWS and isinstance(drawn := args[0] if args else kwargs["tensor"], nn.Parameter):
            return drawn
        return func(*args, **kwargs)


class Prepare(nn.Module):
    """Images in [0, 1] to what a trunk expects: (resize(x) - mean) / std; a grey image is repeated if mean has 3.

    The resize is bilinear and antialiased, R_h x R_w^T with the matrices that `interpolate(antialias=True)` applies:
    as a matrix product its gradient is the same bits on every run, which interpolate's on CUDA is not.

    Args:
        image_shape: (channels, height, width) of the incoming images.
        mean: In units of [0, 1]: one value for all channels, or three.
        std: As `mean`.
        size: Side of the square the trunk demands; None keeps the images' own size.
    """

    mean: Tensor
    std: Tensor
    rows: Tensor | None
    columns: Tensor | None

    def __init__(
        self, image_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], size: int | None = None
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        _, height, width = image_shape
        rows = columns = None
        if size is not None and (height, width) != (size, size):
            rows, columns = _resize_matrix(height, size), _resize_matrix(width, size).T
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """In float32 whatever the precision of the trunk, because bfloat16 would keep only 8 bits of a pixel.

        Raises:
            UserError: The images are not of the shape the model was built for.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise UserError(
                f"the model was built for images of shape {self.image_shape}, got {tuple(x.shape[1:])}; resize or "
                "convert the images, or build the model for their shape"
            )
        x = x.float()
        if self.rows is not None and self.columns is not None:
            kind = x.device.type
            known = torch.amp.is_autocast_available(kind)  # not to the meta device, on which sizes are planned
            with torch.autocast(kind, enabled=False) if known else nullcontext():
                x = self.rows @ x @ self.columns
        return (x - self.mean) / self.std


def _resize_matrix(length: int, size: int) -> Float[Tensor, "{size} {length}"]:
    """The matrix of one axis: interpolating an identity along its rows spells out the weights."""
    identity = torch.eye(length)[None, None]
    return F.interpolate(identity, (size, length), mode="bilinear", antialias=True)[0, 0]


class Classifier(nn.Module):
    """A classifier: forward(x) = head(features(x)), x in [0, 1].

    Args:
        prepare: Resizing and normalisation; not trained.
        trunk: Prepared images to features; its children are the stages, by name.
        head: Features to logits; the last layer.
        feature_dim: Width of the features.
        auxiliary: Where in the trunk a second head lies, whose output in train mode are logits, too: training adds
            their loss with weight 1. Nothing else reads it.
    """

    def __init__(
        self, prepare: Prepare, trunk: nn.Module, head: nn.Module, feature_dim: int, auxiliary: str | None = None
    ) -> None:
        super().__init__()
        self.prepare = prepare
        self.trunk = trunk
        self.head = head
        self.feature_dim = feature_dim
        self.auxiliary = auxiliary

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The input of the last layer."""
        out: Tensor = self.trunk(self.prepare(x))
        return out

    def serve(self, features: Float[Tensor, "n d"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The logits that a caller is given for images with these features."""
        out: Tensor = self.head(features)
        return out

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, as served."""
        return self.serve(self.features(x), x)


def initialise(module: nn.Module) -> None:
    """Kaiming-normal convolutions (fan out); for `net.apply`. Other layers keep torch's own start."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def no_weights(name: str) -> UserError:
    """The error for `pretrained=True` where no published weights can be had."""
    return UserError(
        f"'{name}' has no ImageNet weights; train it without pretrained weights, or choose vgg16_bn64 or one of "
        "torchvision's or timm's architectures"
    )
