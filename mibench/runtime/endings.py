"""Code of a plug-in that would end the process: a failed run with a message instead.

`sys.exit` is an exception that nobody may swallow, so it is turned into one line. `os._exit` is none: it would end the
process at once, with whatever exit code it was given, 0 included, and no run to show for it. While a plug-in works, a
call from its own thread and process is refused; other threads (a worker's watch over its parent) and forked children
(multiprocessing ends those in this way) end as they always did. This guards against mistakes. A process that is killed,
or aborts in C, dies by a signal, which the shell or the parent says; the run resumes from its checkpoint.
"""

import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from mibench.runtime.errors import UserError

__all__ = ["going_on"]


class _Ended(BaseException):
    """`os._exit` was called; no `except Exception` of the plug-in may swallow it."""

    def __init__(self, code: object) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """Whatever is called inside returns or raises; it does not end the process.

    Args:
        what: What fails if it tries: a run's label.

    Raises:
        UserError: If `sys.exit` or `os._exit` was called: names the file and line that did.
    """
    real, process, thread = os._exit, os.getpid(), threading.get_ident()

    def refuse(code: int) -> NoReturn:
        if os.getpid() != process or threading.get_ident() != thread:
            real(code)
        raise _Ended(code)

    os._exit = lambda status=0: refuse(status)  # type: ignore[misc]  # this file is the first in the trace
    try:
        yield
    except SystemExit as error:
        raise _failed(what, "sys.exit", error.code, error.__traceback__) from None
    except _Ended as error:
        raise _failed(what, "os._exit", error.code, error.__traceback__) from None
    finally:
        os._exit = real


def _failed(what: str, call: str, code: object, trace: TracebackType | None) -> UserError:
    frames = traceback.extract_tb(trace)[1:]  # the first is the context's own
    outside = next((place for place, frame in enumerate(frames) if frame.filename == __file__), len(frames))
    frames = frames[:outside]
    where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}, " if frames else "a plug-in "
    return UserError(
        f"{what} failed: {where}called {call}({'' if code is None else code}); a plug-in returns or raises, it never "
        "ends the process: raise mibench.UserError with what went wrong"
    )
