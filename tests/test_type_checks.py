"""The sample of calls whose types are checked: which calls, of which functions, and that mibench is under it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import beartype
import jaxtyping
import pytest
import torch
import type_checks
from jaxtyping import Float
from torch import Tensor
from type_checks import Calls, sampled

from mibench.core.losses import max_margin


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Further tests have numbers of their own."""
    yield
    Calls.running += 1


def refused(function: Callable[[], Any]) -> bool:
    try:
        function()
    except jaxtyping.TypeCheckError:
        return True
    return False


def checked(function: Any) -> Any:
    return sampled(function, typechecker=beartype.beartype)


def test_the_first_two_calls_of_a_test_are_checked_and_then_ever_fewer() -> None:
    @checked
    def same(x: Float[Tensor, "n 1"], y: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        return x

    def wrong() -> None:
        same(torch.rand(2, 1), torch.rand(3, 1))

    assert [place for place in range(1, 40) if refused(wrong)] == [1, 2, 4, 8, 16, 32]
    Calls.running += 1
    assert [refused(wrong) for _ in range(3)] == [True, True, False]


def test_functions_within_functions_count_by_their_code() -> None:
    def made() -> Any:
        def whole(x: int) -> int:
            return x

        return checked(whole)

    assert [refused(lambda: made()("x")) for _ in range(5)] == [True, True, False, True, False]


def test_every_making_of_an_object_can_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    @checked
    @dataclass(frozen=True)
    class One:
        x: int

    @checked
    class Other(One):
        pass

    assert Other.__init__ is One.__init__, "checked once"
    assert [refused(lambda: One("x")) for _ in range(3)] == [True, True, False]  # type: ignore[arg-type]
    monkeypatch.setattr(Calls, "makings", True)
    assert all(refused(lambda: One("x")) for _ in range(3))  # type: ignore[arg-type]


def test_mibench_is_checked() -> None:
    assert (jaxtyping.jaxtyped is sampled) != type_checks.EVERY_CALL
    assert refused(lambda: max_margin(torch.rand(2, 3), torch.rand(2)))
