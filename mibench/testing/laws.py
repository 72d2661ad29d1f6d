"""A law of the contract: what holds of every plug-in of a kind, how it is tried, and what is said when it is broken.

Laws build on one another: where an attack is not repeatable, nothing can be said of its batches. A law whose ground is
broken is not judged, so that one mistake is one broken law.
"""

import traceback
import unittest
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from mibench.plugins import registry
from mibench.runtime import escape
from mibench.runtime.errors import UserError, unknown

__all__ = [
    "KINDS",
    "Broken",
    "Check",
    "ContractBroken",
    "DoesNotApply",
    "Law",
    "Report",
    "Verdict",
    "checks",
    "judge",
    "law",
]

T = TypeVar("T")

KINDS = {"attack": "attacks", "defense": "defenses", "prior": "priors", "data": "data", "metric": "metrics"}
"""Kinds of plug-in that have a contract, and what the registry calls them."""

Outcome = Literal["kept", "broken", "expected", "not judged", "does not apply"]


class Broken(AssertionError):
    """A law is broken.

    Args:
        seen: What was seen, beside what was to be seen.
        do: What the author can do about it.
    """

    def __init__(self, seen: str, do: str) -> None:
        super().__init__(f"{seen}; {do}")
        self.seen, self.do = seen, do


class DoesNotApply(Exception):
    """A law has nothing to say of this plug-in; the text says why."""


class ContractBroken(AssertionError):
    """A plug-in breaks laws of its contract: one line for each."""


@dataclass(frozen=True)
class Law(Generic[T]):
    """One law of a kind of plug-in.

    Args:
        name: One or two words.
        says: The law, in one sentence.
        check: Raises `Broken` where it does not hold, `DoesNotApply` where it has nothing to say.
        needs: Laws without which this one cannot be judged; they come before it.
    """

    name: str
    says: str
    check: Callable[[T], None]
    needs: tuple[str, ...] = ()


def law(book: list[Law[T]], *needs: str) -> Callable[[Callable[[T], None]], Callable[[T], None]]:
    """Put a function into a book of laws: its name is the law's, the first line of its docstring is what it says."""

    def put(check: Callable[[T], None]) -> Callable[[T], None]:
        known = {one.name for one in book}
        assert set(needs) <= known, f"{check.__name__} builds on {set(needs) - known}, which come later or not at all"
        says = (check.__doc__ or "").strip().splitlines()[0].removesuffix(".")
        book.append(Law(check.__name__.strip("_").replace("_", " "), says, check, needs))
        return check

    return put


class Verdict(NamedTuple):
    """What trying a law has shown."""

    law: str
    says: str
    outcome: Outcome
    seconds: float
    seen: str = ""
    do: str = ""

    @property
    def line(self) -> str:
        """The law, what was seen, what to do."""
        why = f": {self.seen}" if self.seen else ""
        return escape.terminal(f"{self.law} ({self.says}){why}{f'; {self.do}' if self.do else ''}")


@dataclass(frozen=True)
class Report:
    """What trying all laws on one plug-in has shown.

    Args:
        kind: `attack`, `defense`, `prior`, `metric` or `data`.
        name: The plug-in's.
        verdicts: In the order of the laws.
    """

    kind: str
    name: str
    verdicts: tuple[Verdict, ...] = field(repr=False)

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """The laws that it breaks."""
        return tuple(one for one in self.verdicts if one.outcome == "broken")

    @property
    def passed(self) -> bool:
        """Whether it breaks none."""
        return not self.broken

    @property
    def seconds(self) -> float:
        """By the clock."""
        return sum(one.seconds for one in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """For `mibench check-plugin --json`."""
        return {
            "kind": self.kind,
            "name": self.name,
            "passed": self.passed,
            "seconds": round(self.seconds, 2),
            "laws": [one._asdict() | {"seconds": round(one.seconds, 2)} for one in self.verdicts],
        }


class Trial:
    """A plug-in on trial; subclasses hold what its laws look at. Each law is tried once and its verdict kept.

    Args:
        name: The plug-in's.
        settings: Over its defaults and the card's `toy` settings, for laws that take many runs.
    """

    kind: str

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.card = registry.card(KINDS[self.kind], name)
        self.toy: Mapping[str, Any] = self.card.get("toy", {})
        self.settings = dict(self.toy.get("short", {})) | dict(settings or {})
        self.known: dict[str, Verdict] = {}
        self.errors: dict[str, BaseException] = {}
        self.expected: Mapping[str, str] = {}


def judge(trial: Any, one: Law[Any], book: Iterable[Law[Any]]) -> Verdict:
    """Try one law, and before it those that it builds on, unless that has been done."""
    if one.name in trial.known:
        return trial.known[one.name]
    grounds = [judge(trial, other, book) for other in book if other.name in one.needs]
    loose = [ground.law for ground in grounds if ground.outcome in ("broken", "expected", "not judged")]
    if loose:
        verdict = Verdict(one.name, one.says, "not judged", 0.0, f"it builds on {' and '.join(loose)}")
    else:
        verdict = _tried(trial, one)
    if verdict.outcome == "broken" and one.name in trial.expected:
        verdict = verdict._replace(outcome="expected", do=trial.expected[one.name])
    trial.known[one.name] = verdict
    return verdict


def _tried(trial: Any, one: Law[Any]) -> Verdict:
    started = perf_counter()

    def verdict(outcome: Outcome, seen: str = "", do: str = "") -> Verdict:
        return Verdict(one.name, one.says, outcome, perf_counter() - started, seen, do)

    try:
        one.check(trial)
    except Broken as error:
        return verdict("broken", error.seen, error.do)
    except DoesNotApply as error:
        return verdict("does not apply", str(error))
    except UserError as error:
        trial.errors[one.name] = error
        return verdict("broken", f"it was refused: {error}", "mend that, or the settings it is tried with")
    except Exception as error:
        trial.errors[one.name] = error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        where = f"{Path(frame.filename).name}, line {frame.lineno}"
        return verdict("broken", f"{type(error).__name__}: {first} ({where})", "mend what raises it")
    return verdict("kept")


@dataclass(frozen=True)
class Check:
    """One law of one plug-in, for a test runner: call it."""

    law: Law[Any]
    trial: Any
    book: tuple[Law[Any], ...]

    def __str__(self) -> str:
        return self.law.name.replace(" ", "_")

    def __call__(self) -> None:
        """Try the law.

        Raises:
            ContractBroken: One line: the law, what was seen, what to do.
            unittest.SkipTest: Where it has nothing to say, or a law that it builds on is broken.
        """
        verdict = judge(self.trial, self.law, self.book)
        if verdict.outcome == "broken":
            raise ContractBroken(f"{self.trial.kind} {self.trial.name} breaks {verdict.line}") from (
                self.trial.errors.get(self.law.name)
            )
        if verdict.outcome != "kept":
            raise unittest.SkipTest(f"{verdict.outcome}: {verdict.line}")


def checks(trial: Any, book: Iterable[Law[Any]], expected: Mapping[str, str] | None = None) -> list[Check]:
    """Every law as a check of its own, for `pytest.mark.parametrize("law", ..., ids=str)`."""
    laws = tuple(book)
    trial.expected = dict(expected or {})
    for name in trial.expected:
        if name not in {one.name for one in laws}:
            raise unknown("law", name, [one.name for one in laws])
    return [Check(one, trial, laws) for one in laws]


def report(
    trial: Any,
    book: Iterable[Law[Any]],
    on_fail: Literal["raise"] | None = "raise",
    expected: Mapping[str, str] | None = None,
    told: Callable[[Verdict], None] = lambda verdict: None,
) -> Report:
    """Try every law.

    Args:
        trial: The plug-in.
        book: The laws of its kind.
        on_fail: None: broken laws are only reported.
        expected: Laws that are known to be broken, and why.
        told: Told of each verdict as it falls.

    Raises:
        ContractBroken: One line for each broken law, unless `on_fail` is None.
    """
    verdicts = []
    for check in checks(trial, book, expected):
        verdicts.append(judge(trial, check.law, check.book))
        told(verdicts[-1])
    tried = Report(trial.kind, trial.name, tuple(verdicts))
    if on_fail == "raise" and tried.broken:
        count = len(tried.broken)
        lines = "\n".join(f"- {one.line}" for one in tried.broken)
        raise ContractBroken(
            f"{trial.kind} {trial.name} breaks {count} {'law' if count == 1 else 'laws'} of its contract:\n{lines}"
        )
    return tried
