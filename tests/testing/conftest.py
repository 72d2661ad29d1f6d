"""A place where another package would have put a plug-in."""

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mibench import testing
from mibench.metrics import glossary
from mibench.plugins import registry


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

    def forget() -> None:
        registry._modules.cache_clear()
        registry._source.cache_clear()
        glossary.declared.cache_clear()

    yield put
    monkeypatch.undo()
    forget()
