"""A module imports only from floors below its own, also inside functions; attacks cannot reach what they must not."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mibench"
FLOORS = (
    *("runtime", "core", "stats", "plugins", "assets", "data", "models", "priors", "attacks", "defenses", "metrics"),
    *("training", "evaluation", "runs", "zoo", "isolation", "stages", "testing", "experiments", "report", "api"),
    *("human_study", "cli"),
)
"""The one place that says which room stands on which, bottom first."""

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(tree: ast.AST, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Dotted paths below mibench of everything a module imports, relative and literal dynamic imports included."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names += [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return {tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "mibench" and "." in name}


def parse(module: str) -> set[tuple[str, ...]]:
    package = ("mibench", *Path(module).parts[:-1])
    return imported(ast.parse((ROOT / module).read_text(encoding="utf-8")), package)


def floor(module: str) -> str:
    return Path(module).parts[0].removesuffix(".py")


def test_every_module_stands_on_a_floor() -> None:
    unplaced = {floor(module) for module in MODULES} - set(FLOORS) - {"__main__"}
    assert not unplaced, f"give {sorted(unplaced)} a place in FLOORS"
    assert len({path.name for path in ROOT.glob("[!_]*")}) <= 24, "too many rooms for a newcomer to hold in his head"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    own = floor(module)
    if own == "__main__":
        return
    for path in parse(module):
        if path[0] in FLOORS and path[0] != own:
            assert FLOORS.index(path[0]) < FLOORS.index(own), f"{module} imports mibench.{'.'.join(path)}"
        elif path[0] not in FLOORS:
            assert path[0].startswith("__"), f"{module} imports mibench.{'.'.join(path)}, which has no floor"


def dotted(module: str) -> str:
    return module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_no_circles() -> None:
    known = {dotted(module) for module in MODULES}
    graph = {}
    for module in MODULES:
        # A package's own __init__ may gather its modules; they may not gather from it.
        names = {".".join(path[:size]) for path in parse(module) for size in range(1, len(path) + 1)}
        graph[dotted(module)] = {
            name for name in names & known if name != dotted(module) and name not in dotted(module).rpartition(".")[0]
        }
    seen: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if seen.get(name) == 2:
            return
        assert seen.get(name) != 1, f"circle: {' > '.join([*trail[trail.index(name) :], name])}"
        seen[name] = 1
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        seen[name] = 2

    for name in sorted(graph):
        visit(name, ())


ATTACKS = [module for module in MODULES if floor(module) == "attacks"]


@pytest.mark.parametrize("module", ATTACKS)
def test_attacks_reach_neither_private_data_nor_evaluation_models(module: str) -> None:
    # Architectures and kinds of priors, yes; what was trained is read by stages alone.
    assert {path[0] for path in parse(module)} <= {"runtime", "core", "models", "priors", "attacks"}
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
