"""What a metric says of itself, once: its column, header, unit, direction, meaning, needs and source.

A metric's file holds a literal `CARD` (what to cite) and `METRICS`, the declarations of the numbers it gives. Scoring,
tables, exports, the glossary and citations read these; nothing about a metric is written down a second time.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["Direction", "Field", "Metric", "Need", "Per", "Unavailable", "Unit", "missing"]


def missing(value: Any) -> bool:
    """None or NaN: there is no number."""
    return value is None or bool(value != value)


class Unit(Enum):
    """What a number is measured in; it owns the words for that and how the number is shown."""

    SHARE = "share in [0, 1], shown in %"
    POINTS = "difference of two shares in [-1, 1], shown in percentage points"
    SQUARED_L2 = "squared L2 distance in a network's features"
    DISTANCE = "distance without a unit"
    RATIO = "multiple"
    NUMBER = "number without a unit"
    COUNT = "count"
    SECONDS = "seconds"
    FLAG = "yes or no"
    TEXT = "text"

    @property
    def words(self) -> str:
        """What the stored number is, and what the shown one."""
        return str(self.value)

    @property
    def sign(self) -> str:
        """What stands after the shown number: %, points, s, or nothing."""
        return {Unit.SHARE: "%", Unit.POINTS: "points", Unit.SECONDS: "s"}.get(self, "")

    def show(self, value: Any, digits: int = 1) -> str:
        """A value as a table shows it, without its sign; '' where there is none.

        Args:
            value: As stored.
            digits: Decimals of a share's or a difference's bounds; 0 also shortens counts (12.6k), for narrow places.
        """
        if missing(value):
            return ""
        if self is Unit.SHARE:  # all and nothing without decimals
            return f"{100 * value:.{0 if value in (0, 1) else 1}f}"
        if self is Unit.POINTS:
            return f"{100 * value:+.1f}"
        if self is Unit.COUNT:
            return _count(value, digits)
        if self is Unit.SECONDS:
            return f"{value:,.{1 if value < 100 else 0}f}"
        if self in (Unit.FLAG, Unit.TEXT):
            return str(value)
        return _amount(value)

    def interval(self, value: Any, low: Any, high: Any, digits: int = 1) -> str:
        """`82.0 [74,88]`; without bounds where there is no interval."""
        if missing(value) or missing(low) or missing(high):
            return self.show(value, digits)
        bounds = (
            [f"{100 * bound:{'+' if self is Unit.POINTS else ''}.{digits}f}" for bound in (low, high)]
            if self in (Unit.SHARE, Unit.POINTS)
            else [self.show(bound, digits) for bound in (low, high)]
        )
        return f"{self.show(value, digits)} [{','.join(bounds)}]"


def _amount(value: Any) -> str:
    """Three significant digits, at most four decimals, never in powers of ten below a million."""
    decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 4)}f}"


def _count(value: Any, digits: int) -> str:
    """A whole number; where no digits are wanted thousands and millions in short."""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if digits == 0 and value >= 10 * size:
            return f"{_amount(value / size)}{sign}"
    return f"{value:,.0f}"


class Direction(Enum):
    """Which way the attacker got more."""

    HIGHER = "higher leaks more"
    LOWER = "lower leaks more"
    NEITHER = "says nothing of leakage alone"

    @property
    def words(self) -> str:
        """For tables and glossaries."""
        return str(self.value)

    @property
    def factor(self) -> int:
        """1, -1 or 0: what to multiply a value with so that more of it leaks more."""
        return {Direction.HIGHER: 1, Direction.LOWER: -1}.get(self, 0)


class Need(Enum):
    """What a metric cannot be computed without."""

    EVALUATOR = "an evaluation model"
    TWO_EVALUATORS = "two evaluation models of different families"
    FEATURES = "the features of an evaluation model, or Inception's"
    TARGET = "the target"
    TRAIN = "the person's private training images"
    HELDOUT = "held-out images of the person"
    STRANGERS = "real images of other people"
    VERIFIER = "a verifier: a matcher trained on people who play no other part"
    GROUND_TRUTH = "data whose people are known exactly, and a prior that draws them"
    WEIGHTS = "a file of published weights"

    @property
    def words(self) -> str:
        """For glossaries."""
        return str(self.value)


class Per(Enum):
    """What gets one number."""

    IMAGE = "each reconstruction"
    SET = "all reconstructions together"
    NETWORK = "a trained network"

    @property
    def words(self) -> str:
        """For glossaries."""
        return str(self.value)


@dataclass(frozen=True)
class Metric:
    """One number that mibench reports.

    Args:
        name: Its column and JSON key. In a table of several evaluation models `name@model`, or `name@one+other`.
        header: Two lines above its column; {model} stands for the evaluation model.
        unit: Of the stored value.
        direction: Which way the attacker got more.
        summary: What it is, in one sentence without a full stop.
        range: Of the stored value.
        per: What gets one number.
        needs: Without which it is absent, never 0.
        interval: Whether `name_low` and `name_high` stand beside it: 95%, clustered by identity.
        module: The file below `mibench/metrics` that defines it and whose CARD says what to cite; filled in when
            declarations are collected.
    """

    name: str
    header: tuple[str, str]
    unit: Unit
    direction: Direction
    summary: str
    range: str
    per: Per = Per.IMAGE
    needs: tuple[Need, ...] = ()
    interval: bool = True
    module: str = ""

    def column(self, at: str = "", bound: str = "") -> str:
        """`open_top1_low@resnet`: the column's name for an evaluation model (or two: `resnet+ir`) and a bound."""
        return f"{self.name}{f'_{bound}' if bound else ''}{f'@{at}' if at else ''}"

    def heading(self, at: str = "") -> tuple[str, str]:
        """Both lines of the header."""
        top, bottom = (line.replace("{model}", at) for line in self.header)
        return top, bottom

    @property
    def link(self) -> str:
        """Where its source can be read; '' where it is our own."""
        return str(self.card.get("link", ""))

    @property
    def card(self) -> dict[str, Any]:
        """What to cite: title, authors, venue, year, link."""
        from mibench.plugins import registry

        return registry.card("metrics", self.module)


@dataclass(frozen=True)
class Field:
    """A column or JSON key that is no metric: what something is called, what it cost, how it was made.

    Args:
        name: The column, or the path of a JSON key: `card.split.classes`; `*` stands for any one key.
        unit: Of the value.
        summary: What it is, without a full stop.
        source: Where it comes from.
    """

    name: str
    unit: Unit
    summary: str
    source: str


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
