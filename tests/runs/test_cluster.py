"""The smallest graph on a cluster of this machine, where ray is installed; faults: tests/robustness/ray_faults.py."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sharing import bytes_of, graph, left_over, stage

from mibench.runs import cluster, worker
from mibench.runs.claims import versions
from mibench.runs.relay import Shown
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent

DRIVER = """
import sys
from pathlib import Path
from sharing import graph, stage
from mibench.runs import cluster
from mibench.runtime.progress import Silent
cluster.execute(graph(Path(sys.argv[1]), 1), stage, "cpu", Silent(), False, cluster.read("ray?cpus=.5"))
"""


def test_a_graph_on_ray_has_the_bytes_of_a_worker(tmp_path: Path) -> None:
    """In a process of its own: what ray warns of is not ours to mend."""
    pytest.importorskip("ray")
    worker.work(graph(tmp_path / "alone", 1), stage, "cpu", Silent())
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-c", DRIVER, str(tmp_path / "shared")]
    subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=300)
    assert bytes_of(tmp_path / "shared") == bytes_of(tmp_path / "alone")
    assert left_over(tmp_path / "shared") == []


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(cluster, "find_spec", lambda name: None if name == "ray" else known(name))
    with pytest.raises(UserError, match=r"pip install 'mibench\[ray\]'"):
        cluster.execute(graph(tmp_path), stage, "cpu", Silent(), False, cluster.Cluster())


def test_a_training_on_several_devices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device cuda:0,1: on Ray a training has one device"):
        cluster.execute(graph(tmp_path), stage, "cuda:0,1", Silent(), False, cluster.Cluster())


def test_a_relative_folder_is_refused() -> None:
    with pytest.raises(UserError, match="whole path"):
        cluster.execute(graph(Path("results")), stage, "cpu", Silent(), False, cluster.Cluster())


def test_bars_close_when_their_run_begins_again_elsewhere() -> None:
    told: list[Any] = []

    class Told(Silent):
        def task(self, label: str, total: int, unit: str) -> Any:
            told.append(label)
            return super().task(label, total, unit)

        def advance(self, count: int = 1) -> None:
            told.append(count)

    shown = Shown(Told(), anew=True)
    for event in [("open", 1, ("a", 9, "steps")), ("advance", 1, 4), ("open", 2, ("a", 9, "steps")), ("advance", 1, 5)]:
        shown.replay(*event)
    assert told == ["a", 4, "a"] and list(shown.open) == [2]
    shown.replay("close", 7, None)  # of a board that has died meanwhile
    shown.close()
    assert shown.open == {}


def test_a_cluster_that_answers_nothing_is_gone_after_some_looks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        driver = object.__new__(cluster._Driver)
        driver.control, driver.unanswered = f"127.0.0.1:{server.getsockname()[1]}", cluster.REFUSALS - 1
        assert driver._answers() and driver.unanswered == 0
    assert [driver._answers() for _ in range(cluster.REFUSALS - 1)] == [False] * (cluster.REFUSALS - 1)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+: .*refused"):
        driver._answers()
    driver.control = ""  # behind ray://, which says so itself
    assert driver._answers()


def test_where_nobody_listens_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cluster._require_answer(f"127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(UserError, match=rf"no cluster answers at {address} .*ray start --head"):
            cluster._require_answer(address)
    for address in ("head", "ray://head", "head:port"):
        with pytest.raises(UserError, match="without a port"):
            cluster._require_answer(address)


def test_a_token_is_shown_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert not cluster._token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert cluster._token()
    (tmp_path / ".ray" / "auth_token").unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert cluster._token()


def test_a_node_with_another_version_does_nothing_and_names_it(tmp_path: Path) -> None:
    theirs = {**versions(), "mibench": "9.9.9"}
    how, words = cluster._task(graph(tmp_path)[0], stage, "cpu", 1, "ray-1", "ray-1.driver", theirs, None)
    assert how == "failed" and words.startswith("the driver has mibench 9.9.9, this process on ")
    assert not list(tmp_path.iterdir())
