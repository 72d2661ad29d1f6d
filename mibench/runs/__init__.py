"""Runs: what was asked -> id -> directory; atomic, resumable, with provenance."""

from mibench.runs.library import Library, OtherProtocol, damaged, find, finished, inversion_of
from mibench.runs.run import (
    KINDS,
    PROTOCOL,
    Run,
    canonical,
    clock,
    lineage,
    other_protocol,
    provenance,
    reading_once,
    unchanged,
)

__all__ = [
    "KINDS",
    "PROTOCOL",
    "Library",
    "OtherProtocol",
    "Run",
    "canonical",
    "clock",
    "damaged",
    "find",
    "finished",
    "inversion_of",
    "lineage",
    "other_protocol",
    "provenance",
    "reading_once",
    "unchanged",
]
