"""The quickstart's script and notebook do what they show."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from shell import ENVIRONMENT, PACKAGE, SCRATCH

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"


@cache
def quickstart() -> tuple[Path, str]:
    """The folder in which the script was run, and what it printed; as a user runs it, in a process of its own."""
    folder = SCRATCH / "quickstart"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py")],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_script_prints_an_interval_for_each_number() -> None:
    _, out = quickstart()
    assert out.startswith("natural accuracy ") and re.search(r"\d+% \[\d+%, \d+%\] of 20 images are like", out)
    assert "open_top1@resnet" in out and "real held-out" in out


def cells() -> Iterator[str]:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "keep outputs out of the repository"
            yield "".join(cell["source"])


def test_the_notebook_runs_and_shows_something_in_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = quickstart()
    monkeypatch.chdir(folder)  # where everything is done already
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    space: dict[str, Any] = {}
    for source in cells():
        tree = ast.parse(source)
        last = tree.body.pop()
        assert isinstance(last, ast.Expr), "a cell ends with what it shows"
        exec(compile(tree, "cell", "exec"), space)
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), space)._repr_html_()
        assert "<table" in shown
