"""Suites: TOML files of experiments (`mibench run SUITE`), some of which ship with mibench.

The fields are the options of `mibench sweep`; each `[[sweep]]` is an experiment of its own, and what stands above them
they share.
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

__all__ = ["SUITES", "read", "suites"]

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
_TEXTS = (_list_of(str), "must be a list of str")
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
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
    "evaluators": _TEXT,
    "settings": (_tables, "are tables: [settings.training]"),
}
"""Fields of a suite, each with what it takes; they are the parameters of `options.grid`."""

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
        source: A file or a name.
        dataset: In the place of the file's.
        seed: Added to every seed of the file.
        identities: In the place of the file's.
        sets: Settings laid over the file's: `training.epochs=3`, or `epochs=3`, which is the training's.
        precision: fp32 or bf16.

    Raises:
        UserError: If there is no such file, it is not TOML, or a field is unknown or of a wrong type.
    """
    path = Path(source)
    if not os.path.isfile(source):  # unlike Path.is_file it takes any text
        if source not in suites():
            raise unknown("suite", source, suites())
        path = suites()[source]
    try:
        shared = tomllib.loads(read_text(path))
        repr(shared)  # some numbers and depths Python reads but cannot write
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, or a number too long
        raise UserError(f"{path} is not a TOML file: {error}") from None
    parts = shared.pop("sweep", [{}])
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path}: each sweep is a table of its own: [[sweep]]")
    replaced = {"dataset": dataset, "identities": identities}
    changed = {name: value for name, value in replaced.items() if value is not None}
    typed = split_sets(sets, "training", ["data", "prior", "evaluator", "verifier"])
    experiments = []
    for part in parts:
        fields: dict[str, Any] = (
            {"seed": 0, "seeds": [0], "settings": {}} | _checked(path, {**shared, **part}) | changed
        )
        fields["seeds"] = [seed + one for one in fields["seeds"]]
        fields["seed"] += seed
        fields["settings"] = fields["settings"] | {
            owner: {**fields["settings"].get(owner, {}), **own} for owner, own in typed.items() if own
        }
        experiments.append(grid(**fields, precision=precision))
    return experiments


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
