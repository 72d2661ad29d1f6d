"""What the engine asks of the system, measured."""

import platform
import subprocess
import sys

import pytest
import torch

from mibench.runtime import engine
from mibench.runtime.bits import other_bits
from mibench.runtime.errors import UserError

FAULTS = """
import resource, sys
import torch
from mibench.runtime.engine import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in range(1, 31):  # each larger than what glibc has learnt to keep
    torch.ones(size << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_tensors_stay_with_the_process() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 4 * faults("keep") < faults("leave")


def test_several_devices_are_gpus_by_number_or_the_cpu_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engine, "find_spec", lambda name: name)
    for asked, known in (
        ("cpu", ["cpu"]),
        ("cpu,cpu", ["cpu", "cpu"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,2", ["cuda:0", "cuda:2"]),
        ("cuda:0,cuda:2", ["cuda:0", "cuda:2"]),
    ):
        made = engine.resolve(asked, "fp32")
        assert [str(one) for one in (made.device, *made.further)] == known
        assert engine.workers(asked) == (engine.workers("cpu") if asked == "cpu" else 1)
    for asked in ("cuda:0,0", "cuda,cuda", "cpu,cuda:0", "mps,mps", "cuda:0,", "cpu,1"):
        with pytest.raises(UserError, match=r"cuda:0,1|no mps"):
            engine.resolve(asked, "fp32")


def test_who_lacks_the_extra_is_told_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--device cpu,cpu needs lightning-fabric.* pip install 'mibench\[fabric\]'$"):
        engine.resolve("cpu,cpu", "fp32")
    assert engine.resolve("cpu", "fp32").further == ()


def test_the_number_of_devices_decides_bits() -> None:
    one = engine.describe(engine.Engine(torch.device("cpu"), "fp32"))
    two = engine.describe(engine.Engine(torch.device("cpu"), "fp32", (torch.device("cpu"),)))
    assert other_bits(one, two) == ["devices 1, 2"]
    assert other_bits({name: value for name, value in one.items() if name != "devices"}, two) == []  # an older card
