"""`mibench new` writes a package that keeps its contract, and refuses names and places; `check-plugin` tells."""

import ast
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from mutants import METRIC
from shell import command

from mibench import testing
from mibench.plugins.new import new
from mibench.runtime.errors import UserError


@pytest.mark.parametrize("kind", testing.KINDS)
def test_a_new_package_keeps_its_contract(
    kind: str, tmp_path: Path, install: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"my_{kind}_1"
    told = command("new", kind, name, "--folder", str(tmp_path))
    assert told.code == 0, told.err
    root = tmp_path / name
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {
        ".gitignore",
        ".github/workflows/ci.yml",
        "README.md",
        "pyproject.toml",
        f"tests/test_{name}.py",
        f"{name}.py",
    }
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["entry-points"] == {f"mibench.{testing.KINDS[kind]}": {name: name}}
    assert f"mibench check-plugin {name}" in (root / ".github/workflows/ci.yml").read_text()
    assert f'testing.laws("{kind}", "{name}")' in (root / f"tests/test_{name}.py").read_text()
    source = (root / f"{name}.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert node.name.startswith(f"My{kind.capitalize()}1"), node.name
    install(kind, name, source)
    found = testing.check(kind, name)
    assert found.passed and found.seconds < 60


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine exists; nothing was written: remove it, or choose another name"):
        new("attack", "mine", tmp_path)
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Attack", "beginning|a letter first; for example my_attack"),
        ("../mine", "cannot name a plug-in"),
        ("1st", "cannot name a plug-in"),
        ("a", "cannot name a plug-in"),
        ("a__b", "cannot name a plug-in"),
        ("", "cannot name a plug-in"),
        ("match", "a word or a module of Python; choose another name, for example my_match"),
        ("random", "a word or a module of Python"),
        ("ppa", "'ppa' is an attack already"),
        ("digiface", "'digiface' is a data set already"),
        ("scipy", "'scipy' is an installed package, which it would hide"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        new("attack", name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_kinds_that_are_none(tmp_path: Path) -> None:
    assert command("new", "model", "mine", "--folder", str(tmp_path)).error.startswith(
        "unknown kind of plug-in 'model'"
    )
    assert command("check-plugin", "nobody_has_it").error.startswith("unknown plug-in 'nobody_has_it'")


def test_check_plugin_tells_each_law_with_its_seconds(install: Callable[[str, str, str], None]) -> None:
    install("metric", "near_one", METRIC)
    told = command("check-plugin", "near_one")
    lines = told.out.splitlines()
    assert told.code == 0 and lines[-1].startswith("metric near_one: 10 laws kept, 0 broken, 0 not tried, ")
    assert [line.split()[0] for line in lines[:-1]] == ["kept"] * 10
    install("metric", "near_two", METRIC.replace("Direction.LOWER", "Direction.HIGHER").replace("nearest", "nearer"))
    told = command("check-plugin", "near_two")
    assert told.code == 1 and "do: turn Direction round, or the number" in told.out
    found = json.loads(command("check-plugin", "near_two", "--json").out)
    assert not found["passed"] and [one["law"] for one in found["laws"] if one["outcome"] == "broken"] == ["direction"]
