"""What an attacker may ask of the target."""

from enum import IntEnum

__all__ = ["Access"]


class Access(IntEnum):
    """What an attacker may ask of the target; each level includes the ones below, so a higher number is a stronger one.

    Specifications, cards and columns of files write `key`; sentences and headers write `words`.
    """

    LABEL_ONLY = 1
    BLACK_BOX = 2
    WHITE_BOX = 3

    @property
    def key(self) -> str:
        """`white_box`."""
        return self.name.lower()

    @property
    def words(self) -> str:
        """`white box`."""
        return self.key.replace("_", " ")

    @property
    def adjective(self) -> str:
        """`white-box`, before a noun."""
        return self.key.replace("_", "-")

    @classmethod
    def of(cls, key: str) -> "Access":
        """The level that a card or a specification writes; `none`, an attack that never asks, gets the least.

        Raises:
            KeyError: Another word.
        """
        return cls.LABEL_ONLY if key == "none" else cls[key.upper()]

    @classmethod
    def strongest_first(cls) -> "list[Access]":
        """All levels, the order of tables and figures."""
        return sorted(cls, reverse=True)
