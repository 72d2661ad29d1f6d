"""Laws of runs: one question, one id; and a kill at any moment leaves either no run or a whole one."""

import errno
import hashlib
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from shell import full_disk

import mibench
from mibench.runs import KINDS, Run, clock, damaged, executor, find, finished, provenance
from mibench.runs import run as runs
from mibench.runtime.bits import other_bits
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic, write_json

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mibench.__file__).parent.parent)}


def run_of(root: Path, **changed: Any) -> Run:
    asked: dict[str, Any] = {
        "kind": "targets",
        "name": "toy",
        "spec": {"seed": 0, "lr": 0.1, "deep": {"a": [1, 2], "b": None}},
        "parents": {},
        "inputs": {},
    }
    return Run(root, **(asked | changed))


def work(run: Run) -> None:
    """A small stage: two data files, a checkpoint, the end."""
    with run.locked(), run.writing() as folder:
        write_json(folder / "checkpoint-1.pt", [1])
        write_atomic(folder / "model.bin", lambda scratch: scratch.write_bytes(b"weights" * 100))
        write_json(folder / "metrics.json", {"accuracy": 0.5})
        run.finish({"seconds": 1})


def assert_whole(run: Run) -> None:
    digests = json.loads((run.path / "done").read_text())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.path.iterdir()}
    found.pop("done")
    assert digests == found and set(found) == {"model.bin", "metrics.json", "run.json"}
    assert run.done and run.read("run.json")["id"] == run.id and not run.work.exists()


# --- ids


def test_golden_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PROTOCOL", 1)
    run = run_of(tmp_path)
    text = '{"kind":"targets","parents":{},"protocol":1,"spec":{"deep":{"a":[1,2],"b":null},"lr":0.1,"seed":0}}'
    assert run.digest == hashlib.sha256(text.encode()).hexdigest()
    assert run.id == run.digest[: runs.DIGITS] == "8a27873a7156"
    assert run.path == tmp_path / "targets" / f"toy-{run.id}" and run.label == f"targets/toy-{run.id}"


def test_id_depends_on_every_part_of_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = run_of(tmp_path)
    one, other = run_of(tmp_path, spec={"seed": 1}), run_of(tmp_path, spec={"seed": 2})
    asked = [
        base,
        one,
        other,
        run_of(tmp_path, kind="evaluators"),
        run_of(tmp_path, spec={"seed": 0, "lr": 0.2, "deep": {"a": [1, 2], "b": None}}),
        run_of(tmp_path, spec={"seed": 0, "lr": 0.1, "deep": {"a": [2, 1], "b": None}}),
        run_of(tmp_path, spec={"seed": 0, "lr": 0.1, "deep": {"a": [1, 2], "b": False}}),
        run_of(tmp_path, spec={"seed": 0, "lr": 0.1, "deep": {"a": [1, 2]}}),
        run_of(tmp_path, spec={"seed": "0", "lr": 0.1, "deep": {"a": [1, 2], "b": None}}),
        run_of(tmp_path, parents={"target": one}),
        run_of(tmp_path, parents={"target": other}),
        run_of(tmp_path, parents={"prior": one}),
        run_of(tmp_path, parents={"target": [one]}),
        run_of(tmp_path, parents={"target": [one, other]}),
        run_of(tmp_path, parents={"target": [other, one]}),
        run_of(tmp_path, parents={"target": one, "prior": other}),
        run_of(tmp_path, parents={"target": other, "prior": one}),
    ]
    ids = [run.id for run in asked]
    assert len(set(ids)) == len(ids)
    monkeypatch.setattr(runs, "PROTOCOL", runs.PROTOCOL + 1)
    assert run_of(tmp_path).id != base.id


def test_id_depends_on_grandparents(tmp_path: Path) -> None:
    def chain(seed: int) -> Run:
        target = run_of(tmp_path, spec={"seed": seed})
        return run_of(tmp_path, kind="scores", parents={"inversion": run_of(tmp_path, parents={"target": target})})

    assert chain(1).id != chain(2).id


def test_id_depends_on_nothing_else(tmp_path: Path) -> None:
    base = run_of(tmp_path)
    one, other = run_of(tmp_path, spec={"seed": 1}), run_of(tmp_path, spec={"seed": 2})
    same = [
        run_of(tmp_path, spec={"deep": {"b": None, "a": (1, 2)}, "lr": 0.1, "seed": 0}),
        run_of(tmp_path, inputs={"path": "/somewhere"}),
        run_of(tmp_path, name="other"),
        run_of(tmp_path / "elsewhere"),
    ]
    assert {run.id for run in same} == {base.id}
    forth = run_of(tmp_path, parents={"target": one, "prior": other})
    back = run_of(tmp_path, parents={"prior": other, "target": one})
    assert forth.id == back.id and forth.ancestors() == back.ancestors() == [other, one]


def clashing(root: Path, spec: dict[str, Any], stored: dict[str, Any], parents: dict[str, Any] | None = None) -> Run:
    """A run in whose place lies a whole one of another specification, every digest fitting."""
    wanted = run_of(root, spec=spec, parents=parents or {})
    other = run_of(root, spec=stored)
    work(other)
    other.path.rename(wanted.path)
    card = json.loads((wanted.path / "run.json").read_text()) | {"id": wanted.id}
    (wanted.path / "run.json").write_text(json.dumps(card))
    digests = json.loads((wanted.path / "done").read_text())
    digests["run.json"] = hashlib.sha256((wanted.path / "run.json").read_bytes()).hexdigest()
    (wanted.path / "done").write_text(json.dumps(digests))
    return wanted


def test_two_specifications_with_one_id_never_share_a_run(tmp_path: Path) -> None:
    """As seeds 38604 and 61132 did, whose ids agreed in all of 8 digits."""
    wanted = clashing(tmp_path, {"seed": 61132, "deep": {"a": 1}}, {"seed": 38604, "deep": {"a": 1}})
    message = r"another specification than the one wanted.*spec\.seed: 38604 there, 61132 wanted.*--force"
    for use in (lambda: wanted.done, lambda: executor.pending([wanted]), lambda: find(tmp_path, wanted.id)):
        with pytest.raises(UserError, match=message if use.__code__.co_names[0] != "find" else "does not hold") as told:
            use()
        assert str(wanted.path) in str(told.value) and "\n" not in str(told.value)
    assert executor.pending([wanted], force=True) == [wanted]
    wanted.discard()
    work(wanted)
    assert wanted.done


def test_a_clash_of_what_a_run_builds_on_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal specification, equal ids of the parents: their digests still tell."""
    monkeypatch.setattr(runs, "DIGITS", 0)
    one, other = run_of(tmp_path, spec={"seed": 38604}), run_of(tmp_path, spec={"seed": 61132})
    first, second = (run_of(tmp_path, kind="scores", parents={"target": parent}) for parent in (one, other))
    assert first.path == second.path and first.parent_ids() == second.parent_ids()
    work(first)
    assert first.done
    with pytest.raises(UserError, match="another specification"):
        _ = second.done


def test_nan_has_no_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _ = run_of(tmp_path, spec={"lr": float("nan")}).id


# --- whole or not at all


def test_a_finished_run_is_whole_and_found_again(tmp_path: Path) -> None:
    parent = run_of(tmp_path, inputs={"path": "x"})
    work(parent)
    child = run_of(tmp_path, kind="scores", name="gmi", parents={"target": parent, "evaluators": [parent]})
    work(child)
    for run in (parent, child):
        assert_whole(run)
        assert finished(tmp_path, run.kind) == [run]
        for reference in (run.id, run.id[:5], run.path.name, str(run.path), f"{run.path}/"):
            assert find(tmp_path, reference) == run
    assert child.read("run.json")["provenance"] == {"seconds": 1}
    assert parent.read("run.json")["inputs"] == {"path": "x"}


CHILD = """
import os, signal, sys
from pathlib import Path
from typing import Any
from mibench.runtime.files import write_atomic, write_json
from mibench.runs import Run
{functions}
root, left = Path(sys.argv[1]), int(sys.argv[2])
writing = {{"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}}
def hook(event, args):
    global left
    if event not in writing or not str(args[0]).startswith(str(root)):
        return
    if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+") or args[2] & os.O_WRONLY):
        return
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
work(run_of(root))
"""


def test_kill_9_before_any_write_leaves_no_run_or_a_whole_one_and_the_next_try_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    code = CHILD.format(functions=f"{inspect.getsource(run_of)}\n{inspect.getsource(work)}")
    reference = run_of(tmp_path / "reference")
    work(reference)
    wanted = {path.name: path.read_bytes() for path in reference.path.iterdir()}
    killed = 0
    # Three kills in a row per folder: a try after a kill may be killed itself.
    for step in range(0, 60, 3):
        root = tmp_path / str(step)
        root.mkdir()
        codes = []
        for place in (step, step + 1, step + 2):
            done = subprocess.run(
                [sys.executable, "-c", code, str(root), str(place)], env=ENVIRONMENT, capture_output=True, check=False
            )
            assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
            codes.append(done.returncode)
            run = run_of(root)
            assert finished(root, "targets") == ([run] if run.done else [])
            if run.path.exists():
                assert_whole(run)
        killed += sum(code != 0 for code in codes)
        if not run_of(root).done:
            work(run_of(root))
        assert_whole(run_of(root))
        assert {path.name: path.read_bytes() for path in run_of(root).path.iterdir()} == wanted
        if codes[0] == 0:
            break
    else:
        pytest.fail("the child never finished: more writes than kills")
    assert killed > 10


def test_files_that_a_killed_writer_left_do_not_stay_in_the_finished_run(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with run.locked(), run.writing() as folder:
        (folder / ".model.bin.4242.tmp").write_bytes(b"half")
    work(run)
    assert_whole(run)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom")])
def test_an_error_inside_keeps_the_work_and_shows_no_run(tmp_path: Path, error: BaseException) -> None:
    run = run_of(tmp_path)
    with pytest.raises(type(error)), run.locked(), run.writing() as folder:
        write_json(folder / "checkpoint-1.pt", [1])
        raise error
    assert not run.done and finished(tmp_path, "targets") == []
    with run.locked(), run.writing() as folder:
        assert json.loads((folder / "checkpoint-1.pt").read_text()) == [1]


def test_forgetting_a_run_can_be_killed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--force: a run that is half deleted must not look finished."""
    run = run_of(tmp_path)
    work(run)

    def half(path: Path) -> None:
        (Path(path) / "model.bin").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        run.discard()
    monkeypatch.undo()
    assert not run.done and finished(tmp_path, "targets") == []
    work(run)
    assert_whole(run)


def test_discard_forgets_the_run_and_its_partial_work(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    work(run)
    with run.locked(), run.writing() as folder:
        write_json(folder / "checkpoint-1.pt", [1])
    run.discard()
    assert not run.done and not run.path.exists() and not run.work.exists()
    run.discard()


def test_who_waits_says_for_whom(tmp_path: Path) -> None:
    run, told = run_of(tmp_path), []
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(function=inspect.getsource(run_of)), str(tmp_path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"

    def say(line: str) -> None:
        told.append(line)
        holder.stdin.close()  # type: ignore[union-attr]

    with run.locked(say):
        pass
    assert holder.wait() == 0
    holder.stdout.close()
    assert len(told) == 1 and told[0].startswith(f"note: {run.label}: waiting for process {holder.pid} on ")
    assert " since 20" in told[0]
    with run.locked(say):
        pass
    assert len(told) == 1, "nobody has it now"


HOLDER = """
import sys
from pathlib import Path
from typing import Any
from mibench.runs import Run
{function}
with run_of(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def machine(**other: Any) -> dict[str, Any]:
    return {"device": "cpu", "precision": "fp32", "threads": 1, "torch": "2.11.0", "capability": "AVX2"} | other


def test_what_is_gone_on_with_elsewhere_is_told_and_kept_in_the_card(tmp_path: Path) -> None:
    run, told = run_of(tmp_path), []
    for one in (machine(), machine(torch="2.11.1"), machine(threads=2, capability="AVX512")):
        with run.locked(), run.writing(one, told.append):
            pass
    assert len(told) == 1 and "threads 1, 2; capability AVX2, AVX512" in told[0] and run.label in told[0]
    with run.locked(), run.writing(machine(threads=2, capability="AVX512"), told.append) as folder:
        write_json(folder / "metrics.json", {})
        run.finish(machine(threads=2, capability="AVX512"))
    assert len(told) == 1
    assert run.read("run.json")["provenance"]["begun_on"] == [machine(), machine(torch="2.11.1")]


def test_an_undisturbed_run_says_nothing_of_other_machines(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with run.locked(), run.writing(machine()):
        run.finish(machine())
    assert "begun_on" not in run.read("run.json")["provenance"]
    assert sorted(path.name for path in run.path.iterdir()) == ["done", "run.json"]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"device": "cpu:0", "torch": "2.11.9", "gpu": "x"}, []),
        ({"device": "cuda:1"}, ["device cpu, cuda"]),
        ({"torch": "2.12.0"}, ["torch 2.11, 2.12"]),
        ({"precision": "bf16"}, ["precision fp32, bf16"]),
    ],
)
def test_what_changes_bits(change: dict[str, Any], differs: list[str]) -> None:
    assert other_bits(machine(), machine(**change)) == differs


@pytest.mark.parametrize("what", ["lock", "run.json", "done"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    run = run_of(tmp_path)
    work(run)
    path = run.path.parent / f".{run.id}.lock" if what == "lock" else run.path / what
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError) as told:
        if what == "lock":
            run.locked().__enter__()
        else:
            find(tmp_path, run.id)
    assert "pipe" in str(told.value) or "unknown run" in str(told.value)


def test_two_processes_on_one_run_do_it_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom typing import Any\n"
        f"from mibench.runtime.files import write_json\nfrom mibench.runs import Run\n{inspect.getsource(run_of)}\n"
        "root = Path(sys.argv[1]); run = run_of(root)\n"
        "with run.locked():\n"
        "    if not run.done:\n"
        "        with run.writing() as folder:\n"
        "            with (root / 'worked').open('a') as log: log.write('x')\n"
        "            for i in range(20):\n"
        "                (folder / 'model.bin').write_text(str(i)); time.sleep(.01)\n"
        "            write_json(folder / 'metrics.json', {})\n"
        "            run.finish({})\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [(process.communicate()[1], process.returncode) for process in both] == [(b"", 0)] * 3
    assert (tmp_path / "worked").read_text() == "x"
    assert_whole(run_of(tmp_path))


# --- trouble


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EROFS, "Read-only file system")]
)
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "mkdir", refuse)
    wanted = f"cannot write to the results folder {tmp_path}.*--results"
    with pytest.raises(UserError, match=wanted) as caught, run_of(tmp_path).locked():
        pytest.fail("held a run in a folder that cannot be written")
    assert str(error.strerror) in str(caught.value) and "\n" not in str(caught.value)


def test_a_results_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="cannot write to the results folder"), run_of(tmp_path / "results").locked():
        pytest.fail("held a run below a file")


def test_a_full_disk_says_so_and_keeps_what_is_done(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    wanted = r"No space left on device.*run the same command again"
    with full_disk(1), pytest.raises(UserError, match=wanted) as caught, run.locked(), run.writing() as folder:
        write_json(folder / "checkpoint-1.pt", [1])
        write_json(folder / "model.bin", [2])
    assert str(run.work) in str(caught.value) and not run.done
    assert [path.name for path in run.work.iterdir()] == ["checkpoint-1.pt"]
    work(run)
    assert_whole(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"protocol": PROTOCOL}', "\x00\x01", "{}"])
def test_a_damaged_run_json_is_named(tmp_path: Path, text: str) -> None:
    run = run_of(tmp_path)
    work(run)
    path = run.path / "run.json"
    path.write_text(text.replace("PROTOCOL", str(runs.PROTOCOL)))
    with pytest.raises(UserError) as caught:
        find(tmp_path, run.id)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    whole = run_of(tmp_path, spec={"seed": 9})
    work(whole)
    assert finished(tmp_path, "targets") == [whole]  # the others are as they were
    (line,) = damaged(tmp_path, "targets")
    assert str(path) in line


@pytest.mark.parametrize("key", ["id", "kind", "name", "parents", "spec", "inputs"])
def test_a_run_json_without_a_key_is_named(tmp_path: Path, key: str) -> None:
    run = run_of(tmp_path)
    work(run)
    card = run.read("run.json")
    for changed in ({k: v for k, v in card.items() if k != key}, card | {key: 3}):
        (run.path / "run.json").write_text(json.dumps(changed))
        with pytest.raises(UserError) as caught:
            find(tmp_path, run.id)
        assert str(run.path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_was_edited_or_renamed_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    work(run)
    card = run.read("run.json")
    write_json(run.path / "run.json", card | {"spec": {"seed": 1}})
    with pytest.raises(UserError, match="does not hold what its name says"):
        find(tmp_path, run.id)
    write_json(run.path / "run.json", card)
    run.path.rename(run.path.with_name("toy-000000000000"))
    with pytest.raises(UserError, match="does not hold what its name says"):
        find(tmp_path, "000000000000")


def test_runs_of_another_protocol_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    work(run)
    old = runs.PROTOCOL
    monkeypatch.setattr(runs, "PROTOCOL", old + 1)
    assert finished(tmp_path, "targets") == []
    message = f"{run.path} was made under protocol {old}, where this mibench has {old + 1}: .*run its command again"
    with pytest.raises(UserError, match=message):
        find(tmp_path, run.path.name)


def test_runs_with_the_shorter_ids_of_old_are_found_and_refused(tmp_path: Path) -> None:
    """A folder of mibench 0.1, protocol 2, whose ids had 8 digits."""
    folder = tmp_path / "targets" / "digiface-cnn-none-364c308f"
    write_atomic_run(folder, {"id": "364c308f", "kind": "targets", "name": "digiface-cnn-none", "protocol": 2})
    for reference in ("364c308f", "364c", folder.name, str(folder)):
        with pytest.raises(UserError, match=r"made under protocol 2.*read it with mibench 0\.1\.0, or run its command"):
            find(tmp_path, reference)
    assert finished(tmp_path, "targets") == []


def write_atomic_run(folder: Path, card: dict[str, Any]) -> None:
    """A finished run of nothing but its card."""
    folder.mkdir(parents=True)
    write_json(folder / "run.json", card | {"provenance": {"mibench": "0.1.0"}})
    write_json(folder / "done", {"run.json": hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()})


def test_a_child_whose_parent_is_gone_says_which(tmp_path: Path) -> None:
    parent, child = run_of(tmp_path), run_of(tmp_path, kind="scores", parents={"target": run_of(tmp_path)})
    work(parent)
    work(child)
    parent.discard()
    with pytest.raises(UserError, match=parent.id):
        find(tmp_path, child.id)


def test_ambiguous_and_unknown_references(tmp_path: Path) -> None:
    seen: dict[str, Run] = {}
    for seed in range(100):
        run = run_of(tmp_path, spec={"seed": seed}, name=f"toy{seed}")
        if run.id[0] in seen:
            break
        seen[run.id[0]] = run
    other = seen[run.id[0]]
    work(run)
    work(other)
    with pytest.raises(UserError, match="matches 2 runs") as caught:
        find(tmp_path, run.id[0])
    assert run.path.name in str(caught.value) and other.path.name in str(caught.value)
    assert find(tmp_path, run.id) == run and find(tmp_path, other.path.name) == other
    for reference in ("nothing", "", "/", "zz"):
        with pytest.raises(UserError, match="unknown run"):
            find(tmp_path, reference)
    with pytest.raises(UserError, match=f"did you mean '{run.path.name}'"):
        find(tmp_path, f"{run.name}-{run.id[:-1]}x")


def test_an_empty_or_missing_results_folder_holds_no_runs(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        assert all(finished(root, kind) == [] for kind in KINDS)
        with pytest.raises(UserError, match="known: none"):
            find(root, "abc")


# --- files


@contextmanager
def interrupted(error: type[BaseException]) -> Iterator[None]:
    with pytest.raises(error):
        yield


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})

    def half(scratch: Path) -> None:
        scratch.write_text('{"new"')
        raise KeyboardInterrupt

    with interrupted(KeyboardInterrupt):
        write_atomic(path, half)
    with interrupted(ValueError):
        write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": True} and list(tmp_path.iterdir()) == [path]


def test_json_is_stable(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": [1.5, None, "é"]})
    write_json(tmp_path / "b", {"a": [1.5, None, "é"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"b": 1, "a": [1.5, None, "é"]}


def test_a_recorded_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["mibench", "audit", "--private", "/my faces/a$b", "--set", "name=it's; rm -rf ~"]
    monkeypatch.setattr(sys, "argv", words)
    assert shlex.split(provenance(clock(), {})["command"]) == words


def test_provenance_tells_who_and_how_long() -> None:
    wall, cpu = clock()
    told = provenance((wall - 3.0, cpu - 2.0), {"device": "cpu"})
    assert 3.0 <= told["seconds"] < 30 and 2.0 <= told["cpu_seconds"] < 30 and told["device"] == "cpu"
    assert told["mibench"] == mibench.__version__ and told["command"]
    json.dumps(told, allow_nan=False)


# --- what a run builds on -------------------------------------------------------------------------------------------


def test_relations_lead_from_a_score_to_the_backbone(tmp_path: Path) -> None:
    backbone = Run(tmp_path, "backbones", "b", {})
    target = Run(tmp_path, "targets", "t", {}, {"backbone": backbone})
    prior = Run(tmp_path, "priors", "p", {})
    inversion = Run(tmp_path, "inversions", "i", {}, {"target": target, "prior": prior})
    judges = [Run(tmp_path, "evaluators", name, {}) for name in ("one", "two")]
    score = Run(tmp_path, "scores", "s", {}, {"inversion": inversion, "evaluators": judges})
    assert score.inversion is inversion and score.evaluators == judges and inversion.prior is prior
    assert score.inversion.target.backbone is backbone
    assert Run(tmp_path, "inversions", "theirs", {}, {"target": target}).prior is None


def test_a_relation_that_is_not_there_is_named(tmp_path: Path) -> None:
    target = Run(tmp_path, "targets", "t", {})
    with pytest.raises(UserError, match=rf"{target.label} has no backbone; its parents are: none"):
        _ = target.backbone
    with pytest.raises(UserError, match=rf"{target.label} has no evaluation models; its parents are: none"):
        _ = target.evaluators
    twice = Run(tmp_path, "inversions", "i", {}, {"target": [target, target]})
    with pytest.raises(UserError, match="names several runs as its target; delete it and run it again"):
        _ = twice.target
