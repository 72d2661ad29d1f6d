"""Laws of shared work: one worker does a run; whoever is taken for dead can spoil nothing; no clock is read."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sharing import STEPS, bytes_of, graph, left_over, stage

from mibench.runs import Run, claims, cluster, worker
from mibench.runs.claims import Worker
from mibench.runs.status import counts, status
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.progress import Silent


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, bytes]:
    """What one undisturbed worker makes of the graph."""
    root = tmp_path / "alone"
    assert worker.work(graph(root), stage, "cpu", Silent()) == 7
    assert left_over(root) == []
    return bytes_of(root)


def test_two_workers_share_a_suite_and_do_each_run_once(tmp_path: Path, alone: dict[str, bytes]) -> None:
    root = tmp_path / "shared"
    counts: list[int] = []
    both = [
        threading.Thread(target=lambda: counts.append(worker.work(graph(root), stage, "cpu", Silent())))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sum(counts) == 7 and bytes_of(root) == alone and left_over(root) == []
    steps = (root / "steps").read_text().splitlines()
    assert len(steps) == len(set(steps)) == 7 * STEPS


def test_a_claim_of_a_living_worker_is_left_alone_and_of_a_dead_one_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = graph(tmp_path)[0].inversion.target
    with Worker(tmp_path) as first, Worker(tmp_path) as second:
        with first.claimed(run) as own, second.claimed(run) as other:
            assert own is not None and own.attempt == first.token and other is None
        with second.claimed(run) as other:
            assert other is not None
    dead = Worker(tmp_path)
    with dead.claimed(run) as own:
        assert own is not None
        own.work.mkdir(parents=True)
        (own.work / "checkpoint.json").write_text("kept")
        monkeypatch.setattr(claims, "SILENT", 0.05)
        with Worker(tmp_path) as heir:
            with heir.claimed(run) as other:  # the first look only begins the watch
                assert other is None
            time.sleep(0.1)
            with heir.claimed(run) as other:
                assert other is not None and (other.work / "checkpoint.json").read_text() == "kept"
                assert not own.work.exists() and dead.lost(own) and not heir.lost(other)
                with pytest.raises(OSError):  # who only slept has nothing left to write to
                    write_json(own.work / "checkpoint.json", {})


def test_the_first_to_finish_stays(tmp_path: Path) -> None:
    run = graph(tmp_path)[0].inversion.target
    with Worker(tmp_path) as first, Worker(tmp_path) as second, first.claimed(run) as own:
        assert own is not None
        late = Run(run.root, run.kind, run.name, run.spec, attempt=second.token)
        stage(own, None, Silent())  # type: ignore[arg-type]
        before = (run.path / "run.json").read_bytes()
        stage(late, None, Silent())  # type: ignore[arg-type]
    assert (run.path / "run.json").read_bytes() == before and not late.work.exists()
    assert left_over(tmp_path) == []


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from sharing import graph, stage
from mibench.runs import worker
from mibench.runtime.progress import Silent
worker.work(graph(Path(sys.argv[1])), stage, "cpu", Silent())
"""


def test_kill_9_of_a_worker_costs_one_step_and_no_byte(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shared"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(here=str(Path(__file__).parent.parent)), str(root)],
        env={**os.environ, "PAUSE": "0.3"},
    )
    until = time.monotonic() + 60
    while not list(root.glob("targets/.attempts/*/*/checkpoint.json")):
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    monkeypatch.setattr(claims, "SILENT", 0.3)
    monkeypatch.setattr(worker, "WAIT", 0.1)
    assert worker.work(graph(root), stage, "cpu", Silent()) == 7
    steps = (root / "steps").read_text().splitlines()
    assert bytes_of(root) == alone and len(steps) <= 7 * STEPS + 1 and left_over(root) == []


def test_a_failure_is_told_once_and_what_does_not_build_on_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "s")
    with pytest.raises(UserError, match=r"scores/s-\w+ cannot be done \(and 2 more"):
        worker.work(graph(tmp_path), stage, "cpu", Silent())
    assert len(bytes_of(tmp_path)) == 4 and left_over(tmp_path) == []
    monkeypatch.setenv("FAILS", "")  # who starts a worker again tries again
    assert worker.work(graph(tmp_path), stage, "cpu", Silent()) == 3


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(tmp_path: Path) -> None:
    run = graph(tmp_path)[0].inversion
    dead = Worker(tmp_path)
    here = dead.card["place"]
    (tmp_path / ".workers").mkdir()
    held = dead.claimed(run)
    assert held.__enter__() is not None
    for elsewhere in (True, False):
        gone = subprocess.Popen(["true"])
        gone.wait()
        dead.card |= {"process": gone.pid, "place": "another machine" if elsewhere else here}
        dead.beat()
        with Worker(tmp_path) as late, late.claimed(run) as own:
            assert (own is None) == elsewhere
    held.__exit__(None, None, None)


def test_whoever_ends_its_group_frees_its_claims_and_nobody_elses(tmp_path: Path) -> None:
    run, other = (one.inversion for one in graph(tmp_path, 2))
    dead = Worker(tmp_path, "group")
    with Worker(tmp_path, "group") as driver, Worker(tmp_path) as stranger, Worker(tmp_path) as late:
        held = [dead.claimed(run), stranger.claimed(other)]  # as if killed: never left
        assert None not in [one.__enter__() for one in held]
        with late.claimed(run) as own:
            assert own is None  # for a minute
        for one in (run, other):
            driver.free(one)
        with late.claimed(run) as own:
            assert own is not None
        with late.claimed(other) as own:
            assert own is None
        for one in held:
            one.__exit__(None, None, None)


def test_another_version_is_refused_by_name_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.05)
    with Worker(tmp_path) as other:
        other.card["torch"] = "1.0"
        other.beat()
        with pytest.raises(UserError, match=r"has torch 1\.0, this process on .* has torch 2"):
            Worker(tmp_path).__enter__()
    (tmp_path / ".workers" / "dead.json").write_text(json.dumps({**other.card, "beat": 7}))
    with Worker(tmp_path):  # a card that stands still is a dead worker's
        assert [path.stem for path in (tmp_path / ".workers").glob("dead*")] == []


def test_clocks_do_not_matter(tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock stands in another year, and goes backwards."""
    times = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    assert worker.work(graph(tmp_path / "late"), stage, "cpu", Silent()) == 7
    assert bytes_of(tmp_path / "late") == alone


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".workers").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to the results folder"):
        worker.work(graph(tmp_path), stage, "cpu", Silent())


def test_status_says_what_runs_where_and_how_long_yet(tmp_path: Path) -> None:
    target = graph(tmp_path)[0].inversion.target
    with Worker(tmp_path) as one, one.claimed(target) as own:
        assert own is not None
        with one.telling(Silent()).task("t", 10, "steps") as bar:
            bar.advance(4)
            assert one.card["progress"]["done"] == 4
            one.card["progress"]["seconds"] = 8.0
            one.beat()
            (known,) = status(tmp_path)
            assert (known.run, known.share, known.left, known.alive) == (target.label, 0.4, 12.0, True)
            assert known.where == f"process {os.getpid()} on {one.card['host']}" and known.silent < 60
    assert status(tmp_path) == []
    with target.locked(), target.writing():  # a process that works alone
        (known,) = status(tmp_path)
        assert known.run == target.label and known.where.startswith(f"process {os.getpid()} on ") and known.since
    assert status(tmp_path) == [] and counts(tmp_path) == {}
    with pytest.raises(UserError, match="is no folder"):
        status(tmp_path / "absent")


def test_what_stands_behind_on() -> None:
    assert cluster.read("ray") == cluster.Cluster("local")
    wanted = cluster.Cluster("ray://head:10001", 0.5, 0.25, 8e9)
    assert cluster.read("ray://head:10001?cpus=.5&gpus=.25&memory=8e9") == wanted
    assert cluster.read("ray:127.0.0.1:6379") == cluster.Cluster("127.0.0.1:6379")
    for wrong in ("slurm", "ray?cpus=-1", "ray?cpus=many", "ray?colour=1", "ray?gpus=nan"):
        with pytest.raises(UserError, match="--on"):
            cluster.read(wrong)
