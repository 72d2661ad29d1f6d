"""Whether runs that are compared with one another were computed alike.

A comparison is between runs of one kind: inversions of one protocol, the targets they attack, the scores that judge
them. What differs between kinds is no difference between the sides of a comparison: a target that was trained
elsewhere in another precision is one and the same file for every attack on it.
"""

from collections.abc import Iterable, Iterator, Sequence

from mibench.report.result import Result
from mibench.runs import Run
from mibench.runtime.bits import BITS, other_bits

__all__ = ["between", "unlike"]

COMPARED = ("target", "inversion", "run")
"""What two scores of one protocol differ in; evaluation models and verifiers are the same files."""


def between(one: Run, other: Run) -> list[str]:
    """In what decides bits two runs differ (`precision bf16, fp32`); what a card does not say is no difference."""
    return [] if one.path == other.path else other_bits(_made(one), _made(other))


def unlike(results: Sequence[Result]) -> str:
    """A line, if runs that are compared were not computed alike; else ''."""
    runs: dict[tuple[str, str], dict[str, Run]] = {}
    for result in results:
        for role in COMPARED:
            run: Run = getattr(result, role)
            runs.setdefault((result.protocol, run.kind), {})[run.label] = run
    pairs = ((len(own), *pair) for own in runs.values() for pair in _unlike(own.values()))
    for count, first, other in pairs:
        if differences := between(first, other):
            return (
                f"note: not all of the {count} {first.kind} that are compared were computed alike: {first.label} and "
                f"{other.label} differ in {'; '.join(differences)}; a difference in the last digits may be theirs"
            )
    return ""


def _unlike(runs: Iterable[Run]) -> Iterator[tuple[Run, Run]]:
    """The first of some runs beside each of the others, of those with equal cards one."""
    first, *others = sorted(runs, key=lambda run: run.label)
    known: set[tuple[str, ...]] = set()
    for other in others:
        made = _made(other)
        card = tuple(str(made.get(name)) for name in BITS)
        if card not in known:
            known.add(card)
            yield first, other


def _made(run: Run) -> dict[str, object]:
    return run.read("run.json").get("provenance") or {}
