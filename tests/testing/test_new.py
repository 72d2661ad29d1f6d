"""`mibench new` writes a package that keeps its contract, and refuses names and places; `check-plugin` tells."""

import ast
import json
import runpy
import unittest
from collections.abc import Callable
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from mutants import METRIC
from shell import command

from mibench import testing
from mibench.plugins.new import _source, new
from mibench.runtime.errors import UserError


@pytest.mark.parametrize("kind", testing.KINDS)
def test_a_strangers_road(
    kind: str, tmp_path: Path, installed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mibench new`, `pip install -e`, the package's own tests, the command of its README: as written, as installed."""
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
    steps = [line.partition("run: ")[2] for line in (root / ".github/workflows/ci.yml").read_text().splitlines()]
    assert [step for step in steps if step] == [
        'pip install "$MIBENCH"',
        "pip install -e '.[test]'",
        "pytest",
        f"mibench check-plugin {name}",
    ]
    for node in ast.walk(ast.parse((root / f"{name}.py").read_text())):
        if isinstance(node, ast.ClassDef):
            assert node.name.startswith(f"My{kind.capitalize()}1"), node.name

    installed(root)
    own = runpy.run_path(str(root / f"tests/test_{name}.py"))["test_it_keeps_the_contract"]
    (mark,) = own.pytestmark
    skipped = []
    for law in mark.args[1]:
        try:
            own(law)
        except unittest.SkipTest as why:
            skipped.append(str(why))
    assert len(mark.args[1]) == len(testing.book(kind)) and len(skipped) <= 3
    assert not any(why.startswith("not judged") for why in skipped)

    monkeypatch.chdir(tmp_path)
    (line,) = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("    mibench ")][1:]
    told = command(*line.split()[1:])
    assert told.code == 0 and name in told.out, told.err


@pytest.mark.parametrize(
    ("direct", "source"),
    [
        (None, "mibench==0.1"),
        ({"url": "file:///home/somebody/mibench", "dir_info": {}}, "mibench==0.1"),
        ({"url": "https://a.example/mibench-0.1-py3-none-any.whl", "archive_info": {}}, None),
        (
            {"url": "https://a.example/mibench", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
            "git+https://a.example/mibench@c0ffee",
        ),
    ],
)
def test_its_ci_installs_mibench_from_where_it_came(
    direct: dict[str, object] | None, source: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No index has mibench under its name, and somebody else may take it."""
    (tmp_path / "METADATA").write_text("Metadata-Version: 2.1\nName: mibench\nVersion: 0.1\n")
    if direct is not None:
        (tmp_path / "direct_url.json").write_text(json.dumps(direct))
    monkeypatch.setattr("mibench.plugins.new.distribution", lambda name: PathDistribution(tmp_path))
    assert _source() == (source or (direct or {})["url"])


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
