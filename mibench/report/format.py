"""Cells: the numbers of a row as people read them. Units own how a number is shown (`metrics.Unit`)."""

from collections.abc import Mapping
from typing import Any

from mibench.metrics import Unit
from mibench.metrics.declaration import missing

__all__ = ["bounded", "coefficient", "missing", "probability", "shown"]


def bounded(row: Mapping[str, Any], column: str) -> tuple[Any, Any, Any]:
    """Value and bounds: of `knn_train@ir` the columns knn_train@ir, knn_train_low@ir and knn_train_high@ir."""
    name, at, network = column.partition("@")
    value, low, high = (row.get(f"{name}{end}{at}{network}") for end in ("", "_low", "_high"))
    return value, low, high


def shown(row: Mapping[str, Any], column: str, unit: Unit, digits: int, mark: str = "") -> str:
    """`82.0 [74,88]`, or `-12.0* [-20,-4]` with a mark: the one way a number with an interval is shown.

    Args:
        row: A row of a frame.
        column: Of the value; its bounds stand beside it, or there are none.
        unit: Of the value.
        digits: Of the bounds of shares and differences.
        mark: What follows the value.
    """
    value, bracket, bounds = unit.interval(*bounded(row, column), digits).partition(" [")
    return f"{value}{mark if value else ''}{bracket}{bounds}"


def probability(value: Any) -> str:
    """A p-value with three digits, without its leading zero."""
    if missing(value):
        return ""
    return "<.001" if value < 0.0005 else f"{value:.3f}".lstrip("0") if value < 0.9995 else "1"


def coefficient(value: Any, digits: int = 2) -> str:
    """A number around 1 with so many decimals: Gini coefficients, Delta, hypervolumes."""
    return "" if missing(value) else f"{value:.{digits}f}"
