"""Kills, full disks and company: whatever happens between two bytes, the next try ends with the same bytes.

Commands run in processes forked from a server that has imported everything, because starting Python costs seconds: the
tests talk to this file, run as a program. A forked process counts its *write points* (each opening for writing,
flush, rename, removal and new folder) and may die, or be refused, at any one of them.

The suite takes a sample of the write points. `MIBENCH_KILLS=N` takes all of them, and N kills at random times.
"""

import atexit
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shell import ENVIRONMENT, SCRATCH, SMALL, sets

from mibench.runtime.files import write_atomic

# --- the server -----------------------------------------------------------------------------------------------------

WRITING = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Faults:
    """Counts write points below the current folder, and strikes at one of them, or at it and all that follow.

    `kill`: dies before it. `tear`: dies in the middle of it, half of the file written. A number: that error.
    """

    def __init__(self, at: int | None = None, how: str | int = "kill", once: bool = False) -> None:
        self.at, self.how, self.once = at, how, once
        self.count = 0
        self.busy = False
        self.below = os.getcwd() + os.sep
        self.flush = os.fsync
        os.fsync = self.fsync  # type: ignore[assignment]
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy or event not in WRITING or not isinstance(args[0], str | os.PathLike):
            return
        if event == "open" and not ((isinstance(args[1], str) and set(args[1]) & set("wax+")) or args[2] & os.O_WRONLY):
            return
        path = os.path.abspath(args[0])
        if path.startswith(self.below):
            self.point(path, event == "open" and args[1] == "w")

    def fsync(self, number: int) -> None:
        self.point(number, True)
        self.flush(number)

    def point(self, place: str | int, tearable: bool) -> None:
        self.count += 1
        if self.at is None or self.count < self.at or (self.once and self.count > self.at):
            return
        if isinstance(self.how, int):
            raise OSError(self.how, os.strerror(self.how), place if isinstance(place, str) else None)
        self.busy = True
        if self.how == "tear" and tearable:
            if isinstance(place, int):
                os.ftruncate(place, os.fstat(place).st_size // 2)
            else:
                Path(place).write_text("torn")
        os.kill(os.getpid(), signal.SIGKILL)


def child(job: dict[str, Any]) -> None:
    """Run one command as a process of its own would; never returns."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job["log"] + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    points = os.open(job["log"] + "points", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for name, value in job["limits"].items():
        more = points + 1 if name == "NOFILE" else 0
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value + more, value + more))
    exec(job["patch"], {})
    faults = Faults(**job["fault"])
    sys.argv = ["mibench", *job["words"]]
    code = 1
    try:
        from mibench import cli

        cli.main()
    except SystemExit as left:
        code = left.code  # type: ignore[assignment]
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(points, str(faults.count).encode())
        os._exit(code)


def serve() -> None:
    """A line of JSON in: commands that run at once. A line of JSON out: how each ended, -9 if it was killed."""
    import pkgutil

    import torch
    import torch.optim.adam

    import mibench

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(mibench.__path__, "mibench."):
        if not module.name.endswith("__main__"):
            __import__(module.name)
    from mibench.core import steps
    from mibench.plugins import registry
    from mibench.priors import gan
    from mibench.stages import artifacts, train_backbone

    train_backbone.RECIPE |= {"epochs": 2, "least_steps": 0}
    steps.SECONDS = 0.0  # an attack keeps every step
    gan.Loop.run.__defaults__ = (5,)  # type: ignore[attr-defined]  # checkpoints that few steps will reach
    asked = dict(item.removeprefix("data.").split("=") for item in SMALL[1::2])
    source = registry.configure("data", "digiface", settings=asked)
    artifacts.open_dataset(artifacts.dataset_spec(source)[1])
    for line in sys.stdin:
        jobs = json.loads(line)
        since = time.monotonic()
        living: dict[int, int] = {}
        for place, job in enumerate(jobs):
            pid = os.fork()
            if not pid:
                child(job)
            living[pid] = place
        found: list[Any] = [None] * len(jobs)
        while living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            spent = time.monotonic() - since
            if pid in living:
                found[living.pop(pid)] = {"code": os.waitstatus_to_exitcode(status), "seconds": spent}
                continue
            for pid, place in living.items():
                if jobs[place]["delay"] is not None and spent > jobs[place]["delay"]:
                    os.kill(pid, jobs[place]["signal"])
                    jobs[place]["delay"] = None
            time.sleep(0.001)
        print(json.dumps(found), flush=True)


# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal that killed it."""

    code: int
    seconds: float
    points: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refusal; no traceback."""
        lines = [
            line for line in self.err.splitlines() if not line.startswith(("done ", "data set ", "images ", "note: "))
        ]
        assert self.code == 2 and len(lines) == 1 and lines[0].startswith("mibench: error: "), (self.code, self.err)
        return lines[0].removeprefix("mibench: error: ")


@cache
def server() -> "subprocess.Popen[str]":
    """One for all tests of this process, ended with it."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(process.communicate)
    return process


def together(jobs: list[dict[str, Any]]) -> list[Ended]:
    """Run commands at once and wait for all."""
    (SCRATCH / "logs").mkdir(exist_ok=True)
    usual = {"environment": {}, "fault": {}, "delay": None, "signal": signal.SIGKILL, "limits": {}, "patch": ""}
    asked = [usual | job | {"log": f"{SCRATCH}/logs/{place}."} for place, job in enumerate(jobs)]
    for job in asked:
        job["folder"] = str(job["folder"])
    to, back = server().stdin, server().stdout
    assert to is not None and back is not None
    to.write(json.dumps(asked) + "\n")
    to.flush()
    ended = []
    for job, found in zip(asked, json.loads(back.readline()), strict=True):
        out, err, points = (Path(job["log"] + name) for name in ("out", "err", "points"))
        count = int(points.read_text() or -1)
        ended.append(Ended(found["code"], found["seconds"], count, out.read_text(), err.read_text()))
    return ended


def run(words: list[str], folder: Path, **how: Any) -> Ended:
    """Run one command in a folder."""
    return together([{"words": words, "folder": folder, **how}])[0]


# --- what must hold -------------------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, Any]:
    """Every file below a folder but locks; of run.json all but who and when, of `done` all but the digest of that."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            held: Any = path.read_bytes().replace(os.fsencode(root), b"")  # where imported images lay
            if path.name == "run.json":
                held = {key: value for key, value in json.loads(held).items() if key != "provenance"}
            elif path.name == "done":
                held = {key: value for key, value in json.loads(held).items() if key != "run.json"}
            found[str(path.relative_to(root))] = held
    return found


def litter(root: Path) -> list[str]:
    """Hidden things that are not locks."""
    hidden = [path for path in root.rglob(".*") if path.suffix != ".lock"]
    return [str(path.relative_to(root)) for path in hidden]


def digest(path: Path) -> str:
    """As `done` has it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_whole(root: Path) -> None:
    """Whatever can be seen is finished, and is what its `done` says."""
    for done in root.glob("results/*/[!.]*/done"):
        files = {path.name: digest(path) for path in done.parent.iterdir() if path.name != "done"}
        assert json.loads(done.read_text()) == files, done.parent
    for path in root.glob("results/*/[!.]*"):
        assert (path / "done").exists() or path.parent.name == "report", path


# --- the chain of stages --------------------------------------------------------------------------------------------

RE = ["--defense", "re", *SMALL, *sets(training__epochs=3)]
PRIOR = sets(
    prior__width=2, prior__batch=4, prior__critic_steps=1, prior__warm_up=7, prior__steps=8, prior__latent_dim=4
)
GAN = [word.removeprefix("prior.") for word in PRIOR]
PPA = ["--method", "ppa", "--target", "TARGET", *sets(images=2, pool=300, candidates=8, steps=6, selection_views=4)]
STAGES: dict[str, list[str]] = {
    "backbone": ["train-target", "--pretrained", "public", *SMALL, *sets(training__epochs=2)],
    "target": ["train-target", *RE],
    "evaluators": ["train", *RE, *sets(evaluator__epochs=2)],
    "public": ["train-prior", "--prior", "public", *SMALL],
    "wgan_gp": ["train-prior", "--prior", "wgan_gp", *SMALL, *GAN],
    "kedmi": ["train-prior", "--prior", "kedmi", "--target", "TARGET", *GAN],
    "invert": ["invert", *PPA, "--prior", "wgan_gp", *SMALL, *PRIOR],
    "score": ["score", *sets(evaluator__epochs=2)],
    "images": ["score", "--images", "theirs", "--target", "TARGET", *sets(evaluator__epochs=2)],
    "report": ["report"],
}
"""Each builds on what came before; TARGET is the defended one."""


def words(stage: str, folder: Path) -> list[str]:
    """The command of a stage."""
    target = [path.name for path in folder.glob("results/targets/*-re-*")]
    return [target[0] if word == "TARGET" else word for word in STAGES[stage]]


def linked(folder: Path, into: Path) -> Path:
    """A copy that costs nothing: files are never changed in place, only replaced. Locks stay behind."""
    return Path(shutil.copytree(folder, into, copy_function=os.link, ignore=shutil.ignore_patterns(".*.lock")))


CHAIN = SCRATCH / "chain"


def before(stage: str) -> Path:
    """The folder as the stage found it."""
    undisturbed(stage)
    return CHAIN / f"before-{stage}"


def after(stage: str) -> Path:
    """The folder as the stage left it when nothing disturbed it."""
    undisturbed(stage)
    return CHAIN / f"after-{stage}"


@cache
def undisturbed(stage: str) -> Ended:
    """Run the stage after those before it; each once."""
    order = list(STAGES)
    place = order.index(stage)
    before = CHAIN / f"before-{stage}"
    if place:
        linked(after(order[place - 1]), before)
    else:
        before.mkdir(parents=True)
        pictures(before)
    folder = linked(before, CHAIN / f"after-{stage}")
    ended = run(words(stage, folder), folder)
    assert ended.code == 0, (stage, ended.err)
    assert_whole(folder)
    assert litter(folder) == []
    return ended


def pictures(folder: Path) -> None:
    """Another program's images."""
    for person in range(3):
        for number in range(2):
            path = folder / f"theirs/person {person}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = np.random.default_rng(10 * person + number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(colour).save(path)


# --- kills ----------------------------------------------------------------------------------------------------------

LONG = int(os.environ.get("MIBENCH_KILLS", "0"))


def again(stage: str, folder: Path, faults: list[dict[str, Any]]) -> int:
    """Start the stage once for each way to disturb it and then undisturbed; what is seen in between must be whole.

    Returns how often it was killed.
    """
    kills = 0
    for how in faults:
        ended = run(words(stage, folder), folder, **how)
        assert ended.code in (0, -signal.SIGKILL, -signal.SIGTERM), (stage, how, ended.err)
        kills += ended.code != 0
        assert_whole(folder)
    ended = run(words(stage, folder), folder)
    assert ended.code == 0, (stage, faults, ended.err)
    assert_whole(folder)
    assert litter(folder) == [], (stage, faults)
    found, wanted = contents(folder), contents(after(stage))
    assert found.keys() == wanted.keys(), (stage, faults)
    assert [name for name in found if found[name] != wanted[name]] == [], (stage, faults)
    return kills


def at(point: int, how: str | int = "tear", once: bool = False) -> dict[str, Any]:
    """A fault at a write point."""
    return {"fault": {"at": point, "how": how, "once": once}}


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_at_a_write_point_leaves_no_mark(stage: str, tmp_path: Path) -> None:
    """In the middle of a write, then before another, as the try after a kill may be killed itself."""
    points = undisturbed(stage).points
    tries = [[at(1 + points // 3), at(1 + points // 2, "kill")]]
    if LONG:
        tries = [[at(point, "tear" if point % 2 else "kill")] for point in range(1, points + 1)]
    kills = 0
    for number, faults in enumerate(tries):
        folder = linked(before(stage), tmp_path / str(number))
        kills += again(stage, folder, faults)
        shutil.rmtree(folder)
    print(f"{stage}: {kills} kills at {len(tries)} of {points} write points")
    assert kills >= len(tries)


@pytest.mark.parametrize("stage", STAGES if LONG else ["kedmi", "images", "report"])
def test_a_signal_at_any_time_leaves_no_mark(stage: str, tmp_path: Path) -> None:
    chance = random.Random(stage)
    kills = 0
    for number in range(max(1, LONG // len(STAGES))):
        folder = linked(before(stage), tmp_path / str(number))
        seconds = undisturbed(stage).seconds
        tries = [
            {"delay": chance.uniform(0.0, seconds), "signal": chance.choice([signal.SIGKILL, signal.SIGTERM])}
            for _ in range(chance.randint(1, 3))
        ]
        kills += again(stage, folder, tries)
        shutil.rmtree(folder)
    print(f"{stage}: {kills} signals at random times")


LEARN = ["train-prior", "--prior", "wgan_gp", *SMALL, *GAN, *sets(steps=60)]
"""Some seconds of training with a checkpoint every fifth step here, every hundredth as users start it."""


def forked(folder: Path, delay: float | None) -> tuple[int, float]:
    """The prior's training in a process of the server's; killed after so many seconds."""
    ended = run(LEARN, folder, delay=delay)
    return ended.code, ended.seconds


def outside(folder: Path, delay: float | None) -> tuple[int, float]:
    """The command as a user starts it: `python -m mibench`, nothing patched, SIGKILL from this process."""
    since = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "mibench", *LEARN, *sets(steps=600)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        child.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
    return child.returncode, time.monotonic() - since


@pytest.mark.parametrize(("start", "kills"), [(forked, 4), *([(outside, 20)] if LONG else [])])
def test_train_prior_killed_at_random_times_ends_with_the_same_bytes(start: Any, kills: int, tmp_path: Path) -> None:
    """Kill -9 at any time, again and again on one run until it ends, and from the beginning until there are enough."""
    whole = tmp_path / "whole"
    whole.mkdir()
    code, seconds = start(whole, None)
    assert code == 0
    chance, killed, resumed, runs = random.Random(start.__name__), 0, 0, 0
    while killed < kills:
        folder = tmp_path / str(runs)
        folder.mkdir()
        runs += 1
        for _ in range(kills):
            resumed += bool(list(folder.glob("results/priors/.*.partial/checkpoint*")))
            code, _ = start(folder, chance.uniform(0.3 * seconds, seconds) if killed < kills else None)
            killed += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL)
            assert_whole(folder)
            if code == 0:
                break
        else:
            assert start(folder, None)[0] == 0
        assert contents(folder) == contents(whole) and litter(folder) == []
    print(
        f"train-prior, {start.__name__}: {killed} kills in {runs} runs, {resumed} tries resumed; {seconds:.1f} s whole"
    )
    assert resumed


ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EMFILE)


@pytest.mark.parametrize("stage", STAGES if LONG else ["target", "invert", "images", "report"])
def test_an_error_at_a_write_point_is_one_line_and_the_next_try_ends_with_the_same_bytes(
    stage: str, tmp_path: Path
) -> None:
    """A full disk lets nothing new be written, a read-only one nothing at all, a bad one fails once."""
    points = undisturbed(stage).points
    place = list(STAGES).index(stage)
    faults = 0
    for point in range(1 + place % 3, points + 1, 1 if LONG else points):
        number = ERRORS[(point + place) % len(ERRORS)]
        folder = linked(before(stage), tmp_path / str(point))
        ended = run(words(stage, folder), folder, **at(point, number, number == errno.EIO))
        faults += 1
        if stage == "report":
            assert "ppa" in ended.out
        if ended.code:  # a lock or a temporary file that could not be removed does no harm
            assert os.strerror(number) in ended.error, (point, ended.err)
        again(stage, folder, [])
        shutil.rmtree(folder)
    print(f"{stage}: {faults} errors")


LIMITS = [{"FSIZE": 2000}, {"FSIZE": 30000}, {"NOFILE": 1}, {"NOFILE": 3}]


@pytest.mark.parametrize("stage", ["target", "wgan_gp"] if LONG else ["target"])
def test_limits_of_the_system_are_one_line(stage: str, tmp_path: Path) -> None:
    """Files of a limited size stop the writers that are not Python's, in the middle of a file; and few open files."""
    undisturbed(stage)
    folder = linked(before(stage), tmp_path / "now")
    for limit in LIMITS:
        ended = run(words(stage, folder), folder, limits=limit)
        assert ended.code == 0 or "run the same command again" in ended.error or "Too many open files" in ended.error
        assert ended.code or "NOFILE" in limit  # three files are enough
        assert_whole(folder)
    again(stage, folder, [])


def test_a_cache_that_cannot_be_used_is_worked_around(tmp_path: Path) -> None:
    """It is a file, cannot be written, holds half a file, or is filled by four at once."""
    slow = "from mibench.data import cache\nfrom mibench.stages import artifacts\ncache._SLOW_S = 0\n"
    slow += "artifacts._opened.clear()\n"
    wanted = contents(linked(after("public"), tmp_path / "wanted") / "results/priors")
    for trouble in ("none", "a file", "torn", "read-only"):
        folder = tmp_path / trouble
        place = folder / "cache"
        folder.mkdir()
        if trouble == "a file":
            place.write_text("")
        elif trouble == "torn":
            shutil.copytree(tmp_path / "none/cache", place)
            (kept,) = place.rglob("*.safetensors")
            kept.write_bytes(kept.read_bytes()[:-100])
        code = slow
        if trouble == "read-only":
            code += "cache.cache_folder = lambda: cache.Path('/proc/1/mibench')\n"
        job = {"words": STAGES["public"], "folder": folder, "patch": code}
        job["environment"] = {"XDG_CACHE_HOME": str(place)}
        for ended in together([job] * (4 if trouble == "none" else 1)):
            assert ended.code == 0, (trouble, ended.err)
        assert contents(folder / "results/priors") == wanted
        assert litter(folder) == []


CLOCKS = """
import itertools, os, time
jumps = itertools.cycle([0.0, 7200.0, -86400.0, 1e9])
now, steady, since = time.time, time.monotonic, time.monotonic()
time.time = lambda: now() + next(jumps)
time.monotonic = lambda: since + 3600.0 * (steady() - since)
os.environ["TZ"] = "Pacific/Kiritimati"
time.tzset()
"""


@pytest.mark.parametrize("stage", STAGES if LONG else ["target", "images"])
def test_clocks_that_jump_change_nothing(stage: str, tmp_path: Path) -> None:
    """Every second lasts an hour, the time of day goes back and forth, and all files are of tomorrow."""
    folder = Path(shutil.copytree(before(stage), tmp_path / "now"))
    for path in folder.rglob("*"):
        os.utime(path, (4e9, 4e9))
    ended = run(words(stage, folder), folder, patch=CLOCKS)
    assert ended.code == 0 and ended.seconds < 20 + 5 * undisturbed(stage).seconds, ended.err
    again(stage, folder, [])
    for card in folder.glob("results/*/*/run.json"):
        spent = json.loads(card.read_text())["provenance"]
        assert spent["seconds"] >= 0 and spent["cpu_seconds"] >= 0


def test_the_dead_leave_nothing_and_the_living_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors writes a file of another name that only its owner may read, and renames that."""
    path = tmp_path / "a[1].bin"
    dead = tmp_path / ".a[1].bin.999999.tmp"
    dead.mkdir()
    (dead / ".tmpXYZ").write_bytes(b"half")

    def write(scratch: Path) -> None:
        assert not dead.exists()
        scratch.with_name(".tmpABC").write_bytes(b"half")
        scratch.touch(0o600)
        monkeypatch.setattr(os, "getpid", lambda: 999998)
        write_atomic(path, lambda other: other.write_bytes(b"theirs"))
        monkeypatch.undo()
        assert path.read_bytes() == b"theirs"
        scratch.write_bytes(b"mine")

    write_atomic(path, write)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"mine"
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


# --- company --------------------------------------------------------------------------------------------------------

COUNTED = """
from mibench import runs
finish = runs.Run.finish
def counted(run, provenance):
    finish(run, provenance)
    with open("worked.lock", "a") as file:
        file.write(run.label + "\\n")
runs.Run.finish = counted
"""


def worked(folder: Path) -> list[str]:
    """Every piece of work that was finished, as often as it was."""
    path = folder / "worked.lock"
    return sorted(path.read_text().splitlines()) if path.exists() else []


@pytest.mark.parametrize("stage", STAGES if LONG else ["target", "images", "report"])
def test_four_at_once_do_it_once(stage: str, tmp_path: Path) -> None:
    undisturbed(stage)
    folder = linked(before(stage), tmp_path / "now")
    once = linked(before(stage), tmp_path / "once")
    run(words(stage, once), once, patch=COUNTED)
    for ended in together([{"words": words(stage, folder), "folder": folder, "patch": COUNTED}] * 4):
        assert ended.code == 0, ended.err
    assert worked(folder) == worked(once)
    again(stage, folder, [])


QUICK = [*SMALL, "--identities", "3", *sets(evaluator__epochs=2)]


def sweep(method: str) -> list[str]:
    """Train a target and attack it."""
    given = [*QUICK, *PRIOR, *sets(epochs=1)]
    return ["sweep", "--defense", "none", "--strengths", "default", "--method", method, *given]


def test_two_attacks_on_a_target_that_is_not_there_yet_and_reports_in_between(tmp_path: Path) -> None:
    folder = linked(after("evaluators"), tmp_path / "now")
    lines = [sweep(f"gmi images=1 steps={steps}") for steps in (2, 3)]
    late = "import time\ntime.sleep({})\n"
    jobs = [{"words": line, "folder": folder, "patch": COUNTED} for line in lines]
    seconds = undisturbed("report").seconds
    jobs += [{"words": ["report"], "folder": folder, "patch": late.format(n * seconds)} for n in (0.4, 1.2)]
    for place, ended in enumerate(together(jobs)):
        if place < 2:
            assert ended.code == 0, ended.err
        elif ended.code:
            assert ended.error.startswith("no finished scores")
        assert "left out" not in ended.err
    done = worked(folder)
    assert len(done) == len(set(done))
    assert [sum(label.startswith(kind) for label in done) for kind in ("targets/", "scores/gmi-")] == [1, 2]
    assert_whole(folder)
    assert litter(folder) == []


def test_force_waits_for_whoever_works_and_for_nobody_who_was_killed(tmp_path: Path) -> None:
    folder = linked(before("target"), tmp_path / "now")
    line = words("target", folder)
    dies = {"words": line, "folder": folder, **at(20)}
    plain = {"words": line, "folder": folder, "patch": COUNTED}
    forced = {"words": [*line, "--force"], "folder": folder, "patch": COUNTED}
    ended = together([dies, plain, forced, forced])
    for one in ended:  # what was done may be forgotten again before it is shown
        assert one.code in (0, -signal.SIGKILL) or "is missing" in one.error
    assert 1 <= len(worked(folder)) <= 3
    again("target", folder, [])


def test_a_reader_of_a_run_that_is_forced_reads_it_whole_or_refuses_in_one_line(tmp_path: Path) -> None:
    folder = linked(before("invert"), tmp_path / "now")
    forced = {"words": [*words("target", folder), "--force"], "folder": folder}
    reader = {"words": words("invert", folder), "folder": folder}
    for ended in together([reader, forced, reader | {"patch": "import time\ntime.sleep(.1)\n"}]):
        assert ended.code == 0 or ended.error
    again("invert", folder, [])


def test_force_loses_nothing_before_the_data_are_there(tmp_path: Path) -> None:
    folder = linked(after("target"), tmp_path / "now")
    kept = contents(folder)
    gone = "from mibench.stages import artifacts\nfrom mibench.runtime.errors import UserError\n"
    gone += "def fail(*given): raise UserError('no data')\nartifacts.open_dataset = fail\n"
    assert run([*words("target", folder), "--force"], folder, patch=gone).error == "no data"
    assert contents(folder) == kept
    refused = run([*words("target", folder), "--force"], folder, **at(1, errno.EROFS))
    assert "Read-only file system; choose another with --results" in refused.error
    assert contents(folder) == kept


# --- worker processes -----------------------------------------------------------------------------------------------

FORKED = """
import multiprocessing, os, signal
from mibench.runs import executor
context, perform = multiprocessing.get_context, executor.perform
multiprocessing.get_context = lambda name: context("fork")
def dying(run, stage, engine, reporter):
    if run.kind == "{kind}":
        os.kill(os.getpid(), signal.{signal})
    perform(run, stage, engine, reporter)
executor.perform = dying
"""


@pytest.mark.parametrize(("kind", "how"), [("targets", "SIGKILL"), ("evaluators", "SIGTERM")])
def test_a_dying_worker_is_told_by_its_run_and_nobody_hangs(kind: str, how: str, tmp_path: Path) -> None:
    """Also where it had the last run of all, so that the others are idle."""
    folder = linked(before("evaluators"), tmp_path / "now")
    if kind == "targets":
        shutil.rmtree(next(folder.glob("results/targets/*-re-*")))
    line = STAGES["evaluators"]
    two = {"MIBENCH_WORKERS": "2"}
    ended = run(line, folder, patch=FORKED.format(kind=kind, signal=how), environment=two)
    assert f"in work: {kind}/" in ended.error or f", {kind}/" in ended.error
    assert ended.seconds < 20
    assert_whole(folder)
    again("evaluators", folder, [])


if __name__ == "__main__":
    serve()
