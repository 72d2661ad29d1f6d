"""The file name is the registry: `mibench/attacks/ppa.py` is the attack `ppa`.

A plug-in is a module with a literal `CARD` (read without importing it, so that `mibench list` answers at once), an
optional literal `PRESETS`, and one frozen dataclass whose fields are its settings. Other packages add plug-ins through
the entry points `mibench.attacks`, `mibench.defenses`, `mibench.priors`, `mibench.data` and `mibench.metrics`, and say
in their card for which version of the contract they were written: `"contract": 1` (`plugins.contract`).

A card also declares what fits together (`plugins.capabilities`): a prior what it offers (`critic`, `conditional`,
`differentiable`, `diffusion`, `flow`, `spaces`, `enterable`) and what it draws (`domain`; `elsewhere`, what is learnt
in its place on other data), an attack what it `requires` of a prior or, in a wrapper, of the attack that it `wraps`, a
family of architectures what it `offers` and a defense what it `requires` of one.

An attack may be wrapped: `ppa+eot` is the wrapper `eot` around `ppa`, and `eot.copies` one of its settings.
"""

import ast
import importlib
import inspect
import re
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mibench.plugins.settings import named, resolve_settings, settings_of
from mibench.runtime.errors import UserError, unknown
from mibench.runtime.files import read_text

if TYPE_CHECKING:
    from mibench.core import Transform

__all__ = [
    "BASES",
    "CONTRACT",
    "OLDEST",
    "SINGULAR",
    "Choice",
    "attacks",
    "cards",
    "configure",
    "defaults",
    "is_own",
    "literals",
    "module_of",
    "names",
    "partial",
    "require_contract",
    "shown_under",
    "source_of",
    "wrappers",
]

BASES = {"attacks": "Attack", "defenses": "Defense", "priors": "PriorTrainer", "data": "Source"}
"""Kinds of plug-in and the base class in `mibench.core` of each one's dataclass."""

CONTRACT = 1
"""The version of the contract with plug-ins (`plugins.contract`) that this mibench speaks."""

OLDEST = 1
"""The oldest version that still runs."""

SINGULAR = {
    "attacks": "attack",
    "priors": "prior",
    "defenses": "defense",
    "models": "model",
    "data": "data set",
    "metrics": "metric",
}


@dataclass(frozen=True)
class Choice:
    """A plug-in with every setting resolved: what goes into a run's specification."""

    kind: str
    name: str
    preset: str
    plugin: Any

    def spec(self) -> dict[str, Any]:
        """What decides the result, as JSON values; a folder of pictures is read for it once."""
        return self._spec

    @cached_property
    def shape(self) -> Any:
        """Of a data set: how many people and images there are (`mibench.core.Shape`), counted once."""
        return self.plugin.shape()

    @cached_property
    def _spec(self) -> dict[str, Any]:
        settings = self.plugin.identity() if self.kind == "data" else _flat(self.plugin, wrappers(self.name))
        return {"name": self.name, "settings": settings}


def _flat(plugin: Any, around: list[str]) -> dict[str, Any]:
    """The settings of a plug-in; those of the wrappers around it with their names before them."""
    if not around:
        return asdict(plugin)
    own = {f"{around[-1]}.{item.name}": getattr(plugin, item.name) for item in settings_of(type(plugin)).values()}
    return _flat(plugin.attack, around[:-1]) | own


def wrappers(name: str) -> list[str]:
    """`ppa+eot+align` is wrapped in eot, then in align."""
    return name.split("+")[1:]


LITERALS = ("CARD", "PRESETS", "AROUND", "ARCHITECTURES")
"""What is read of a plug-in without importing it."""

_LITERAL = re.compile(rf"^(?:{'|'.join(LITERALS)}) *=.*?(?=^[^\s)\]}}#]|\Z)", re.MULTILINE | re.DOTALL)
"""From the name to the next line that begins a statement of its own."""


@cache
def literals(path: Path) -> dict[str, Any]:
    """The module's top-level literal assignments, without running it.

    Only these are parsed, which takes a quarter of the time of the whole file; where that fails, all of it.
    """
    source = read_text(path)
    try:
        nodes = [node for part in _LITERAL.findall(source) for node in ast.parse(part).body]
    except SyntaxError:
        nodes = ast.parse(source).body
    literals = {}
    for node in nodes:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in LITERALS:
            literals[target.id] = ast.literal_eval(node.value)
    return literals


@cache
def _modules(kind: str) -> dict[str, str]:
    """Name -> importable module, ours first; an entry point cannot replace one of ours."""
    here = Path(__file__).parent.parent / kind
    own = {path.stem: f"mibench.{kind}.{path.stem}" for path in sorted(here.glob("*.py")) if "CARD" in literals(path)}
    others = {point.name: point.module for point in entry_points(group=f"mibench.{kind}")}
    return others | own


def names(kind: str) -> list[str]:
    """Every plug-in of a kind."""
    return list(_modules(kind))


@cache
def _source(kind: str, name: str) -> Path:
    modules = _modules(kind)
    if name not in modules:
        raise unknown(SINGULAR[kind], name, modules)
    spec = find_spec(modules[name])
    if spec is None or spec.origin is None:
        raise UserError(f"the {SINGULAR[kind]} '{name}' is registered as {modules[name]}, which cannot be imported")
    return Path(spec.origin)


def _parts(kind: str, name: str) -> tuple[str, list[str]]:
    """The plug-in and what is wrapped around it; only attacks can be wrapped.

    Raises:
        UserError: If a wrapper stands alone or something that is no wrapper follows a +.
    """
    if kind != "attacks":
        return name, []
    base, *around = name.split("+")
    if literals(_source(kind, base)).get("CARD", {}).get("role") == "wrapper":
        raise UserError(f"{base} wraps another attack: --method ATTACK+{base}")
    offered = attacks("wrapper") if around else []
    for one in around:
        if one not in offered:
            raise UserError(f"--method {name}: after a + stands a wrapper, one of {', '.join(offered)}; got '{one}'")
    if len(set(around)) != len(around):
        raise UserError(f"--method {name} names a wrapper twice")
    return base, around


def card(kind: str, name: str) -> dict[str, Any]:
    """The plug-in's CARD, read without importing it; that of a wrapped attack is the inner one's."""
    if "+" in name and kind == "attacks":
        base, around = _parts(kind, name)
        return card(kind, base) | {"wrappers": around, "cost": None}
    read = literals(_source(kind, name))
    if "CARD" not in read:
        raise UserError(
            f"the {SINGULAR[kind]} '{name}' has no literal CARD at the top of {_source(kind, name)}; add it"
        )
    offered = {"architectures": read["ARCHITECTURES"]} if "ARCHITECTURES" in read else {}
    return dict(read["CARD"]) | offered


def cards(kind: str) -> dict[str, dict[str, Any]]:
    """All cards of a kind."""
    return {name: card(kind, name) for name in names(kind)}


def attacks(role: str) -> list[str]:
    """The attacks of a role: attack, floor or wrapper; who says nothing is an attack."""
    return [name for name, one in cards("attacks").items() if one.get("role", "attack") == role]


def partial(attack: str, preset: str) -> str:
    """What an attack's preset leaves out of its method, in the words of the card's `partial`; empty if nothing.

    A row made with such a preset says little about the method, and tables say so. An attack that is not registered (of
    imported images) has nothing to say.
    """
    if attack.split("+")[0] not in names("attacks"):
        return ""
    return str(card("attacks", attack).get("partial", {}).get(preset, ""))


def presets(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """The plug-in's PRESETS, read without importing it; always has 'default'.

    A wrapper's are laid over those of the attack it stands around. What its authors changed around one attack is in its
    AROUND: attack -> preset -> settings, the attack's own under `attack.setting`; a preset that the attack has not is
    laid over its defaults.
    """
    base, around = _parts(kind, name) if "+" in name else (name, [])
    offered = {"default": {}, **literals(_source(kind, base)).get("PRESETS", {})}
    for one in around:
        own = literals(_source(kind, one))
        for preset, settings in own.get("PRESETS", {}).items():
            if preset in offered:
                offered[preset] = offered[preset] | {f"{one}.{field}": value for field, value in settings.items()}
        for preset, settings in own.get("AROUND", {}).get(base, {}).items():
            placed = {
                field.removeprefix(f"{base}.") if field.startswith(f"{base}.") else f"{one}.{field}": value
                for field, value in settings.items()
            }
            offered[preset] = offered.get(preset, {}) | placed
    return offered


def defaults(kind: str, name: str) -> dict[str, Any]:
    """Every setting with its default, a wrapped attack's wrappers included."""
    base, around = _parts(kind, name)
    values = {key: item.default for key, item in settings_of(load(kind, base)).items()}
    for one in around:
        values |= {f"{one}.{key}": item.default for key, item in settings_of(load(kind, one)).items()}
    return values


def is_own(kind: str, name: str) -> bool:
    """Whether a plug-in is one of mibench's own; of a wrapped attack, the one inside."""
    return _modules(kind).get(name.split("+")[0], "").startswith("mibench.")


def module_of(kind: str, name: str) -> str:
    """The importable module that a plug-in is.

    Raises:
        UserError: If there is none of this name.
    """
    _source(kind, name)
    return _modules(kind)[name]


def source_of(kind: str, name: str) -> Path:
    """The file that a plug-in is.

    Raises:
        UserError: If there is none of this name, or it cannot be found.
    """
    return _source(kind, name)


def require_contract(kind: str, name: str) -> None:
    """Refuse a plug-in of another package that was written for a version of the contract that this mibench does not
    speak; one that names none is taken for the oldest.

    Raises:
        UserError: What it was written for, what this mibench speaks, and what to do.
    """
    given = card(kind, name).get("contract", OLDEST)
    if is_own(kind, name) or (type(given) is int and OLDEST <= given <= CONTRACT):
        return
    what = f"the {SINGULAR[kind]} {name} ({_modules(kind)[name]})"
    if type(given) is not int:
        raise UserError(f"{what}: 'contract' in its card is {given!r}; it must be a version, such as {CONTRACT}")
    speaks = f"this mibench speaks {OLDEST} to {CONTRACT}" if OLDEST < CONTRACT else f"this mibench speaks {CONTRACT}"
    if given > CONTRACT:
        raise UserError(f"{what} was written for contract {given}; {speaks}: update mibench")
    raise UserError(
        f"{what} was written for contract {given}; {speaks}: update {name}, or bring it up to date with `mibench "
        f'check-plugin {name}` and write "contract": {CONTRACT} into its card'
    )


def load(kind: str, name: str) -> type:
    """The plug-in's dataclass.

    Raises:
        UserError: If it was written for another version of the contract, or is not exactly one class.
    """
    _source(kind, name)
    require_contract(kind, name)
    return _class_in(importlib.import_module(_modules(kind)[name]), BASES[kind])


@cache
def _class_in(module: ModuleType, base_name: str) -> type:
    """The one plug-in that a module defines; looked for once in each module."""
    base = getattr(importlib.import_module("mibench.core"), base_name)
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(f"{module.__name__} must define exactly one {base_name}; it defines {len(classes)}")
    return classes[0]


def configure(kind: str, name: str, preset: str = "default", settings: dict[str, Any] | None = None) -> Choice:
    """A plug-in by name, with a preset and then single settings laid over its defaults."""
    offered = presets(kind, name)
    if preset not in offered:
        raise unknown(f"preset of {name}", preset, offered)
    base, around = _parts(kind, name)
    groups: dict[str, dict[str, Any]] = {one: {} for one in ["", *around]}
    for field, value in (offered[preset] | (settings or {})).items():
        owner, _, rest = field.rpartition(".")
        if owner not in groups:
            raise unknown(f"setting of {name}", field, defaults(kind, name))
        groups[owner][rest] = value
    plugin = resolve_settings(load(kind, base), base, groups[""])
    for one in around:
        plugin = replace(resolve_settings(load(kind, one), one, groups[one]), attack=plugin)
    return Choice(kind, name, preset, plugin)


def shown_under(text: str) -> "Transform":
    """What a defense, `re a_e=0.4`, does to training images (see `core.shown_by`), whatever the target's own is.

    Raises:
        UserError: If there is no such defense or setting.
    """
    from mibench.core import shown_by  # here: a list of names is shown without torch

    name, settings = named(text)
    return shown_by([configure("defenses", name, settings=dict(settings)).plugin])
