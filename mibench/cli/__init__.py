"""The command line: a file per group of commands. Heavy imports live inside the commands."""

from mibench.cli.app import app, main

__all__ = ["app", "main"]
