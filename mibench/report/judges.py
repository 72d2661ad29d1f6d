"""Where the judges disagree about a defense: open-set evaluation model, own-ball and verifiers on the same images.

No judge is the truth. A defense whose effect is clear to one and reversed to another has no effect that one number
could tell, and the report says so first.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

import pandas as pd

from mibench.metrics import Unit
from mibench.report.tables import rows
from mibench.stats.intervals import Interval

__all__ = ["MOST", "Disagreement", "Effect", "disagreement", "lines", "sentence", "words"]

JUDGES = {"open_top1": "open-set", "own_ball": "own-ball", "verified": "verifier"}

MOST = 3
"""So many disagreements about a sign are written out in the report's first lines; judges.csv has all."""


class Effect(NamedTuple):
    """What a defense changes, as one judge sees it: defended minus undefended, paired, with its 95% interval."""

    judge: str
    interval: Interval

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def sign(self) -> int:
        """1 leaks more, -1 less, 0 as much."""
        return (self.interval.value > 0) - (self.interval.value < 0)


class Disagreement(Enum):
    """How far judges are apart about one defense."""

    NONE = "agree"
    CLEARNESS = "clear to some"
    SIGN = "opposite signs"

    @property
    def words(self) -> str:
        """As judges.csv has it."""
        return str(self.value)


def disagreement(effects: Sequence[Effect]) -> Disagreement:
    """Whether judges disagree about an effect.

    - `SIGN`: it is clear to one (the interval excludes zero), and has the opposite sign to another.
    - `CLEARNESS`: else, it is clear to one and not to another.
    - `NONE`: it is clear to all, with one sign, or to none.
    """
    sure = [one for one in effects if one.clear]
    if any(one.sign * other.sign < 0 for one in sure for other in effects):
        return Disagreement.SIGN
    return Disagreement.CLEARNESS if 0 < len(sure) < len(effects) else Disagreement.NONE


def words(column: str) -> str:
    """`open-set resnet`, `own-ball resnet`, `verifier ir`."""
    name, _, at = column.partition("@")
    return f"{JUDGES.get(name, name)} {at}".strip()


def sentence(about: str, effects: Sequence[Effect]) -> str:
    """What the judges say of one comparison, in a line; '' where they agree.

    Args:
        about: The defense and the attack.
        effects: By each judge.
    """
    kind = disagreement(effects)
    if kind is Disagreement.NONE:
        return ""

    def told(known: Iterable[Effect]) -> str:
        return ", ".join(f"{one.judge} {Unit.POINTS.interval(*one.interval[:3])}" for one in known)

    down, up = ([one for one in effects if one.sign == sign] for sign in (-1, 1))
    if kind is Disagreement.SIGN:
        return f"{about}: the judges disagree about the sign; less leaks by {told(down)}; more by {told(up)} points"
    sure, unsure = ([one for one in effects if one.clear is clear] for clear in (True, False))
    return f"{about}: clear by {told(sure)}, not by {told(unsure)} points"


def lines(judged: pd.DataFrame) -> list[str]:
    """What a report says first: every defense on whose effect the judges disagree.

    Args:
        judged: Rows of judges.csv.
    """
    if judged.empty:
        return []
    told: dict[Disagreement, list[str]] = {Disagreement.SIGN: [], Disagreement.CLEARNESS: []}
    names: dict[Disagreement, list[str]] = {Disagreement.SIGN: [], Disagreement.CLEARNESS: []}
    for (_, defense, attack), group in judged.groupby(["protocol", "defense", "attack"], sort=False):
        effects = [
            Effect(
                words(row["judge"]),
                Interval(row["difference"], row["difference_low"], row["difference_high"], row["n"], row["identities"]),
            )
            for row in rows(group)
        ]
        kind = disagreement(effects)
        if kind is not Disagreement.NONE:
            about = f"{defense} under {attack}"
            told[kind].append(sentence(about, effects))
            names[kind].append(about)
    signs, clearness = told[Disagreement.SIGN], names[Disagreement.CLEARNESS]
    said = [f"Judges disagree: {line}." for line in signs[:MOST]]
    if len(signs) > MOST:
        said.append(f"Judges disagree about the sign of {len(signs) - MOST} more effects: judges.csv.")
    if clearness:
        more = f" and {len(clearness) - MOST} more" if len(clearness) > MOST else ""
        said.append(f"Clear to some judges only: {', '.join(clearness[:MOST])}{more} (judges.csv).")
    return said
