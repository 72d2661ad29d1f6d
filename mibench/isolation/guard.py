"""The outside of `--isolate`: starts a sealed process for the attack, answers its questions, believes nothing it says.

The process that has the target, the data and the results never runs a line of the attack. What comes from it is JSON
and arrays, looked at before they are used. The attack gets: its settings, the prior, the public images, what the
defenses do to training images, and answers. It can read Python's own folders, no other, and has no network, where the
system allows to seal it (`runtime.seal`); what held is told and recorded.
"""

import io
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.core import Access, BudgetExhausted, Cost, Defense, Oracle, Prior, Reconstructions, Split
from mibench.isolation.parts import Parts
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.seal import unreadable_by_others
from mibench.runtime.wire import Broken, Message, Wire

__all__ = ["Guard", "around", "guarded", "possible", "readable", "serve"]

BEGIN = """
import sys
given = __import__("json").loads(sys.argv[1])
sys.path[:] = given["path"]
import importlib.metadata, pkgutil
for entry in sys.path:
    finder = pkgutil.get_importer(entry)
    hasattr(finder, "find_spec") and finder.find_spec("what lies in a folder is looked up once, while it can be seen")
list(importlib.metadata.distributions())
from mibench.runtime.seal import seal
held = seal(given["readable"], given["home"], given["devices"])
from mibench.isolation.cell import main
main(given["reads"], given["writes"], held)
"""

SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
"""What the dynamic linker and the C library read."""

KEPT = re.compile(r"(OMP|MKL|OPENBLAS|KMP|GOMP|ATEN|DNNL|ONEDNN|CUDA|CUBLAS|NVIDIA|TORCH_CUDNN)_\w+|LANG|LC_\w+|TZ")
"""Of the environment: what decides rounding, the language and the time zone."""

TAIL = 2000
"""Characters of what the attack printed that are kept, for the message where it ends badly."""


def possible(access: Access) -> None:
    """Refuse what cannot be isolated.

    Raises:
        UserError: White box, or a system without the pipes that are used.
    """
    if access >= Access.WHITE_BOX:
        raise UserError(
            "--isolate seals black-box and label-only attacks; a white-box attack holds the weights, and no seal is "
            "claimed for it: leave --isolate out, and run only what you trust"
        )
    if os.name != "posix":
        raise UserError(f"--isolate needs a POSIX system (Linux to seal files as well), this is {sys.platform}")


def around(folder: Path, hidden: Sequence[Path]) -> list[Path]:
    """The largest parts of a folder in which nothing hidden lies: the folder itself where that is so."""
    if any(folder == one or one in folder.parents for one in hidden):
        return []
    if not any(folder in one.parents for one in hidden):
        return [folder]
    return [part for child in sorted(folder.iterdir()) for part in around(child, hidden)]


def readable(path: Sequence[str], hidden: Sequence[Path]) -> list[Path]:
    """What a sealed interpreter may read: Python's own folders, and of all others on its path (that of an editable
    install, the current folder) modules and packages alone, because anything may lie beside them.

    Args:
        path: As `sys.path`.
        hidden: Folders of which nothing may be read.
    """
    own = {Path(one).resolve() for one in (sys.prefix, sys.base_prefix, *site.getsitepackages())}
    own |= {Path(sys.executable).resolve().parent}
    folders = {Path(entry) for entry in path}
    modules = {
        one
        for folder in folders
        if folder.is_dir() and not any(folder == root or root in folder.parents for root in own)
        for one in folder.iterdir()
        if one.suffix in (".py", ".so", ".dist-info", ".egg-info") or (one / "__init__.py").is_file()
    }
    archives = {folder for folder in folders if folder.is_file()}
    parts = {part for one in own | modules | archives if one.exists() for part in around(one.resolve(), hidden)}
    return sorted(parts)


@contextmanager
def guarded(hidden: Sequence[Path]) -> Iterator["Guard"]:
    """A sealed process, ended with the context.

    Args:
        hidden: Folders that it must not read, though they may lie in one of Python's.
    """
    home = Path(tempfile.mkdtemp(prefix="mibench-")).resolve()
    root = Path(f"{home}.root")
    root.mkdir(mode=0o700)
    asks, answers = os.pipe(), os.pipe()
    unreadable_by_others(True)
    try:
        with os.fdopen(asks[0], "rb") as reads, os.fdopen(answers[1], "wb") as writes:
            try:
                process = _start(home, [one.resolve() for one in hidden], answers[0], asks[1])
            finally:
                os.close(answers[0])
                os.close(asks[1])
            guard = Guard(process, Wire(reads, writes))
            try:
                guard.begin()
                yield guard
            except (EOFError, BrokenPipeError):
                raise UserError(f"the isolated attack ended (exit code {process.wait()}){guard.last_words()}") from None
            except Broken as error:
                raise UserError(f"the isolated attack wrote on its pipe what is no question: {error}") from None
            finally:
                process.kill()
                process.wait()
                with suppress(BrokenPipeError):
                    writes.flush()
    finally:
        unreadable_by_others(False)
        for folder in (home, root):
            shutil.rmtree(folder, ignore_errors=True)


def _start(home: Path, hidden: Sequence[Path], reads: int, writes: int) -> "subprocess.Popen[bytes]":
    """A fresh interpreter with a scrubbed environment, no terminal, and of all open files its two pipes."""
    path = list(dict.fromkeys(str(Path(entry or ".").resolve()) for entry in sys.path))
    given = {
        "path": path,
        "readable": [*SYSTEM, *map(str, readable(path, hidden))],
        "home": str(home),
        "devices": [str(one) for one in Path("/dev").glob("nvidia*")],
        "reads": reads,
        "writes": writes,
    }
    environment = {key: value for key, value in os.environ.items() if KEPT.fullmatch(key)}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "USER": "attack", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", BEGIN, json.dumps(given)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=home,
        env=environment,
        close_fds=True,
        pass_fds=(reads, writes),
        start_new_session=True,
    )


class Guard:
    """The outside's end of the pipe.

    Args:
        process: The sealed one.
        wire: To it.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", wire: Wire) -> None:
        self.process, self.wire = process, wire
        self._printed = b""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.isolation = "process only"
        """What seals it, once it has begun: `landlock+namespaces`, one of them, or `process only`."""

    def begin(self) -> None:
        """Wait until the process has sealed itself."""
        if held := self._expect("sealed").fields["held"]:
            self.isolation = "+".join(held)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            while part := stream.read1(4096):  # type: ignore[attr-defined]
                self._printed = (self._printed + part)[-TAIL:]

    def last_words(self) -> str:
        """The last line that the attack printed, for a message."""
        self._reading.join(timeout=2)
        lines = self._printed.decode("utf-8", "replace").strip().splitlines()
        return f"; the last it printed: {lines[-1][-300:]}" if lines else ""

    def _expect(self, what: str) -> Message:
        said = self.wire.receive()
        if said.what == "stopped":
            raise UserError(f"the isolated attack stopped: {str(said.fields.get('text'))[:1000]}")
        if said.what != what:
            raise Broken(f"'{said.what[:40]}' in the place of '{what}'")
        return said

    def give(
        self,
        attack: dict[str, Any],
        prior: Prior,
        public: Split,
        defenses: Sequence[Defense],
        engine: Engine,
        fields: dict[str, Any],
    ) -> Cost:
        """Hand over the job; returns what the attack says it will ask.

        Args:
            attack: Its name and settings.
            prior: What it searches.
            public: Its images.
            defenses: The target's, for what they show.
            engine: How it computes.
            fields: The rest, see `cell`.
        """
        content = io.BytesIO()
        torch.save((prior, public, list(defenses)), content)
        job = {
            **fields,
            "attack": attack["name"],
            "settings": attack["settings"],
            "device": str(engine.device),
            "precision": engine.precision,
            "threads": torch.get_num_threads(),
        }
        self.wire.send("job", job, {"content": torch.frombuffer(content.getbuffer(), dtype=torch.uint8)})
        told = self._expect("cost").fields
        numbers: list[Any] = [told.get(name) for name in Cost._fields]
        if not all(type(number) is int and 0 <= number < 2**53 for number in numbers):
            raise Broken("a cost that is no three whole numbers")
        self.wire.send("go")
        return Cost(*numbers)


class Stopped(UserError):
    """The attack ended with an error of its own."""


def serve(wire: Wire, oracle: Oracle, folder: Path) -> tuple[Reconstructions | None, list[str]]:
    """Answer until the attack returns: what it found, None where the budget did not suffice, and the global
    generators that it used.

    Args:
        wire: To whoever asks.
        oracle: What answers, counts and refuses.
        folder: Where finished parts are kept.

    Raises:
        UserError: If the attack stopped, or said what is no question.
    """
    parts = Parts(folder, oracle)
    while True:
        said = wire.receive()
        try:
            if said.what == "ask":
                wire.send("answer", tensors={"answer": _answer(oracle, said)})
            elif (answer := parts.answer(said)) is not None:
                wire.send(answer[0], tensors=answer[1])
            elif said.what == "done":
                return _reconstructions(said), _words(said.fields.get("generators"))
            elif said.what == "stopped":
                raise Stopped(f"the isolated attack stopped: {str(said.fields.get('text'))[:1000]}")
            else:
                raise Broken(f"'{said.what[:40]}'")
        except BudgetExhausted as error:
            wire.send("exhausted", {"text": str(error)})
        except (Broken, Stopped):
            raise
        except UserError as error:
            wire.send("refused", {"text": str(error)})


def _answer(oracle: Oracle, said: Message) -> Tensor:
    """What the target says to a question.

    Raises:
        UserError: If it cannot be asked; whatever a network makes of odd images is one too.
    """
    questions = {"probs": oracle.probs, "labels": oracle.labels}
    question = questions.get(str(said.fields.get("question")))
    if question is None or not {"x"} <= set(said.tensors) <= {"x", "y"}:
        raise Broken(f"the question '{str(said.fields.get('question'))[:40]}'")
    try:
        return question(said.tensors["x"].to(oracle.device), said.tensors.get("y"))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"the target cannot answer that: {str(error).splitlines()[0][:300]}") from None


def _reconstructions(said: Message) -> Reconstructions | None:
    """What came back, its kinds and lengths looked at; None where the budget did not suffice."""
    if not said.tensors:
        return None
    wanted = {"images": (4, None), "labels": (1, torch.int64), "latents": (2, None), "failed": (1, torch.bool)}
    if set(said.tensors) != set(wanted) or len({len(one) for one in said.tensors.values() if one.ndim}) != 1:
        raise Broken("reconstructions whose parts do not belong together")
    for name, (axes, kind) in wanted.items():
        one = said.tensors[name]
        if one.ndim != axes or (one.dtype != kind if kind else not one.is_floating_point()):
            raise Broken(
                f"reconstructions whose {name} are {one.dtype} with {one.ndim} axes, not {kind or 'float'} with {axes}"
            )
    return Reconstructions(**said.tensors)  # type: ignore[arg-type]  # the names were looked at


def _words(given: object) -> list[str]:
    return [str(one) for one in ("random", "numpy", "torch") if isinstance(given, list) and one in given]
