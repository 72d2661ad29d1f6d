"""Errors that teach: what was given, what is allowed, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

from mibench.runtime import escape

__all__ = ["UserError", "unknown"]

"""The text in one line, for a terminal."""

LONGEST = 4000
"""Characters of an error, which may quote a file: its beginning says what is wrong, its end what to do."""


class UserError(Exception):
    """A mistake the user can mend. The command line prints it as one line and exits with code 2, no traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(escape.terminal(message, LONGEST))


FEW = 8
"""Names that an error lists in any case."""


def unknown(what: str, given: str, known: Iterable[str], rest: str = "") -> UserError:
    """The error for a name that does not exist: the nearest match, then every name that does.

    Args:
        what: What was named.
        given: Its name.
        known: The names that there are.
        rest: How to list them, where they may be too many for a line: then only the nearest are named.
    """
    names = sorted(known)
    if rest and len(names) > FEW:
        nearest = ", ".join(get_close_matches(given, names, n=3, cutoff=0.0))
        return UserError(f"unknown {what} '{given}'; the nearest of {len(names):,}: {nearest}; all: {rest}")
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {what} '{given}'; {hint}known: {', '.join(names) or 'none'}")
