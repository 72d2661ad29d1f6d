"""The command line: a file per group of commands."""

from mibench.cli.commands import app, main

__all__ = ["app", "main"]
