"""A module imports only from lines above its own, also inside functions; attacks cannot reach what they must not."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mibench"
ORDER = [
    "errors",
    "files",
    "pixels",
    "rng",
    "engine",
    "augment",
    "core",
    "objectives",
    "runs",
    "registry",
    "pictures",
    "assets",
    "data",
    "models",
    "priors",
    "attacks",
    "defenses",
    "metrics",
    "training",
    "stages",
    "suite",
    "checks",
    "report",
    "judge",
    "progress",
    "planning",
    "sweep",
    "printing",
    "verify",
    "cite",
    "doctor",
    "cli",
]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(tree: ast.AST, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Dotted paths below mibench of everything a module imports, relative and literal dynamic imports included."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            found += [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return {tuple(name.split(".")[1:]) for name in found if name.split(".")[0] == "mibench" and "." in name}


def parse(module: str) -> set[tuple[str, ...]]:
    package = ("mibench", *Path(module).parts[:-1])
    return imported(ast.parse((ROOT / module).read_text(encoding="utf-8")), package)


def layer(module: str) -> str:
    return Path(module).parts[0].removesuffix(".py")


def test_every_module_has_a_place_in_the_order() -> None:
    unplaced = {layer(module) for module in MODULES} - set(ORDER) - {"__main__"}
    assert not unplaced, f"give {sorted(unplaced)} a place in ORDER"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module: str) -> None:
    own = layer(module)
    if own == "__main__":
        return
    for path in parse(module):
        if path[0] in ORDER and path[0] != own:
            assert ORDER.index(path[0]) < ORDER.index(own), f"{module} imports mibench.{'.'.join(path)}"
        elif path[0] not in ORDER:
            assert path[0].startswith("__"), f"{module} imports mibench.{'.'.join(path)}, which has no place in ORDER"


ATTACKS = [module for module in MODULES if layer(module) == "attacks"]


@pytest.mark.parametrize("module", ATTACKS)
def test_attacks_reach_neither_private_data_nor_evaluation_models(module: str) -> None:
    # Architectures and kinds of priors, yes; what was trained is read by stages alone.
    allowed = {"errors", "rng", "augment", "core", "objectives", "models", "priors", "attacks"}
    assert {path[0] for path in parse(module)} <= allowed
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    reached = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and ast.unparse(node.value) not in ("self", "super()")
    ]
    assert reached == [], "private names of the oracle or of a prior"


@pytest.mark.parametrize("module", [module for module in ATTACKS if "parts" not in module])
def test_an_attack_is_one_file(module: str) -> None:
    shared = {path[:2] for path in parse(module) if path[0] == "attacks"}
    assert shared <= {("attacks", "parts")}, "attacks share through parts, not with one another"


def test_the_test_sees_what_it_looks_for() -> None:
    source = (
        "import mibench.cli\nfrom mibench import core, __version__\nfrom . import suite\nfrom ..models import base\n"
        "def f():\n    from mibench.stages.score import work\n    importlib.import_module('mibench.report')\n"
    )
    assert imported(ast.parse(source), ("mibench", "attacks")) == {
        ("cli",),
        ("core",),
        ("__version__",),
        ("attacks", "suite"),
        ("models", "base"),
        ("stages", "score", "work"),
        ("report",),
    }
