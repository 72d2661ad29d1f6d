"""What an attacker may ask of the target."""

from enum import IntEnum

__all__ = ["Access"]


class Access(IntEnum):
    """What an attacker may ask of the target; each level includes the ones below."""

    LABEL_ONLY = 1
    BLACK_BOX = 2
    WHITE_BOX = 3
