"""The last layer of a classifier, for defenses that put another in its place."""

from torch import nn

from mibench.models.base import Classifier
from mibench.runtime.errors import UserError

__all__ = ["linear_head"]


def linear_head(model: Classifier, defense: str) -> nn.Linear:
    """The last layer, as architectures come.

    Args:
        model: Whose last layer.
        defense: Who asks, for the error.

    Raises:
        UserError: Another defense has replaced it already.
    """
    if not isinstance(model.head, nn.Linear):
        raise UserError(
            f"{defense} replaces a linear last layer; here it is a {type(model.head).__name__} already: leave out the "
            "other defense of the head, or take an unchanged architecture such as cnn"
        )
    return model.head
