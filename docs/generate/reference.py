"""The command line and the Python API as pages, read from the program itself."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from docstrings import cell, parse, prose, signature

import mibench
from mibench.cli import app

__all__ = ["alias", "api", "cli", "commands", "public"]

VOCABULARY = ("core",)
"""Packages whose public names a plug-in's author works with."""


def commands() -> dict[str, Any]:
    """`train`, `data show`, ... -> the command, in the order of the help."""
    import typer

    def walk(group: Any, before: str) -> Iterator[tuple[str, Any]]:
        for name, one in group.commands.items():
            if hasattr(one, "commands"):
                yield from walk(one, f"{before}{name} ")
            else:
                yield f"{before}{name}", one

    return dict(walk(typer.main.get_command(app), ""))


def cli() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Command line",
        "Every command works without options. stdout is the result, and its last line the run's directory; progress "
        "goes to stderr. A mistake is one line and exit code 2.",
    ]
    for name, one in commands().items():
        parts += [f"## mibench {name}", prose(inspect.cleandoc(one.help or ""))]
        shown = [given for given in one.params if given.name != "help" and not getattr(given, "hidden", False)]
        if shown:
            rows = ["| | default | |", "|:---|:---|:---|", *map(_option, shown)]
            parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _option(given: Any) -> str:
    argument = given.param_type_name == "argument"
    words = f"`{given.name.upper()}`" if argument else ", ".join(f"`{word}`" for word in given.opts)
    if not argument and given.secondary_opts:
        words += f", `{given.secondary_opts[0]}`"
    default = "" if given.default is None or given.default is False or callable(given.default) else f"`{given.default}`"
    if given.required:
        default = "required"
    return f"| {words} | {default} | {cell(getattr(given, 'help', '') or '')} |"


def public() -> dict[str, Any]:
    """Every public name: of `mibench` itself, and of the vocabulary that plug-ins are written in."""
    names = {f"mibench.{name}": getattr(mibench, name) for name in getattr(mibench, "__all__", [])}
    for package in VOCABULARY:
        module = importlib.import_module(f"mibench.{package}")
        names |= {f"mibench.{package}.{name}": getattr(module, name) for name in module.__all__}
    return names


def api() -> str:
    """The Python API: signatures and docstrings."""
    parts = [
        "# Python API",
        "`import mibench` loads nothing heavy; each name below is loaded when it is first used. Images are float NCHW "
        "in [0, 1], labels are integers from 0, rates lie in [0, 1]. A mistake raises `mibench.UserError`, one line "
        "that says what was given, what is allowed and what to do. See the "
        "[quickstart](quickstart.md#from-python) for a program.",
        prose(parse(importlib.import_module("mibench.api").__doc__).body.split("\n\n")[1]),
    ]
    for name, one in public().items():
        if name == "mibench.core.Access":
            parts += [
                "## The vocabulary of plug-ins",
                prose(parse(importlib.import_module("mibench.core").__doc__).body),
            ]
        parts += _member(name, one, "##" if name.count(".") == 1 else "###")
    return "\n\n".join(parts) + "\n"


def _member(name: str, one: Any, level: str) -> Iterator[str]:
    short = name.removeprefix("mibench.core.")
    yield f"{level} {short}"
    if not inspect.isclass(one) and not inspect.isfunction(one):
        yield prose(alias(short))
        return
    if callable(one) and not _enumeration(one):
        yield f"```python\n{signature(short, one)}\n```"
    yield from _sections(one)
    if inspect.isclass(one):
        yield from _methods(one)


def alias(name: str) -> str:
    """What is written below `Name = ...`, where a name stands for a type and so has no docstring of its own."""
    for path in Path(mibench.__file__).parent.glob("core/*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, below in pairwise(body):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(below, ast.Expr):
                return f"`{ast.unparse(node.value)}`: {ast.literal_eval(below.value)}"
    return ""


def _enumeration(one: Any) -> bool:
    return hasattr(one, "__members__")


def _sections(one: Any) -> Iterator[str]:
    doc = parse(inspect.getdoc(one))
    yield prose(doc.body)
    for section in doc.sections:
        items = doc.items(section) if section in ("Args", "Raises", "Returns", "Yields") else {}
        if items:
            lines = [f"- `{key}`: {prose(text)}" if key else f"- {prose(text)}" for key, text in items.items()]
            yield "\n".join([f"**{'Arguments' if section == 'Args' else section}**", "", *lines])
        elif section == "Example":
            yield f"**Example**\n\n```python\n{doc.sections[section]}\n```"
        else:
            yield f"**{section}.** {prose(doc.sections[section])}"


def _methods(one: type) -> Iterator[str]:
    """Public methods and properties that the class itself defines and describes."""
    rows = []
    for name, member in vars(one).items():
        function = member.fget if isinstance(member, property) else getattr(member, "func", member)
        if isinstance(function, classmethod | staticmethod):
            function = function.__func__
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        shown = name if isinstance(member, property) or function is not member else signature(name, function)
        rows.append(
            f"| `{' '.join(shown.split()).replace('|', chr(92) + '|')}` | {cell(parse(function.__doc__).body)} |"
        )
    if rows:
        yield "\n".join(["| | |", "|:---|:---|", *rows])
