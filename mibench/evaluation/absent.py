"""Identities of whom an attack returned no image: a miss in everything that counts hits, left out of what is measured.

They keep their rows, so that n stays what was asked. Their pixels are grey and say nothing: hits are False, a measured
value is NaN, the class that a model names is -1. A mean of hits has them in its n; a mean of a distance has not.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mibench.stats.intervals import Interval, clustered_interval

__all__ = ["mean", "means", "spread", "without"]


def without(columns: Mapping[str, Tensor], absent: Bool[Tensor, " n"] | None) -> dict[str, Tensor]:
    """Columns in which rows without an image are misses, or have no value.

    Args:
        columns: Values of each image: hits as Bool, measured values as floats, classes as integers.
        absent: The rows without an image; None where every row has one.
    """
    if absent is None:
        return dict(columns)
    return {name: _blank(values, absent.to(values.device)) for name, values in columns.items()}


def _blank(values: Tensor, absent: Bool[Tensor, " n"]) -> Tensor:
    if values.dtype == torch.bool:
        return values & ~absent
    return values.masked_fill(absent, torch.nan if values.is_floating_point() else -1)


def spread(columns: Mapping[str, Tensor], absent: Bool[Tensor, " n"] | None) -> dict[str, Tensor]:
    """Columns of the rows that have an image, with rows for those that have none."""
    if absent is None:
        return dict(columns)
    place = (~absent).cumsum(0).sub(1).clamp(min=0)
    return without({name: values[place.to(values.device)] for name, values in columns.items()}, absent)


def mean(values: Tensor, labels: Int64[Tensor, " n"]) -> Interval:
    """The mean with its 95% interval clustered by identity; of a measured quantity over the rows that have a value."""
    if values.dtype == torch.bool:
        return clustered_interval(values, labels)
    known = ~values.isnan()
    return clustered_interval(values[known], labels[known.to(labels.device)])


def means(columns: Mapping[str, Tensor], labels: Int64[Tensor, " n"]) -> dict[str, Interval]:
    """Each column's mean with its 95% interval clustered by identity."""
    return {name: mean(values, labels) for name, values in columns.items()}
