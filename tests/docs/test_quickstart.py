"""The quickstart's script and notebook do what they show."""

import ast
import io
import json
import os
import re
import runpy
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shell import ENVIRONMENT, SCRATCH

from mibench.training import Training

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"


@pytest.fixture(scope="module")
def quickstart() -> Iterator[tuple[Path, str]]:
    """The folder in which the script was run, and what it printed; what is trained is trained for one epoch."""
    folder, before, out = SCRATCH / "quickstart", Path.cwd(), io.StringIO()
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(Training, "for_images", lambda self, count: replace(self, epochs=1, doublings=0))
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        os.chdir(folder)
        runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
        os.chdir(before)
    yield folder, out.getvalue()


def test_the_script_prints_an_interval_for_each_number(quickstart: tuple[Path, str]) -> None:
    _, out = quickstart
    assert out.startswith("natural accuracy ") and re.search(r"\d+% \[\d+%, \d+%\] of 20 images are like", out)
    assert "open_top1@resnet" in out and "real held-out" in out


def cells() -> Iterator[str]:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "keep outputs out of the repository"
            yield "".join(cell["source"])


def test_the_notebook_runs_and_shows_something_in_every_cell(
    quickstart: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = quickstart
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
