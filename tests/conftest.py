"""One thread for each of the processes that pytest-xdist runs side by side, and for those that tests start."""

import os
from collections.abc import Iterator

import pytest

from mibench.runtime import rng

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def type_checks_draw(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The type checks of a test run draw from random's generator; that is no attack's doing."""
    if request.path.name != "test_rng.py":
        states = rng._global_states
        monkeypatch.setattr(rng, "_global_states", lambda: {**states(), "random": None})
    yield
