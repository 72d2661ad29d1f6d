"""What a model says of its input and output, and the scores in what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mibench.runtime.errors import UserError

__all__ = ["NOTHING", "Declared", "first", "from_shape", "told"]


@dataclass(frozen=True)
class Declared:
    """What a model says of its own input and output; None and empty where it says nothing.

    Args:
        channels: 1 or 3.
        size: Side of the only square that it takes.
        usual: Side of the square that its architecture is published for; it may take others.
        last: Channels come last (n, h, w, c).
        bytes: It takes uint8.
        means: (mean, std) that come with its architecture, by name.
        classes: Names of its outputs, in order.
        batch: How many images it takes at once; None for any number.
    """

    channels: int | None = None
    size: int | None = None
    last: bool = False
    bytes: bool = False
    means: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    batch: int | None = None
    usual: int | None = None


NOTHING = Declared()
"""A model that says nothing of itself."""


def first(output: Any) -> Float[Tensor, "n k"]:
    """The scores in whatever a network returns, one row an image.

    Raises:
        UserError: There are none.
    """
    if hasattr(output, "logits") and isinstance(output.logits, Tensor):
        output = output.logits
    if isinstance(output, Mapping):
        named = ("logits", "scores", "probs", "probabilities", "output", "embedding", "embeddings")
        output = next((output[key] for key in named if key in output), next(iter(output.values()), None))
    if isinstance(output, tuple | list):
        output = next((one for one in output if isinstance(one, Tensor)), None)
    if not isinstance(output, Tensor):
        raise UserError(f"the model returns {type(output).__name__}; it should return one row of scores for each image")
    if output.ndim > 2 and output[0].numel() == output.shape[1]:
        output = output.flatten(1)  # (n, k, 1, 1), from a network that ends in a convolution
    if output.ndim != 2:
        raise UserError(
            f"the model returns a tensor of shape {tuple(output.shape)}; it should return one row of scores for each "
            "image: (images, classes), or (images, width) for embeddings"
        )
    return output.float()


def from_shape(shape: tuple[Any, ...] | None, batch: int | None) -> Declared:
    """What an input's declared shape says; sizes that are not numbers are free."""
    if shape is None:
        return Declared(batch=batch)
    sizes = [one if isinstance(one, int) else None for one in shape]
    last = sizes[1] not in (1, 3) and sizes[3] in (1, 3)
    channels, height = (sizes[3], sizes[1]) if last else (sizes[1], sizes[2])
    return Declared(channels if channels in (1, 3) else None, height, last, batch=batch)


def told(error: Exception) -> str:
    """What an error says, in its first line."""
    return (str(error) or type(error).__name__).split("\n", 1)[0]
