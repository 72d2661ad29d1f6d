"""Every finished score of a results folder; what cannot be read is named, never fatal."""

import json
from pathlib import Path

from mibench.evaluation.score import Score
from mibench.report.result import Result
from mibench.runs import PROTOCOL, Library, unchanged
from mibench.runtime.errors import UserError, printable

__all__ = ["results"]


def results(root: Path, errors: list[str] | None = None) -> list[Result]:
    """All whole score runs below a results folder; each one left out adds a line with its path to `errors`."""
    errors = errors if errors is not None else []
    whole = []
    library = Library(root)
    for path in sorted((root / "scores").glob("[!.]*")):
        if not path.is_dir():
            continue
        try:
            whole.append(_read(library, path))
        except UserError as error:
            text, here = str(error), printable(str(path))
            errors.append(f"left out: {text}" if here in text else f"left out {here}: {text}")
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            errors.append(printable(f"left out {path}: it {what}; delete that directory and run it again"))
    return whole


def _read(library: Library, path: Path) -> Result:
    """One score run, refused unless whole and untouched."""
    for name in ("done", "run.json", "scores.json", "per_image.csv"):
        if not (path / name).is_file():
            raise UserError(f"{name} is missing; delete that directory and run it again")
    made_by = json.loads((path / "run.json").read_text(encoding="utf-8")).get("protocol")
    if made_by != PROTOCOL:
        raise UserError(f"it is of protocol {made_by}, this mibench of {PROTOCOL}; its numbers are not comparable")
    try:
        run = library.find(path.name)
    except UserError as error:
        if not str(error).startswith("unknown run"):
            raise
        gone = str(error).partition(";")[0]
        raise UserError(f"a run it builds on is missing ({gone}); run the same command again") from None
    for name in run.read("done"):
        unchanged(path / name)
    result = Result(run, Score.from_json(run.read("scores.json")))
    _ = result.row  # whatever a report needs of it is there
    return result
