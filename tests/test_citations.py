"""Every source can be opened by a reader: no file that is not in the repository, and a URL for every reference."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mibench"
WRITTEN = {"tables.md"}
"""What the program itself writes, and speaks of."""


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def entries(docstring: str) -> list[str]:
    """What stands behind `|` below References:, continued lines joined."""
    _, _, block = docstring.partition("References:\n")
    lines = re.match(r"(?:[ \t]+.*\n?)*", block)
    assert lines is not None
    return re.findall(r"\| (.*(?:\n\s+[^|\s].*)*)", lines[0])


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_no_module_speaks_of_a_file_that_is_not_there() -> None:
    kept = {path.name for path in PACKAGE.parent.rglob("*.md")} | WRITTEN
    for path in [*MODULES, *(PACKAGE.parent / "tests").rglob("*.py")]:
        assert set(re.findall(r"\b[\w-]+\.md\b", path.read_text())) <= kept, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_reference_has_a_url(path: Path) -> None:
    for docstring in docstrings(path):
        listed = entries(docstring)
        for entry, after in zip(listed, [*listed, ""][1:], strict=True):
            assert "https://" in entry or after.startswith("https://"), f"{entry} needs a URL, in the line below it"


def test_references_are_found() -> None:
    """Guards the law above: all but a few methods cite something."""
    assert sum(bool(entries(docstring)) for path in MODULES for docstring in docstrings(path)) > 80
