"""One metric a file: pure functions of tensors. A module with a `CARD` is a metric; the others are what
metrics share.

Importing this package is cheap: no torch.
"""

from dataclasses import dataclass

__all__ = ["Unavailable"]


@dataclass(frozen=True)
class Unavailable:
    """A metric that cannot be computed here, returned in its network's place.

    Args:
        name: The metric.
        why: What is missing.
        how: What the user can do about it.
    """

    name: str
    why: str
    how: str
