"""The zoo: finished runs that ship with mibench, so that what takes long is made once."""

from mibench.zoo.shelf import PREFIX, SHELF, Entry, Shelf, install, origin

__all__ = ["PREFIX", "SHELF", "Entry", "Shelf", "install", "origin"]
