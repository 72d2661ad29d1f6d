"""The type and shape checks of a test run, on a sample of the calls: of every call they took most of the time.

jaxtyping's import hook (`--jaxtyping-packages` in pyproject.toml) puts a check around every function of mibench. Here a
check is made when its function is first called, and in each test it looks at the first `FIRST` calls of a function and
then at the 4th, 8th, 16th and so on. Functions within functions count by their code, however often they are defined.

`MIBENCH_CHECK_EVERY_CALL=1` leaves jaxtyping as it is.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable
from functools import partial, wraps
from types import CodeType
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping

FIRST = 2
EVERY_CALL = os.environ.get("MIBENCH_CHECK_EVERY_CALL", "") not in ("", "0")


class Calls:
    """How often a function was called in the test that runs."""

    __slots__ = ("code", "count", "test")
    running = 0
    """The number of that test."""
    makings = False
    """Whether every making of an object is checked, for tests that make them of any values."""

    def __init__(self, code: CodeType) -> None:
        self.code, self.count, self.test = code, 0, -1

    def checked(self) -> bool:
        """Count a call; whether it is to be checked."""
        if Calls.makings and self.code.co_name == "__init__":
            return True
        if self.test != Calls.running:
            self.test, self.count = Calls.running, 0
        self.count += 1
        return self.count <= FIRST or not self.count & (self.count - 1)


_known: dict[int, Calls] = {}
"""By the identity of the code, which `Calls` keeps alive."""

_every = jaxtyping.jaxtyped


def named(hint: Any) -> bool:
    """Whether a type is given by its name, as one that is defined further down must be."""
    if isinstance(hint, str | ForwardRef):
        return True
    parts = hint if isinstance(hint, list) else () if get_origin(hint) is Literal else get_args(hint)
    return any(map(named, parts))


def sampled(function: Any = None, *, typechecker: Any) -> Any:
    """Stands in for `jaxtyping.jaxtyped` as the import hook calls it."""
    if function is None:
        return partial(sampled, typechecker=typechecker)
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and not hasattr(function.__init__, "__sampled__"):
            function.__init__ = sampled(function.__init__, typechecker=typechecker)  # type: ignore[misc]
        return function
    if not inspect.isfunction(function) or getattr(function, "__no_type_check__", False):
        return _every(function, typechecker=typechecker)
    code = function.__code__
    calls = _known.setdefault(id(code), Calls(code))
    made: list[Callable[..., Any]] = []
    if "<locals>" not in function.__qualname__ and any(map(named, function.__annotations__.values())):
        made.append(_every(function, typechecker=typechecker))  # a name that means nothing yet is any type for good

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not calls.checked():
            return function(*args, **kwargs)
        if not made:
            made.append(_every(function, typechecker=typechecker))
        return made[0](*args, **kwargs)

    call.__sampled__ = True  # type: ignore[attr-defined]
    return call


def install() -> None:
    """Before anything of mibench is imported."""
    if not EVERY_CALL:
        jaxtyping.jaxtyped = sampled
