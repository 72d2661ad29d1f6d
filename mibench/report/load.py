"""Every finished score of a results folder; what cannot be read is named, never fatal."""

import os
from pathlib import Path
from typing import Any

from mibench.evaluation.score import Score
from mibench.report.result import Result
from mibench.runs import Library, OtherProtocol, unchanged
from mibench.runtime import escape
from mibench.runtime.errors import UserError

__all__ = ["result", "results"]


def results(root: Path, errors: list[str] | None = None, rehearsal: bool = False) -> list[Result]:
    """All whole score runs below a results folder; each one left out adds a line with its path to `errors`.

    Those of another protocol are not damaged, nor are those of a rehearsal: all of one kind share a line.

    Args:
        root: The results folder.
        errors: Gets a line for each score left out.
        rehearsal: Take the scores of a rehearsal.
    """
    errors = errors if errors is not None else []
    whole = []
    foreign: dict[str, list[Path]] = {}
    library, known = Library(root), dict[str, Any]()
    for path in sorted((root / "scores").glob("[!.]*")):
        if not path.is_dir():
            continue
        try:
            whole.append(_read(library, path, known, rehearsal))
        except _Foreign as error:
            foreign.setdefault(str(error), []).append(path)
        except UserError as error:
            text, here = str(error), escape.terminal(str(path))
            errors.append(f"left out: {text}" if here in text else f"left out {here}: {text}")
        except DAMAGE as error:
            errors.append(escape.terminal(f"left out {path}: {_damage(error)}"))
    for why, paths in foreign.items():
        runs = f"the score {paths[0]} was" if len(paths) == 1 else f"{len(paths)} scores, the first {paths[0]}, were"
        errors.append(escape.terminal(f"left out: {runs} {why}"))
    return whole


DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError)
"""What reading a file raises that is not what a score wrote."""


def _damage(error: Exception) -> str:
    what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
    return f"it {what}; delete that directory and run it again"


def result(path: Path) -> Result:
    """One score by its directory.

    Raises:
        UserError: If it is not whole, was changed, or another protocol made it.
    """
    try:
        return _read(Library(path.parent.parent), path, {})
    except UserError as error:
        text = str(error)
        raise UserError(text if str(path) in text else f"{path}: {text}") from None
    except DAMAGE as error:
        raise UserError(f"{path}: {_damage(error)}") from None


class _Foreign(UserError):
    """A score that another protocol made, or a rehearsal."""


def _read(library: Library, path: Path, known: dict[str, Any], rehearsal: bool = False) -> Result:
    """One score run, refused unless whole and untouched."""
    for name in ("done", "run.json", "scores.json", "per_image.csv"):
        if not os.path.isfile(f"{path}/{name}"):
            raise UserError(f"{name} is missing; delete that directory and run it again")
    try:
        run = library.find(path.name)
    except OtherProtocol as error:
        if error.path == path:
            raise _Foreign(error.why) from None
        raise
    except UserError as error:
        if not str(error).startswith("unknown run"):
            raise
        gone = str(error).partition(";")[0]
        raise UserError(f"a run it builds on is missing ({gone}); run the same command again") from None
    if run.rehearsed and not rehearsal:
        raise _Foreign("made by a rehearsal (--rehearse), on stand-in data: its numbers say nothing")
    try:
        saved = run.read("scores.json")
    except UserError:
        unchanged(path / "scores.json")  # that it was cut short says more than what JSON it is no longer
        raise
    result = Result(run, Score.from_json(saved), known)
    _ = result.columns, result.row  # whatever a report needs of it is there, and as it was written
    for name in run.read("done").keys() - {"run.json", "scores.json", "per_image.csv"}:
        unchanged(path / name)
    return result
