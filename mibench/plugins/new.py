"""`mibench new`: a small package with one plug-in that passes its own tests as written."""

import json
import keyword
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from mibench.plugins import registry
from mibench.runtime.errors import UserError, unknown

__all__ = ["KINDS", "new"]

KINDS = {"attack": "attacks", "defense": "defenses", "prior": "priors", "data": "data", "metric": "metrics"}
TEMPLATES = Path(__file__).parent.parent / "testing" / "templates"
"""Read, never imported: writing a package needs no torch."""

NAMES = {
    "attack": ("margin_adam", "MarginAdam"),
    "defense": ("confidence_penalty", "ConfidencePenalty"),
    "prior": ("eigenfaces", "Eigenface(?=Trainer|Prior)"),
    "data": ("gratings", r"Gratings\b"),
    "metric": ("psnr", "Psnr"),
}
"""What the template is called, as a plug-in and in its classes."""

TRY = {
    "attack": "mibench attack --method {name} --target zoo:none@1 --dry-run",
    "defense": "mibench train --defense {name} --dry-run",
    "prior": "mibench attack --method ppa --prior {name} --target zoo:none@1 --dry-run",
    "data": "mibench train --dataset {name} --dry-run",
    "metric": "mibench list metrics",
}

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "mibench-{dashed}"
version = "0.1.0"
description = "{summary}"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["mibench"]

[project.optional-dependencies]
test = ["pytest"]

# After `pip install -e .` mibench knows {name} in every command.
[project.entry-points."mibench.{kinds}"]
{name} = "{name}"

[tool.setuptools]
py-modules = ["{name}"]
"""

README = """\
# {name}: {article} {kind} for mibench

`{name}.py` is the whole plug-in: a literal `CARD`, {presets}and {body}.
It holds a worked example: {summary}. Put yours in its place, and keep the tests green.

    pip install -e '.[test]' && pytest      # the contract, law by law; where mibench is installed
    mibench check-plugin {name}             # the same as a table: what was seen, what to do, seconds
    {command}

What the card says and what every law asks for is on the page "The contract" of mibench's documentation, and what one
can get wrong on the page "What can go wrong".
"""

TEST = '''\
"""{name} keeps the contract of mibench: one test for each law."""

import pytest

from mibench import testing


@pytest.mark.parametrize("law", testing.laws("{kind}", "{name}"), ids=str)
def test_it_keeps_the_contract(law: testing.Check) -> None:
    law()
'''

WORKFLOW = """\
name: ci
on: [push, pull_request]
env:
  MIBENCH: "{source}"  # what pip installs mibench from: a version, a wheel's address, git+https://...
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {{ python-version: "3.12" }}
      - run: pip install "$MIBENCH"
      - run: pip install -e '.[test]'
      - run: pytest
      - run: mibench check-plugin {name}
"""

IGNORED = "__pycache__/\n*.egg-info/\n.pytest_cache/\nresults/\n"

BODIES = {
    "attack": "one frozen dataclass whose fields are its settings",
    "defense": "one frozen dataclass whose fields are its settings",
    "prior": "one frozen dataclass whose fields are its settings, beside the network that it builds",
    "data": "one frozen dataclass whose fields are its settings",
    "metric": "a function of the name that it declares in `METRICS`",
}


def _source() -> str:
    """What pip installed mibench from, where others can too: a repository, an archive; else its version."""
    try:
        installed = distribution("mibench")
    except PackageNotFoundError:  # run from a tree that was never installed
        return "mibench"
    told = json.loads(installed.read_text("direct_url.json") or "{}")
    if "vcs_info" in told:
        return f"{told['vcs_info']['vcs']}+{told['url']}@{told['vcs_info']['commit_id']}"
    return str(told["url"]) if told.get("url", "").startswith("https://") else f"mibench=={installed.version}"


def _check_name(name: str) -> None:
    """A name that is a module's, a class's and nobody else's.

    Raises:
        UserError: What is wrong with it, and what is allowed.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{1,39}", name) or name.endswith("_") or "__" in name:
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40]
        hint = f"; for example {near}" if re.fullmatch(r"[a-z][a-z0-9_]+", near) else ""
        raise UserError(
            f"'{name}' cannot name a plug-in: 2 to 40 small letters, digits and single _, a letter first{hint}"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in sys.stdlib_module_names:
        raise UserError(f"'{name}' is a word or a module of Python; choose another name, for example my_{name}")
    for own, kinds in KINDS.items():
        if name in registry.names(kinds):
            article = "an" if own[0] in "aeiou" else "a"
            raise UserError(f"'{name}' is {article} {registry.SINGULAR[kinds]} already; choose another name")
    if find_spec(name) is not None:
        raise UserError(f"'{name}' is an installed package, which it would hide; choose another name")


def new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a package with one plug-in.

    Args:
        kind: attack, defense, prior, data or metric.
        name: The plug-in's, its module's, and the package's.
        folder: Where the package is put: `folder/name`.

    Returns:
        The files, the package's folder first.

    Raises:
        UserError: An unknown kind, a name that cannot be one, a place that is taken or cannot be written.
    """
    if kind not in KINDS:
        raise unknown("kind of plug-in", kind, KINDS)
    root = folder / name
    if re.fullmatch(r"\w+", name) and (root.exists() or root.is_symlink()):
        raise UserError(f"{root} exists; nothing was written: remove it, or choose another name or --folder")
    _check_name(name)
    code = _renamed(kind, name)
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "kind": kind,
        "source": _source(),
        "article": "an" if kind[0] in "aeiou" else "a",
        "kinds": KINDS[kind],
        "summary": registry.literals(TEMPLATES / f"{kind}.py")["CARD"]["summary"],
        "presets": "`PRESETS` " if "PRESETS" in registry.literals(TEMPLATES / f"{kind}.py") else "",
        "body": BODIES[kind],
        "command": TRY[kind].format(name=name),
    }
    files = {
        f"{name}.py": code,
        "pyproject.toml": PYPROJECT.format(**words),
        "README.md": README.format(**words),
        f"tests/test_{name}.py": TEST.format(**words),
        ".github/workflows/ci.yml": WORKFLOW.format(**words),
        ".gitignore": IGNORED,
    }
    try:
        for file, text in files.items():
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror}; choose another place with --folder") from None
    return [root, *(root / file for file in files)]


def _renamed(kind: str, name: str) -> str:
    """The template under another name."""
    own, classes = NAMES[kind]
    camel = "".join(part.capitalize() for part in name.split("_"))
    text = (TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")
    return re.sub(rf"\b{classes}", camel, re.sub(rf"\b{own}\b", name, text))
