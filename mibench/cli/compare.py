"""The commands that compare: diff, leaderboard."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mibench.cli import options
from mibench.cli.look import find
from mibench.runtime.errors import UserError

if TYPE_CHECKING:
    from mibench.report.diff import Folders, Scores
    from mibench.report.result import Result

__all__ = ["diff", "leaderboard"]

Compared = Annotated[
    str, typer.Argument(help="A score (or its inversion): id, beginning or directory; or a results folder.")
]


def diff(
    a: Compared,
    b: Compared,
    results: options.Results = options.RESULTS,
    html: Annotated[
        bool, typer.Option("--html", help="Write a page too: report/diff-A-B.html in B's results folder.")
    ] = False,
    private_images: options.PrivateImages = True,
    as_json: options.Json = False,
) -> None:
    """What changed from A to B, and what the statistics support of it: two scores, or two results folders."""
    from mibench.report import diff as changes
    from mibench.report.diff_screen import render
    from mibench.runs.store import folder_of
    from mibench.runtime.terminal import SafeConsole, say

    a, b = (str(folder_of(one)) if "://" in one else one for one in (a, b))
    kinds = [_is_folder(one) for one in (a, b)]
    if kinds[0] != kinds[1]:
        folder, run = (a, b) if kinds[0] else (b, a)
        raise UserError(f"{folder} is a results folder and {run} is none; give two scores or two results folders")
    if all(kinds):
        errors: list[str] = []
        sides = Path(a), Path(b)
        before, after = _folders(*sides, errors)
        compared: changes.Scores | changes.Folders = changes.folders(before, after, errors)
    else:
        one, other = _score(results, a), _score(results, b)
        if one.run.path.resolve() == other.run.path.resolve():
            raise UserError(f"A and B are both the score {one.run.id}; give two, see: mibench show {one.run.id}")
        sides = one.run.root, other.run.root
        compared = changes.Scores(one, other)
    if as_json:
        print(json.dumps(compared.to_json(), indent=1))
    else:
        SafeConsole().print(render(compared))
    if html:
        path = _page(compared, sides, private_images)
        if not as_json:
            say(path)


def _page(compared: "Scores | Folders", sides: tuple[Path, Path], private_images: bool) -> Path:
    from mibench.report.page import compared as page

    try:
        return page.write(compared, sides, private_images)
    except OSError as error:
        raise UserError(f"cannot write a page to {sides[1]}: {error.strerror or error}") from None


def _is_folder(reference: str) -> bool:
    """Whether a results folder is meant: a directory that is no run."""
    path = Path(reference)
    return path.is_dir() and not any((path / name).exists() for name in ("run.json", "done"))


def _folders(a: Path, b: Path, errors: list[str]) -> list[list["Result"]]:
    if a.resolve() == b.resolve():
        raise UserError(f"A and B are the same folder {a}; give two results folders, or two scores of one")
    return [_scores(folder, errors) for folder in (a, b)]


def _scores(folder: Path, errors: list[str]) -> list["Result"]:
    """The whole scores of a folder; it has some."""
    from mibench.report import read
    from mibench.runs.store import bring_scores

    errors += bring_scores(folder)
    before = len(errors)
    scores = read(folder, errors)
    if not scores:
        lost = " that can be read (those above are left out)" if len(errors) > before else ""
        raise UserError(
            f"no finished scores in {folder}{lost}; give a results folder: it holds scores/, and mibench attack or "
            "mibench demo fills one"
        )
    return scores


def _score(results: Path, reference: str) -> "Result":
    """The score that is meant: the run itself, or the one score of an inversion."""
    from mibench.report import load
    from mibench.runs import finished

    run = find(results, reference)
    if run.kind == "inversions":
        scores = [one for one in finished(run.root, "scores") if one.inversion.id == run.id]
        if len(scores) != 1:
            told = "has no score; run: mibench score" if not scores else "has several scores; name one of them: "
            raise UserError(f"{run.label} {told}{', '.join(one.id for one in scores)}")
        run = scores[0]
    if run.kind != "scores":
        raise UserError(
            f"{run.label} is no score: mibench diff compares two scores or two results folders; what a run was asked "
            f"to do: mibench show {run.id}"
        )
    return load.result(run.path)


def leaderboard(
    results: options.OwnFolder = None,
    full: Annotated[bool, typer.Option("--full", help="Show every row of every reference.")] = False,
    as_json: options.Json = False,
) -> None:
    """The reference results that ship with mibench, and your own scores of the same protocol among them."""
    from mibench.report import read
    from mibench.report.leaderboard import leaderboard as of
    from mibench.report.leaderboard_screen import render
    from mibench.runtime.terminal import SafeConsole

    folder = options.RESULTS if results is None else results
    own = read(folder) if results is None else _scores(folder, [])
    board = of(own)
    if as_json:
        print(json.dumps(board.to_json(), indent=1))
        return
    SafeConsole().print(render(board, folder, full))
