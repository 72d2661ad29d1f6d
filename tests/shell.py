"""The command line as tests use it: in this process, or as a process of its own that can be killed."""

import atexit
import fcntl
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

import mibench
from mibench import cli

PACKAGE = Path(mibench.__file__).parent.parent
SCRATCH = Path(tempfile.mkdtemp(prefix="mibench-tests-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
ENVIRONMENT = {
    "XDG_CACHE_HOME": str(SCRATCH / "cache"),
    "MIBENCH_WORKERS": "1",
    "PYTHONPATH": f"{PACKAGE}:{Path(__file__).parent}",
}


def sets(**settings: object) -> list[str]:
    """`sets(data__identities=4)` to `["--set", "data.identities=4"]`."""
    return [word for name, value in settings.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


SMALL = sets(
    data__identities=4,
    data__distractors=3,
    data__public_images=40,
    data__train_images=4,
    data__heldout_images=2,
    data__distractor_images=4,
    data__image_size=32,
    data__bystanders=20,
)
JUDGES = sets(evaluator__epochs=1, verifier__epochs=1)
TRAIN = [*SMALL, *JUDGES, *sets(training__epochs=1)]
GAN = sets(prior__steps=2, prior__width=2, prior__batch=4, prior__warm_up=2, prior__critic_steps=1)
ATTACK = [*SMALL, *JUDGES, *GAN, *sets(steps=3)]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refusal: exit code 2, nothing else on stderr but chatter, no traceback."""
        lines = [line for line in self.err.splitlines() if not line.startswith(("done ", "data set ", "note: "))]
        assert self.code == 2 and len(lines) == 1 and lines[0].startswith("mibench: error: "), (self.code, self.err)
        return lines[0].removeprefix("mibench: error: ")

    @property
    def last(self) -> Path:
        """The last line of stdout of a command that went well: the directory of its run."""
        assert self.code == 0, self.err
        return Path(self.out.splitlines()[-1])


def command(*words: str) -> Outcome:
    """Run a command in this process, stages included."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["mibench", *words]),
        patch.dict(os.environ, ENVIRONMENT),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        cli.main()
    assert isinstance(left.value.code, int)
    return Outcome(left.value.code, out.getvalue(), err.getvalue())


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """A disk that takes so many more files and then no further one."""
    taken = itertools.count()

    def fsync(number: int) -> None:
        if next(taken) >= after:
            raise OSError(28, "No space left on device")

    with patch.object(os, "fsync", fsync):
        yield


FORKING = """
import multiprocessing
context = multiprocessing.get_context
multiprocessing.get_context = lambda name: context("fork")
from mibench import cli
cli.main()
"""


def start(*words: str, folder: Path, forking: bool = False, **environment: str) -> "subprocess.Popen[str]":
    """Start a command as a process of its own, in a session of its own.

    `forking`: its workers are forked, where how they came to be is not what is tried: each that is spawned imports
    torch, which takes seconds.
    """
    return subprocess.Popen(
        [sys.executable, *(["-c", FORKING] if forking else ["-m", "mibench"]), *words],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@dataclass(frozen=True)
class World:
    """A folder in which `mibench train --defense re` and `mibench attack --method kedmi` were run."""

    folder: Path
    train: Outcome
    attack: Outcome

    @property
    def results(self) -> Path:
        """Its runs."""
        return self.folder / "results"

    def copy(self, folder: Path) -> Path:
        """A results folder that a test may damage."""
        return Path(shutil.copytree(self.results, folder / "results"))

    def one(self, pattern: str, root: Path | None = None) -> Path:
        """The one finished run whose directory matches, below `results/`."""
        found = [path.parent for path in (root or self.results).glob(f"{pattern}/done")]
        assert len(found) == 1, (pattern, found)
        return found[0]


@cache
def world() -> World:
    """Made once for all tests, never changed; four people of 32 px, one epoch, three steps.

    The first of pytest-xdist's processes that wants it makes it, the others copy what that one made.
    """
    folder, shared = SCRATCH / "world", Path(os.environ["MIBENCH_TESTS_SHARED"])
    with (shared / "world.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = shared / "world.json"
        if not said.exists():
            folder.mkdir()
            before = Path.cwd()
            os.chdir(folder)
            try:
                told = command("train", "--defense", "re", *TRAIN), command("attack", "--method", "kedmi", *ATTACK)
            finally:
                os.chdir(before)
            shutil.copytree(folder, shared / "world")
            said.write_text(json.dumps([asdict(one) for one in told]))
        elif not folder.exists():
            shutil.copytree(shared / "world", folder)
    return World(folder, *(Outcome(**one) for one in json.loads(said.read_text())))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was last written, and what it holds; locks left out."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


RESULTS = (
    "model.safetensors",
    "memories.safetensors",
    "heldout.safetensors",
    "prior.safetensors",
    "features.safetensors",
    "images.safetensors",
    "metrics.json",
    "scores.json",
    "per_image.csv",
    "log.jsonl",
    "grid.png",
    "samples.png",
    "data.json",
)


def results(folder: Path) -> dict[str, bytes]:
    """Everything that must come out the same every time: all but run.json (times, machine) and its digest in `done`."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.name in RESULTS
    }
