"""Checks of a source's fields: each error names the field, what was given and what is allowed."""

from mibench.runtime.errors import UserError

__all__ = ["fraction", "whole"]


def whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse anything but a whole number in [low, high].

    Raises:
        UserError: `value` is no int, or lies outside.
    """
    # True is an int to Python; as a count it is a slip.
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value
    if not fits or (high is not None and value > high):  # type: ignore[operator]
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} = {value!r} does not fit; give a whole number {allowed}")


def fraction(name: str, value: object) -> None:
    """Refuse anything but a number strictly between 0 and 1.

    Raises:
        UserError: `value` is no number, is NaN, or lies outside.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 < value < 1.0:  # type: ignore[operator]
        raise UserError(f"{name} = {value!r} does not fit; give a number between 0 and 1, both excluded")
