"""The command line as tests use it: in this process, or as a process of its own that can be killed."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

import mibench
from mibench import cli

PACKAGE = Path(mibench.__file__).parent.parent
DATA = {"identities": 4, "distractors": 3, "public_images": 40, "train_images": 4, "heldout_images": 2,
        "distractor_images": 4, "image_size": 32}  # fmt: skip
"""digiface small enough to be drawn in a tenth of a second."""


def sets(**settings: object) -> list[str]:
    """`sets(data__identities=4)` to `["--set", "data.identities=4"]`."""
    return [word for name, value in settings.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


SMALL = sets(**{f"data__{name}": value for name, value in DATA.items()})
JUDGES = sets(evaluator__epochs=1)
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
        """The one line of a refusal: exit code 2, nothing else on stderr, no traceback."""
        lines = [line for line in self.err.splitlines() if not line.startswith("done ")]
        assert self.code == 2 and len(lines) == 1 and lines[0].startswith("mibench: error: "), (self.code, self.err)
        return lines[0].removeprefix("mibench: error: ")

    @property
    def last(self) -> Path:
        """The last line of stdout of a command that went well: the directory of its run."""
        assert self.code == 0, self.err
        return Path(self.out.splitlines()[-1])


def mibench_(*words: str) -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["mibench", *words]), redirect_stdout(out), redirect_stderr(err):
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert isinstance(left.value.code, int)
    return Outcome(left.value.code, out.getvalue(), err.getvalue())


def start(*words: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a command as a process of its own, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mibench", *words],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def files(folder: Path) -> Mapping[str, tuple[int, bytes]]:
    """Every file below a folder: when it was last written, and what it holds; locks left out."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }
