"""One thread for each of the processes that pytest-xdist runs side by side, and for those that tests start."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator

import pytest
import type_checks

type_checks.install()
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's background jobs ignore Ctrl-C, and so would every command that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what the processes of a run share: the first one makes it, and takes it away in the end."""
    if not hasattr(config, "workerinput"):
        os.environ["MIBENCH_TESTS_SHARED"] = folder = tempfile.mkdtemp(prefix="mibench-tests-shared-")
        os.environ["TORCH_HOME"] = f"{folder}/torch"  # of all: scores say where weights are looked for
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session", autouse=True)
def type_checks_draw() -> Iterator[Callable[[], dict[str, object]]]:
    """The type checks of a test run draw from random's generator, which is no attack's doing; yields what is replaced.

    Of the session: what fixtures of a module run is told as what its tests run.
    """
    from mibench.runtime import rng  # after the type checks are in place

    states = rng._global_states
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "_global_states", lambda: states() | {"random": None})
        yield states


def pytest_runtest_setup() -> None:
    """Every test has its own first calls."""
    type_checks.Calls.running += 1
