"""A place where another package would have put a plug-in."""

import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mibench import testing
from mibench.metrics import glossary
from mibench.plugins import registry


def forget() -> None:
    """What was known of installed plug-ins."""
    registry._modules.cache_clear()
    registry._source.cache_clear()
    glossary.declared.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """`pip install -e` of a package written by `mibench new`: what pip writes of it, read by Python's own machinery."""

    def put(root: Path) -> None:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        told = root / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
            for group, points in project["entry-points"].items()
        ]
        (told / "entry_points.txt").write_text("\n".join(groups))
        monkeypatch.syspath_prepend(root)
        forget()

    yield put
    monkeypatch.undo()
    forget()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Puts a source where another package would have put a plug-in."""
    points: dict[str, list[EntryPoint]] = {}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: points.get(group, []))

    def put(kind: str, name: str, source: str) -> None:
        group = f"mibench.{testing.KINDS[kind]}"
        (tmp_path / f"mutant_{name}.py").write_text(source)
        points[group] = [*points.get(group, []), EntryPoint(name, f"mutant_{name}", group)]
        forget()

    yield put
    monkeypatch.undo()
    forget()
