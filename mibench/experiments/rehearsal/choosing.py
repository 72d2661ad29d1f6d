"""Which runs of a plan are rehearsed: each step once, not the grid.

Two runs are one step if they differ in numbers alone (a strength, a seed) and so does what they build on. Every network
and judge is a step. Of the inversions those are taken that are the first of an attack with a prior against a network,
and the first against each target with such access.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from mibench.experiments.rehearsal.smaller import small
from mibench.plugins import registry
from mibench.runs import KINDS, Run

__all__ = ["choose"]

LEFT_OUT = ("seed", "budget", "identities")
"""What of a specification makes no other step."""


def choose(runs: Sequence[Run]) -> list[Run]:
    """The runs to rehearse, made small, parents first.

    Args:
        runs: Whole plans of suites.
    """
    keys: dict[str, Hashable] = {}
    made: dict[Hashable, Run] = {}
    for run in runs:
        if run.kind in ("backbones", "targets", "evaluators", "verifiers"):
            _small(run, keys, made)
    covered: set[Hashable] = set()
    inversions = [run for run in runs if run.kind == "inversions"]
    for run in sorted(inversions, key=_plain_first):
        wanted = _covers(run, keys)
        if not wanted <= covered:
            covered |= wanted
            _small(run, keys, made)
    for run in runs:
        if run.kind == "scores" and key_of(run.inversion, keys) in made:
            _small(run, keys, made)
    return sorted(made.values(), key=lambda run: KINDS.index(run.kind))


def _plain_first(run: Run) -> tuple[bool, bool]:
    """Targets are attacked by the attacks themselves rather than by what adaptive attackers try."""
    name = run.spec["attack"]["name"]
    return _is_floor(name), "+" in name


def _is_floor(attack: str) -> bool:
    return bool(registry.card("attacks", attack).get("role", "attack") == "floor")


def _covers(run: Run, keys: dict[str, Hashable]) -> set[Hashable]:
    """What is rehearsed with an inversion."""
    target, prior = run.target, run.prior
    learnt = form(prior.spec["prior"]) if prior is not None else None
    of = (form(run.spec["attack"]), learnt, target.spec["model"], form(target.spec["dataset"]))
    if _is_floor(run.spec["attack"]["name"]):
        return {of}
    return {of, (key_of(target, keys), run.spec["access"])}


def key_of(run: Run, keys: dict[str, Hashable]) -> Hashable:
    """Equal for runs that are one step.

    Args:
        run: As planned.
        keys: Those that are known, by label.
    """
    if run.label not in keys:
        parents = {
            role: tuple(key_of(one, keys) for one in parent) if isinstance(parent, list) else key_of(parent, keys)
            for role, parent in run.parents.items()
        }
        spec = {name: value for name, value in run.spec.items() if name not in LEFT_OUT}
        keys[run.label] = (run.kind, form(spec), tuple(sorted(parents.items())))
    return keys[run.label]


def form(value: Any) -> Hashable:
    """A specification without the sizes of its numbers: of each, only whether it is 0, above or below."""
    if isinstance(value, Mapping):
        return tuple((key, form(one)) for key, one in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(form, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value > 0) - (value < 0)
    return value


def _small(run: Run, keys: dict[str, Hashable], made: dict[Hashable, Run]) -> Run:
    """The run that is rehearsed for a planned one."""
    key = key_of(run, keys)
    if key not in made:
        parents: dict[str, Run | list[Run]] = {
            role: [_small(one, keys, made) for one in parent]
            if isinstance(parent, list)
            else _small(parent, keys, made)
            for role, parent in run.parents.items()
        }
        made[key] = small(run, parents)
    return made[key]
