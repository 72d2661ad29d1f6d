"""No defense: the recipe that every defense inherits."""

from dataclasses import dataclass

from mibench.core import Defense

__all__ = ["NoDefense"]

CARD = {  # type: ignore[var-annotated]  # read as a literal
    "summary": "no defense",
    "title": "The undefended recipe",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "strength": None,
    "zero": {},
}


@dataclass(frozen=True)
class NoDefense(Defense):
    """Every hook does nothing."""
