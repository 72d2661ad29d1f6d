"""Laws of a store: a run is seen whole or not at all, the first to publish stays, nothing finished here is lost."""

import io
import itertools
import json
import logging
import os
import random
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sharing import STEPS, bytes_of, graph, left_over, stage

from mibench.runs import Library, Run, claims, executor, finished, objects, store, worker
from mibench.runs.run import ELSEWHERE
from mibench.runs.status import counts, status
from mibench.runs.store import Store, StoreError, folder_of
from mibench.runs.store_claims import StoreWorker
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent

S3 = bool(find_spec("s3fs") and find_spec("moto") and find_spec("flask"))
PLACES = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A real S3 server on this machine, with a bucket."""
    if not S3:
        pytest.skip("needs s3fs and moto[server]")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        import fsspec

        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://bucket/results-{next(PLACES)}"
    return f"memory://bucket/results-{next(PLACES)}" if request.param == "memory" else f"file://{tmp_path}/store"


@pytest.fixture
def memory() -> str:
    """A store for what does not depend on its kind."""
    return f"memory://bucket/results-{next(PLACES)}"


@pytest.fixture(autouse=True)
def no_store_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MIBENCH_WORKERS", "1")
    monkeypatch.setattr(worker, "STORE_WAIT", 0.05)
    monkeypatch.setattr(objects, "AGAIN", (0.0, 0.0))
    monkeypatch.setattr(os, "fsync", lambda number: None)  # no power is cut here, and other tests wait for the disk
    yield
    ELSEWHERE.clear()


def host(url: str, folder: Path) -> Store:
    """Another machine: a folder of its own for the same store."""
    here = Store(url, folder)
    here.refresh()
    ELSEWHERE[here.folder] = here
    return here


def do(here: Store, run: Callable[..., None] = stage, **more: Any) -> None:
    executor.execute(graph(here.folder), run, "cpu", Silent(), **more)


def never(run: Run, engine: Any, reporter: Any) -> None:
    raise AssertionError(f"{run.label} was done again")


def whole(root: Path) -> dict[str, bytes]:
    """Every file of every finished run."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("*/[!.]*/*"))}


def test_another_host_finds_done_what_one_has_done_and_gets_its_bytes(url: str, tmp_path: Path) -> None:
    one = host(url, tmp_path / "one")
    do(one)
    assert len(one.known) == 7
    other = host(url, tmp_path / "other")
    assert executor.pending(graph(other.folder)) == [] and whole(other.folder) == {}
    do(other, never)
    assert (
        graph(other.folder)[0].read("run.json")["kind"] == "scores"
    )  # asked for, it is brought with what it builds on
    assert len(bytes_of(other.folder)) == 3
    assert len(finished(other.folder, "scores")) == 3 and len(Library(other.folder).runs) == 0
    assert whole(other.folder) == whole(one.folder) and counts(other.folder)["scores"] == 3


def test_only_what_a_run_builds_on_is_brought(memory: str, tmp_path: Path) -> None:
    one = host(memory, tmp_path / "one")
    do(one)
    other = host(memory, tmp_path / "other")
    more = graph(other.folder, 4)  # one inversion more, on the same target
    executor.execute(more, stage, "cpu", Silent())
    assert sorted(label.partition("/")[0] for label in bytes_of(other.folder)) == ["inversions", "scores", "targets"]
    assert Library(other.folder).find(graph(one.folder)[1].id).inversion.target.name == "t"
    assert len(bytes_of(other.folder)) == 5


def test_the_first_to_publish_stays_everywhere(url: str, tmp_path: Path) -> None:
    one, other = host(url, tmp_path / "one"), host(url, tmp_path / "other")
    do(one)
    executor.execute(graph(other.folder), with_mark, "cpu", Silent())  # its listing is old: all is done again
    assert whole(other.folder) == whole(one.folder) and not other.unsent
    assert not [path for path in other.folder.rglob(".*") if path.suffix != ".lock" and path.name != ".outbox"]


def with_mark(run: Run, engine: Any, reporter: Any) -> None:
    """As `stage`, but who made it can be seen."""
    with run.writing() as folder:
        (folder / "model.bin").write_text("another machine's")
        run.finish({"by": "the other"})


class Failing:
    """A file system of which the n-th change or reading fails, before or after it is done."""

    def __init__(self, fs: Any, at: int, after: bool, error: Exception) -> None:
        self.fs, self.at, self.after, self.error, self.count = fs, at, after, error, 0

    def __getattr__(self, name: str) -> Any:
        known = getattr(self.fs, name)
        if name not in ("pipe_file", "put_file", "get_file", "cat_file", "find", "exists", "rm_file"):
            return known

        def call(*given: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.at and not self.after:
                raise self.error
            result = known(*given, **named)
            if self.count == self.at:
                raise self.error
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("work", ["execute", "worker"])
def test_whichever_request_fails_the_next_start_ends_with_the_same_bytes(
    work: str, after: bool, memory: str, tmp_path: Path
) -> None:
    wanted = None
    for at in itertools.count(1, 2 if work == "execute" else 13):
        where = f"{memory}-{at}"
        here = host(where, tmp_path / f"one-{at}")
        here.fs = Failing(here.fs, at, after, ConnectionError("gone"))
        try:
            if work == "execute":
                do(here)
            else:
                worker.work(graph(here.folder), stage, "cpu", Silent())
        except UserError as error:
            assert "gone" in str(error) and here.url in str(error)
        reached = here.fs.count >= at
        steps = len((here.folder / "steps").read_text().splitlines()) if (here.folder / "steps").exists() else 0
        again = host(where, here.folder)
        do(again)
        assert len((here.folder / "steps").read_text().splitlines()) == 7 * STEPS >= steps  # nothing is done twice
        wanted = wanted or bytes_of(again.folder)
        other = host(where, tmp_path / f"other-{at}")
        assert len(finished(other.folder, "scores")) == 3 and bytes_of(other.folder) == wanted
        if not reached:
            break
    assert at > 10


def test_a_store_that_vanishes_costs_no_run(memory: str, tmp_path: Path) -> None:
    here = host(memory, tmp_path / "one")
    real, said = here.create, []

    def full(key: str, content: bytes | Path) -> bool:
        if key.startswith("runs/"):
            raise StoreError("no space is left in the bucket")
        return real(key, content)

    here.create = full  # type: ignore[method-assign]

    class Told(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    with pytest.raises(UserError, match=r"7 finished run\(s\) could not be published and are kept in .*no space"):
        executor.execute(graph(here.folder), stage, "cpu", Told())
    assert len(bytes_of(here.folder)) == 7 and sum("not published yet" in line for line in said) == 7
    do(host(memory, here.folder), never)  # and the next command publishes them
    assert len(host(memory, tmp_path / "other").known) == 7


def test_a_store_that_lists_late_gives_the_same(memory: str, tmp_path: Path) -> None:
    one = host(memory, tmp_path / "one")
    empty = one.fs.find(one.base, detail=True)
    do(one)
    late = Store(memory, tmp_path / "late")
    listings = iter([empty] * 3)
    real = late.fs

    class Late:
        def __init__(self) -> None:
            self.asked: set[str] = set()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def find(self, *given: Any, **named: Any) -> Any:
            listed = next(listings, None)
            return real.find(*given, **named) if listed is None else listed

        def get_file(self, key: str, place: str) -> None:
            if key not in self.asked:  # listed, but not yet there
                self.asked.add(key)
                raise FileNotFoundError(key)
            real.get_file(key, place)

    late.fs = Late()
    late.refresh()
    ELSEWHERE[late.folder] = late
    assert len(executor.pending(graph(late.folder))) == 7
    assert worker.work(graph(late.folder), never, "cpu", Silent()) == 0  # asked by name before it is done again
    assert len(finished(late.folder, "scores")) == 3 and whole(late.folder) == whole(one.folder)


# --- damage


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "outside", "link", "another", "noise", "hidden"])
def test_a_damaged_object_is_named_and_nothing_of_it_is_used(how: str, memory: str, tmp_path: Path) -> None:
    one = host(memory, tmp_path / "one")
    do(one)
    first, second = (next(key for key in sorted(one.fs.find(one.base)) if kind in key) for kind in ("/i-", "/t-"))
    content = one.fs.cat_file(first)
    flipped = bytearray(content)
    flipped[content.index(b'"seed"') + 3] ^= 1
    one.fs.pipe_file(
        first,
        {
            "cut": content[:-20000],
            "flipped": bytes(flipped),
            "empty": b"",
            "outside": tar(member("../outside", b"x")),
            "link": tar(member("run.json", kind=tarfile.SYMTYPE)),
            "another": one.fs.cat_file(second),
            "noise": random.Random(0).randbytes(4096),
            "hidden": tar(member(".hidden", b"x")),
        }[how],
    )
    other = host(memory, tmp_path / "other")
    place = first.rpartition("/")[2]
    broken = next(run for run in graph(other.folder) if run.inversion.digest in place)
    with pytest.raises(UserError, match=rf"{place} is damaged; delete that object"):
        broken.inversion.read("run.json")
    assert not list(other.folder.rglob("outside")) and not broken.inversion.path.exists()
    assert len(store.bring_scores(other.folder)) == 1 and len(finished(other.folder, "scores")) == 2
    assert sorted(path.name for path in other.folder.glob("*/.*")) == []
    one.fs.rm_file(first)
    again = host(memory, tmp_path / "again")
    do(again)  # deleted, it is done again
    assert bytes_of(again.folder).items() <= bytes_of(one.folder).items()


def test_a_run_that_was_changed_here_is_not_published(memory: str, tmp_path: Path) -> None:
    here = Store(memory, tmp_path / "one")
    worker.work(graph(here.folder), stage, "cpu", Silent())  # as in a folder that stands for nothing
    changed = graph(here.folder)[0].path
    (changed / "model.bin").write_text("1")
    (here.folder / ".outbox").mkdir()
    (here.folder / ".outbox" / "t.999999999.tar").write_bytes(b"of a killed process")
    here = host(memory, here.folder)
    here.settle(Silent())
    assert len(here.known) == 6 and f"scores/{changed.name}" not in here.known
    assert list(here.folder.glob(".outbox/*")) == []


# --- what cannot be a store


def refused(url: str, tmp_path: Path) -> str:
    with pytest.raises(UserError) as told:
        here = host(url, tmp_path / "here")
        do(here)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_bad_stores_are_one_line(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a store of s3://, gs://, memory://, file://" in refused("ftp://somewhere/x", tmp_path)
    assert "names no place" in refused("memory://", tmp_path)
    if not find_spec("gcsfs"):
        assert "pip install 'mibench[store]'" in refused("gs://bucket/results", tmp_path)
    host(memory, tmp_path / "made").write("store.json", b'{"layout": 99}')
    assert "holds runs in layout 99, this mibench writes 1" in refused(memory, tmp_path)
    (tmp_path / "results").write_text("a file in the way")
    assert "was asked for store.json and failed (" in refused(f"file://{tmp_path}/results", tmp_path)
    monkeypatch.setattr(Store, "create", lambda *given: True)
    assert "overwrites what is there though asked not to" in refused(f"{memory}-careless", tmp_path)


def test_bad_buckets_are_one_line(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "make the bucket first" in refused("s3://nobody/results", tmp_path)
    real = Store("s3://bucket/locked", tmp_path / "locked")

    def denied(*given: Any, **named: Any) -> None:
        raise PermissionError("Access Denied")

    real.refresh()
    real.fs.pipe_file = denied  # what s3fs makes of 403
    with pytest.raises(UserError, match=r"refused \(Access Denied\); mend your access"):
        real.begin()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "NoCredentialsError: Unable to locate credentials" in refused("s3://bucket/results", tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "Could not connect to the endpoint" in refused("s3://bucket/results", tmp_path)


def test_a_url_is_looked_at_once_and_a_folder_stays_a_folder(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder_of("results") == Path("results") and folder_of(tmp_path) == tmp_path
    assert folder_of(memory) == folder_of(f"{memory}/") and folder_of(memory).parent == tmp_path / "mibench" / "stores"
    assert folder_of(f"{memory}-2") != folder_of(memory)


# --- workers of several hosts


def test_workers_of_two_hosts_share_a_suite(url: str, tmp_path: Path) -> None:
    hosts = [host(url, tmp_path / name) for name in ("one", "other")]
    done: list[int] = []

    def help_with(here: Store) -> None:
        done.append(worker.work(graph(here.folder), stage, "cpu", Silent()))

    threads = [threading.Thread(target=help_with, args=(here,)) for here in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = [line for here in hosts for line in (here.folder / "steps").read_text().splitlines()]
    assert sum(done) == 7 and len(steps) == len(set(steps)) == 7 * STEPS
    left = host(url, tmp_path / "third")
    assert sorted(left.objects)[-1] == "store.json" and len(left.objects) == 8  # no claim, no card
    assert len(finished(left.folder, "scores")) == 3 and left_over(left.folder) == []


def test_a_claim_of_another_host_is_left_alone_and_of_a_dead_one_taken(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = host(memory, tmp_path / "one"), host(memory, tmp_path / "other")
    run, same = graph(one.folder)[0].inversion.target, graph(other.folder)[0].inversion.target
    first = StoreWorker(one.folder, one)  # never begun: it does not tell that it lives
    (one.folder / claims.FOLDER).mkdir(parents=True)
    with StoreWorker(other.folder, other) as second:
        with first.claimed(run) as own:
            assert own is not None
            first.beat()
            other.refresh()
            assert [(one.run, one.alive) for one in status(other.folder)] == [(run.label, True)]
            with second.claimed(same) as theirs:
                assert theirs is None
            monkeypatch.setattr(claims, "SILENT", 0.05)
            time.sleep(0.1)
            with second.claimed(same) as theirs:
                assert theirs is not None
                other.refresh()
                assert sorted(other.below(f"claims/targets/{run.id}/")) == ["0", "1"]
        other.refresh()
        assert other.below("claims/") == {}


def test_a_failure_on_one_host_is_told_to_the_other(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = host(memory, tmp_path / "one"), host(memory, tmp_path / "other")
    monkeypatch.setenv("FAILS", "i")
    for here in (one, other):  # who starts later tries again
        with pytest.raises(UserError, match=r"inversions/i-\w+ cannot be done \(and 2 more"):
            worker.work(graph(here.folder), stage, "cpu", Silent())
    other.refresh()
    assert len(other.below("failed/")) == 3

    told = StoreWorker(one.folder, one)
    with told:
        one.refresh()
        looking = worker._Elsewhere(told, {run.label: run for run in graph(one.folder)})
        inversion = graph(one.folder)[0].inversion
        left = {run.label: run for run in [inversion, *graph(one.folder)]}
        looking.by_id = {f"{run.kind}/{run.id}": run for run in left.values()}
        assert looking.look(dict(left)) == {}  # it failed before this worker began
        StoreWorker(other.folder, other).tell(inversion, "why not")
        looking.next = 0.0
        assert looking.look(left) == {inversion.label: "why not"} and len(left) == 2  # nor what builds on it
    monkeypatch.setenv("FAILS", "")
    assert worker.work(graph(one.folder), stage, "cpu", Silent()) == 6


def test_a_worker_of_another_version_is_refused_by_name(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.1)
    one, other = host(memory, tmp_path / "one"), host(memory, tmp_path / "other")
    with StoreWorker(one.folder, one) as living:
        living.card["torch"] = "1.0"
        time.sleep(0.5)  # of four beats one goes to the store
        other.refresh()
        with pytest.raises(UserError, match=r"has torch 1\.0, this process on .* has torch 2"):
            StoreWorker(other.folder, other).__enter__()
    other.write("workers/dead.json", json.dumps(living.card).encode())
    other.refresh()
    with StoreWorker(other.folder, other):  # a card that stands still is a dead worker's
        pass
