"""Tests mirror the package: from a method's name follows the file that tests it, and the page that explains it."""

from pathlib import Path

import pytest

from mibench.plugins import registry

ROOT = Path(__file__).parent.parent
LAWS = {"contract", "host_waits", "metrics", "side_effects", "models"}
"""Files of a folder that hold for all of its modules."""


@pytest.mark.parametrize("kind", ["attacks", "defenses"])
def test_every_method_has_its_test_and_its_page(kind: str) -> None:
    for name in registry.names(kind):
        assert (ROOT / f"tests/{kind}/test_{name}.py").exists()
        assert (ROOT / f"docs/{kind}/{name}.md").exists() or not (ROOT / f"docs/{kind}").exists()


@pytest.mark.parametrize("kind", ["attacks", "defenses", "priors", "models", "metrics"])
def test_every_file_tests_a_module_that_there_is(kind: str) -> None:
    modules = {path.stem for path in (ROOT / "mibench" / kind).rglob("*.py")}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / kind).rglob("test_*.py")}
    assert tested <= modules | LAWS
