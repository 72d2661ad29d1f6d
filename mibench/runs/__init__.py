"""Runs: what was asked -> id -> directory; atomic, resumable, with provenance."""

from mibench.runs.library import Library, damaged, find, finished, inversion_of
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
