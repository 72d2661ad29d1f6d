"""Suites: TOML files of experiments (`mibench run SUITE`), some of which ship with mibench.

The fields are the options of `mibench sweep`; each `[[sweep]]` is an experiment of its own, and what stands above them
they share. A sweep may have a name, and several the same: `mibench run midre:location` runs those alone. `[seconds]`
says what each run takes (`targets = 60`, `"inversions/ppa" = 30`), so that `--dry-run` can add it up. `[[published]]`
repeats what papers printed of the same (`mibench.experiments.published`), so that the report can set it beside what was
measured. `[needs]` names files of weights that the experiments cannot tell of themselves, each with its `source`,
`licence` and `size`.
"""

import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mibench.experiments.experiment import Experiment
from mibench.experiments.options import grid
from mibench.experiments.reading import split_sets
from mibench.runtime.errors import UserError, unknown
from mibench.runtime.files import read_text
from mibench.zoo import PREFIX, Shelf

__all__ = ["SUITES", "needs", "parsed", "read", "seconds", "suites"]

SUITES = Path(__file__).parent / "suites"
"""The suites that ship with mibench."""


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) is kind for item in value)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _tables(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())


_TEXT = (_is(str), "must be a text")
_NEED = ("source", "licence", "size")
_TEXTS = (_list_of(str), "must be a list of str")
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": _TEXT,
    "title": _TEXT,
    "dataset": _TEXT,
    "model": _TEXT,
    "defenses": _TEXTS,
    "strengths": (lambda value: isinstance(value, str | list), "are 'grid', 'default' or a list of values"),
    "seeds": (_list_of(int), "must be a list of int"),
    "seed": (_whole(0), "must be a whole number of at least 0"),
    "methods": _TEXTS,
    "adaptive": (_is(bool), "must be true or false"),
    "floors": _TEXTS,
    "preset": _TEXT,
    "prior": _TEXT,
    "identities": (_whole(1), "must be a whole number of at least 1"),
    "budget": (_whole(1), "must be a whole number of at least 1"),
    "pretrained": _TEXT,
    "recipe": _TEXT,
    "evaluators": _TEXT,
    "settings": (_tables, "are tables: [settings.training]"),
}
"""Fields of a sweep, each with what it takes; but for its name they are the parameters of `options.grid`."""

RENAMED = {"informed": "adaptive"}


def suites() -> dict[str, Path]:
    """The shipped suites by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.toml"))}


def read(
    source: str,
    *,
    dataset: str | None = None,
    seed: int = 0,
    identities: int | None = None,
    sets: Sequence[str] | None = None,
    precision: str = "fp32",
) -> list[Experiment]:
    """The experiments of a TOML file, or of a shipped suite by its name: one for each [[sweep]].

    Args:
        source: A file or a name; behind a colon the name of the sweep, or sweeps, that are wanted.
        dataset: In the place of the file's, and then of all its identities; a prior of the zoo is then learnt there
            with the suite's preset.
        seed: Added to every seed of the file.
        identities: In the place of the file's.
        sets: Settings laid over the file's: `training.epochs=3`, or `epochs=3`, which is the training's.
        precision: fp32 or bf16.

    Raises:
        Absent: It names a file that is not here; within `runtime.absent.as_published` it is planned all the same.
        UserError: If there is no such file, it is not TOML, or a field is unknown or of a wrong type.
    """
    path, wanted, shared = parsed(source)
    parts = shared.pop("sweep", [{}])
    for other in ("seconds", "published", "needs"):
        shared.pop(other, None)
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path}: each sweep is a table of its own: [[sweep]]")
    if wanted:
        names = [str(part["name"]) for part in parts if "name" in part]
        if wanted not in names:
            raise unknown(f"sweep of {path.name}", wanted, set(names))
        parts = [part for part in parts if part.get("name") == wanted]
    replaced = {"dataset": dataset, "identities": identities}
    changed = {name: value for name, value in replaced.items() if value is not None}
    typed = split_sets(sets, "training", ["data", "prior", "evaluator", "verifier"])
    experiments = []
    for part in parts:
        stated = _checked(path, {**shared, **part})
        if dataset not in (None, stated.get("dataset")):
            stated.pop("identities", None)  # they were counted for the file's own data set
            stated |= _learnt_anew(stated.get("prior"))
        fields: dict[str, Any] = {"seed": 0, "seeds": [0], "settings": {}} | stated | changed
        fields.pop("name", None)
        fields["seeds"] = [seed + one for one in fields["seeds"]]
        fields["seed"] += seed
        fields["settings"] = fields["settings"] | {
            owner: {**fields["settings"].get(owner, {}), **own} for owner, own in typed.items() if own
        }
        experiments.append(grid(**fields, precision=precision))
    return experiments


def _learnt_anew(prior: str | None) -> dict[str, Any]:
    """What a suite names on another data set in the place of a prior of the zoo, which was learnt on the suite's own:
    the same kind of prior, learnt as the suite's preset has it, not for as long as the zoo's was."""
    if prior is None or not prior.startswith(PREFIX):
        return {}
    return {"prior": Shelf().find(prior).run.spec["prior"]["name"]}


def seconds(source: str) -> dict[str, float]:
    """What runs of a suite take, by its author's measurement: a kind of runs, or one of its plug-ins (`kind/name`), ->
    seconds of one processor core; empty if it does not say.

    Raises:
        UserError: As `read`; or they are no positive numbers.
    """
    path, _, shared = parsed(source)
    told = shared.get("seconds", {})
    if not isinstance(told, dict) or not all(type(one) in (int, float) and one > 0 for one in told.values()):
        raise UserError(f"{path}: [seconds] holds positive numbers, as in targets = 60")
    return {name: float(one) for name, one in told.items()}


def needs(source: str) -> dict[str, dict[str, str]]:
    """Files of weights that a suite states: name -> `source`, `licence`, `size`.

    Raises:
        UserError: As `read`; or they are no such tables.
    """
    path, _, shared = parsed(source)
    told = shared.get("needs", {})
    if not _tables(told) or not all(
        set(one) == set(_NEED) and all(map(_TEXT[0], one.values())) for one in told.values()
    ):
        raise UserError(
            f'{path}: [needs] names files, each with texts: "x.pth" = {{source = .., licence = .., size = ..}}'
        )
    return told


def parsed(source: str) -> tuple[Path, str, dict[str, Any]]:
    """The file, the name of the only wanted sweep (empty: all), and what the file holds.

    Raises:
        UserError: As `read`.
    """
    path, wanted = Path(source), ""
    if not os.path.isfile(source):  # unlike Path.is_file it takes any text
        name, _, wanted = source.partition(":")
        if name not in suites():
            raise unknown("suite", name, suites())
        path = suites()[name]
    try:
        shared = tomllib.loads(read_text(path))
        repr(shared)  # some numbers and depths Python reads but cannot write
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, or a number too long
        raise UserError(f"{path} is not a TOML file: {error}") from None
    return path, wanted, shared


def _checked(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    for name, value in fields.items():
        if name in RENAMED:
            raise UserError(f"{path}: {name} is now called {RENAMED[name]}")
        if name not in FIELDS:
            raise unknown(f"field of {path.name}", name, FIELDS)
        holds, takes = FIELDS[name]
        if not holds(value):
            raise UserError(f"{path}: {name} {takes}, got {value!r}")
    return fields
