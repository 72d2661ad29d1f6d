"""Metrics of other packages: functions of the images and of real images of the same people, by the name they declare.

    name(x, labels, references, reference_labels) -> one value per image

`references` are the private training images of the people attacked, or their held-out images where the declaration
needs those, in [0, 1]. Only declarations of one number per image take part.
"""

import importlib
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mibench.core import Dataset, to_float
from mibench.metrics.declaration import Metric, Need, Per, Unit
from mibench.metrics.glossary import declared
from mibench.plugins import registry
from mibench.runtime.errors import UserError

__all__ = ["bounds", "measured", "outside"]


def bounds(one: Metric) -> tuple[float, float]:
    """The ends of a declared range such as `[0, 100]` or `[0, inf)`; infinite where it is in words."""
    if one.unit is Unit.SHARE:
        return 0.0, 1.0
    try:
        low, high = (float(end.strip(" []()")) for end in one.range.split(","))
    except ValueError:
        return -math.inf, math.inf
    return low, high


def outside() -> dict[str, tuple[Metric, Callable[..., Tensor]]]:
    """Declared name -> declaration and function, of metrics of other packages.

    Raises:
        UserError: If a module has no function of the name that it declares.
    """
    functions: dict[str, tuple[Metric, Callable[..., Tensor]]] = {}
    for one in declared().values():
        if registry.is_own("metrics", one.module) or one.per is not Per.IMAGE:
            continue
        registry.require_contract("metrics", one.module)
        module = importlib.import_module(registry.module_of("metrics", one.module))
        call = getattr(module, one.name, None)
        if not callable(call):
            raise UserError(
                f"the metric {one.name} is declared in {module.__name__}, which has no function of that name; define "
                f"{one.name}(x, labels, references, reference_labels)"
            )
        functions[one.name] = (one, call)
    return functions


def measured(
    data: Dataset, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
) -> dict[str, Float[Tensor, " n"]]:
    """Values of each image by metric, on the CPU.

    Args:
        data: Real images of the people.
        images: Reconstructions as stored.
        labels: Whom they claim to show.

    Raises:
        UserError: If a metric gives something else than one finite number per image.
    """
    columns = {}
    for name, (one, call) in outside().items():
        split = data.heldout if Need.HELDOUT in one.needs else data.train
        real = split.take(torch.isin(split.labels, labels).nonzero()[:, 0])
        with torch.no_grad():
            values = call(to_float(images), labels, to_float(real.images), real.labels)
        if (
            not isinstance(values, Tensor)
            or values.shape != (len(images),)
            or not bool(values.double().isfinite().all())
        ):
            raise UserError(
                f"the metric {name} gave {tuple(getattr(values, 'shape', ()))} for {len(images)} images, or what is no "
                f"finite number; see: mibench check-plugin {one.module}"
            )
        columns[name] = values.float().cpu() if values.dtype != torch.bool else values.cpu()
    return columns
