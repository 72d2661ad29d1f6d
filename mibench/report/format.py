"""Numbers as people read them: rates in %, differences in points, everything else in three significant digits.

An empty text stands for a number that is not there, never a 0.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "amount",
    "count",
    "missing",
    "percent",
    "points",
    "probability",
    "rate",
    "seconds",
    "signed",
    "with_interval",
]


def missing(value: Any) -> bool:
    """None or NaN."""
    return value is None or bool(value != value)


def with_interval(
    value: Any, low: Any, high: Any, show: Callable[[Any], str], bound: Callable[[Any], str] | None = None
) -> str:
    """`82.0 [74,88]`: a number with its interval; without brackets where no interval exists.

    Args:
        value: The number.
        low: Its lower bound.
        high: Its upper bound.
        show: The number as text.
        bound: A bound as text; as the number if absent.
    """
    if missing(value) or missing(low) or missing(high):
        return show(value)
    bound = bound or show
    return f"{show(value)} [{bound(low)},{bound(high)}]"


def _columns(row: Mapping[str, Any], key: str) -> tuple[Any, Any, Any]:
    """Value and bounds of `open_top1@resnet`: the columns open_top1@resnet, open_top1_low@resnet, ..._high@resnet."""
    name, at, network = key.partition("@")
    value, low, high = (row.get(f"{name}{end}{at}{network}") for end in ("", "_low", "_high"))
    return value, low, high


def rate(row: Mapping[str, Any], key: str, digits: int) -> str:
    """A rate of a row as `82.0 [74,88]`, in %; its bounds with so many digits."""
    return with_interval(*_columns(row, key), percent, lambda bound: f"{100 * bound:.{digits}f}")


def points(row: Mapping[str, Any], key: str, digits: int, mark: str = "") -> str:
    """A difference of rates as `-12.0* [-20,-4]`, in points."""
    value, low, high = _columns(row, key)
    return with_interval(
        value,
        low,
        high,
        lambda value: signed(value) + (mark if not missing(value) else ""),
        lambda bound: f"{100 * bound:+.{digits}f}",
    )


def percent(value: Any) -> str:
    """A rate as a percentage with one digit; all and nothing without."""
    return "" if missing(value) else f"{100 * value:.{0 if value in (0, 1) else 1}f}"


def signed(value: Any) -> str:
    """A difference of rates in points, with its sign."""
    return "" if missing(value) else f"{100 * value:+.1f}"


def probability(value: Any) -> str:
    """A p-value with three digits, without its leading zero."""
    if missing(value):
        return ""
    return "<.001" if value < 0.0005 else f"{value:.3f}".lstrip("0") if value < 0.9995 else "1"


def amount(value: Any) -> str:
    """A quantity with three significant digits, never in powers of ten below a million."""
    if missing(value):
        return ""
    whole = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(whole, 4)}f}"


def count(value: Any, digits: int = 1) -> str:
    """A number of images; in the terminal (digits 0) thousands and millions in short: 12.6k."""
    if missing(value):
        return ""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if digits == 0 and value >= 10 * size:
            return f"{amount(value / size)}{sign}"
    return f"{value:,.0f}"


def seconds(value: Any) -> str:
    """Wall-clock time, to a tenth where that is much."""
    return "" if missing(value) else f"{value:,.{1 if value < 100 else 0}f}"
