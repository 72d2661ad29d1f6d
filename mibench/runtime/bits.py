"""Which facts about a machine decide the bits of a result: what "the same bytes" is promised under."""

from collections.abc import Mapping
from typing import Any

__all__ = ["BITS", "other_bits"]

BITS = ("device", "devices", "gpu", "precision", "threads", "capability", "machine", "torch")
"""Of `describe`: what decides how sums are rounded. Where these agree, the same run has the same bytes."""


def other_bits(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two descriptions differ in what decides bits: `threads 1, 2`; what either does not say is no difference.

    Of a device only its kind counts (cuda:0 and cuda:1 are one), of torch its major and minor number.
    """
    differences = []
    for name in BITS:
        values = [_kind(name, side[name]) if side.get(name) is not None else None for side in (one, other)]
        if None not in values and values[0] != values[1]:
            differences.append(f"{name} {values[0]}, {values[1]}")
    return differences


def _kind(name: str, value: Any) -> str:
    text = str(value)
    return text.split(":")[0] if name == "device" else ".".join(text.split(".")[:2]) if name == "torch" else text
