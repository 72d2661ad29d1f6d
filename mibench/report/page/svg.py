"""SVG as escaped markup: elements, axes and marks that the charts are drawn of.

Colours and letters come from the page's style sheet by class, so that one drawing serves light, dark and paper. A saved
figure takes the styles along (page.js).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape

from mibench.runtime.escape import terminal

__all__ = ["Scale", "drawing", "el", "mark", "text", "ticks"]


def el(tag: str, *children: Any, **attributes: Any) -> Markup:
    """One element; `class_` is `class`, `stroke_width` is `stroke-width`; what is None is left out. Everything is
    escaped but children that are markup."""
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(child if isinstance(child, Markup) else escape(terminal(str(child))) for child in children)
    return Markup(f"<{tag}{told}>{inside}</{tag}>")


def _value(value: Any) -> Markup:
    if isinstance(value, float):
        return escape(f"{value:.2f}".rstrip("0").rstrip("."))
    return escape(terminal(str(value)))


def text(x: float, y: float, words: str, kind: str = "", anchor: str | None = None, **attributes: Any) -> Markup:
    """A line of text; `anchor` as SVG has it."""
    return el("text", words, x=float(x), y=float(y), class_=kind or None, text_anchor=anchor, **attributes)


class Scale:
    """From values to places on a drawing, linear or in powers of ten.

    Args:
        low: The least value.
        high: The greatest.
        start: The place of the least.
        end: The place of the greatest.
        log: Whether equal steps are equal factors; values are above 0 then.
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        """The place of a value; beyond the ends it is at the end."""
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(value) - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value

    @property
    def ticks(self) -> list[float]:
        """Round values within the ends."""
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [10.0**power for power in powers]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` multiples of 1, 2, 2.5 or 5 times a power of ten, from low to high."""
    if not high > low:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10, 20) if (high - low) / (size * factor) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [step * place for place in range(first, math.floor(high / step + 1e-9) + 1)]


def mark(x: float, y: float, kind: str, shape: int = 0, size: float = 5.0) -> Markup:
    """A point: circle, square, diamond, triangle up or down, in turn."""
    shape %= 5
    if shape == 0:
        return el("circle", cx=float(x), cy=float(y), r=size, class_=kind)
    if shape == 1:
        side = 1.8 * size
        return el("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=kind)
    corners = {
        2: [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        3: [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        4: [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    }[shape]
    return el("polygon", points=path((x + size * dx, y + size * dy) for dx, dy in corners), class_=kind)


def path(places: Iterable[tuple[float, float]]) -> str:
    """`1,2 3,4`."""
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def drawing(width: float, height: float, title: str, *children: Markup, about: str = "") -> Markup:
    """A whole drawing with its name for screen readers, and where its numbers stand as a table."""
    named: Sequence[Markup] = (el("title", title), *([el("desc", about)] if about else []))
    return el(
        "svg", *named, *children, viewBox=f"0 0 {width:g} {height:g}", role="img", class_="chart", aria_label=title
    )
