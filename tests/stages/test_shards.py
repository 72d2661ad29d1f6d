"""Laws of shards: they are parts of the one inversion, and together they are it."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from shell import GAN, SMALL, command, sets

from mibench.experiments import options
from mibench.experiments.plan import plan
from mibench.runs import Run, executor, finished
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import execute, invert, merge
from mibench.stages.invert import people

FILES = ("images.safetensors", "metrics.json", "log.jsonl", "grid.png")
ASKED = ["--method", "gmi", "--precision", "fp32", *SMALL, *GAN, *sets(steps=3, images=2)]


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 50, 129, 1000])
def test_every_identity_is_in_one_shard(count: int) -> None:
    for shards in range(1, min(count, 40) + 1):
        each = [people(count, shard, shards) for shard in range(1, shards + 1)]
        assert [one for part in each for one in part] == list(range(count))
        assert min(map(len, each)) >= 1 and max(map(len, each)) <= 2 * count / shards
    for shard, shards in ((0, 2), (3, 2), (1, count + 1)):
        with pytest.raises(UserError, match="give 1 <= i <= n"):
            people(count, shard, shards)


def test_a_shard_begins_where_a_batch_does() -> None:
    """Where there is enough for whole batches of 128, whatever number of rows an identity has."""
    assert [people(1000, one, 3).start for one in (1, 2, 3)] == [0, 384, 640]
    assert all(people(100_000, one, 7).start % 2048 == 0 for one in range(1, 8))


def target(root: Path) -> None:
    command("train-target", "--precision", "fp32", *SMALL, *sets(training__epochs=1), "--results", str(root))


def parts_of(root: Path, whole: Run) -> Run:
    """The inversion as who has split it knows it, not finished yet."""
    shutil.rmtree(whole.path)
    parts = sorted(finished(root, "shards"), key=lambda run: run.spec["shard"])
    return replace(whole, parts=tuple(parts))


def rewritten(run: Run, **changed: object) -> None:
    """Another shard than the one that was made, digests and all."""
    file = run.path / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    done = json.loads((run.path / "done").read_text())
    done["metrics.json"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (run.path / "done").write_text(json.dumps(done))


@pytest.fixture(autouse=True)
def two_identities_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of the whole end where shards do: what is searched at once is the same."""
    monkeypatch.setattr(invert, "batch_of", lambda *given: 4)
    monkeypatch.setenv("MIBENCH_WORKERS", "1")


def test_shards_merge_to_the_bytes_of_the_whole_and_what_is_missing_is_named(tmp_path: Path) -> None:
    one, split = tmp_path / "one", tmp_path / "split"
    target(one)
    whole = command("invert", *ASKED, "--results", str(one)).last
    shutil.copytree(one, split, ignore=shutil.ignore_patterns("gmi-*"))
    first = command("invert", *ASKED, "--results", str(split), "--shard", "2/2")
    assert first.last.parent == split / "shards" and not list((split / "inversions").glob("gmi-*"))
    assert "lacks the shard(s) 1/2; who does the last" in " ".join(first.err.split())
    assert command("show", first.last.name, "--results", str(split)).out.count("shard 2/2") == 1
    last = command("invert", *ASKED, "--results", str(split), "--shard", "1/2")
    assert last.last == split / "inversions" / whole.name and contents(last.last) == contents(whole)
    before = {path: path.stat().st_mtime_ns for path in last.last.iterdir()}
    assert command("invert", *ASKED, "--results", str(split), "--shard", "1/2").last == last.last
    assert {path: path.stat().st_mtime_ns for path in last.last.iterdir()} == before

    card = json.loads((last.last / "run.json").read_text())
    metrics = [json.loads((run.path / "metrics.json").read_text()) for run in finished(split, "shards")]
    assert card["inputs"] == {"shards": 2} and len(card["merged"]["shards"]) == 2
    asked = sum(one["queries_per_identity"] * one["identities"] for one in metrics)
    total = json.loads((whole / "metrics.json").read_text())
    assert asked == total["queries_per_identity"] * total["identities"] > 0

    run = parts_of(split, next(run for run in finished(split, "inversions") if run.name == "gmi"))
    engine = resolve("cpu", "fp32")
    rewritten(run.parts[1], shared_queries=7)
    with pytest.raises(UserError, match=r"shards/gmi-\w+ asked 7 queries for everybody and shards/gmi-\w+ 0"):
        merge.work(run, engine, Silent())
    rewritten(run.parts[1], shared_queries=0, global_generators=["numpy"])
    with pytest.raises(UserError, match="drew from the global generators of numpy"):
        merge.work(run, engine, Silent())
    images = run.parts[0].path / "images.safetensors"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf"{images} was changed or cut short"):
        merge.work(run, engine, Silent())
    shutil.rmtree(run.parts[1].path)
    with pytest.raises(UserError, match=r"lacks the shard\(s\) 2/2; run mibench invert --shard"):
        merge.work(run, engine, Silent())
    for words, said in (
        (("--shard", "3/2"), "--shard takes I/N"),
        (("--shard", "1/5"), "only 4 identities"),
        (("--shard", "1/2", "--force"), "--force and --shard exclude each other"),
    ):
        assert said in command("invert", *ASKED, "--results", str(split), *words).error


def test_any_worker_may_do_a_shard(tmp_path: Path) -> None:
    """As runs of the graph, which the inversion waits for; its id is that of the whole."""
    root = tmp_path / "results"
    target(root)
    asked = {"method": "gmi", "sets": [*SMALL[1::2], *GAN[1::2], "steps=2", "images=2"], "precision": "fp32"}
    (whole,) = plan(options.attack("inversions", **asked), root)  # type: ignore[arg-type]
    (split,) = plan(options.attack("inversions", shards=2, **asked), root)  # type: ignore[arg-type]
    assert split.id == whole.id and [run.spec["shard"] for run in split.parts] == [[1, 2], [2, 2]]
    assert [run.kind for run in executor.pending([split])][-3:] == ["shards"] * 2 + ["inversions"]
    execute([split], "cpu", Silent())
    merged = contents(split.path)
    shutil.rmtree(split.path)
    execute([whole], "cpu", Silent())
    assert contents(whole.path) == merged
