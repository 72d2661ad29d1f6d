"""The file name is the registry: `mibench/attacks/ppa.py` is the attack `ppa`.

A plug-in is a module with a literal `CARD` (read without importing it, so that `mibench list` answers at once), an
optional literal `PRESETS`, and one frozen dataclass whose fields are its settings. Other packages add plug-ins through
the entry points `mibench.attacks`, `mibench.defenses`, `mibench.priors` and `mibench.data`.

An attack may be wrapped: `ppa+eot` is the wrapper `eot` around `ppa`, and `eot.copies` one of its settings.
"""

import ast
import importlib
import inspect
import math
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mibench.errors import UserError, unknown

__all__ = ["BASES", "Choice", "cards", "configure", "defaults", "names", "parse_sets", "wrappers"]

BASES = {"attacks": "Attack", "defenses": "Defense", "priors": "PriorRecipe", "data": "Source"}
"""Kinds of plug-in and the base class in `mibench.core` of each one's dataclass."""

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
        """What decides the result, as JSON values."""
        settings = self.plugin.identity() if self.kind == "data" else _flat(self.plugin, wrappers(self.name))
        return {"name": self.name, "settings": settings}


def _flat(plugin: Any, around: list[str]) -> dict[str, Any]:
    """The settings of a plug-in; those of the wrappers around it with their names before them."""
    if not around:
        return asdict(plugin)
    own = {f"{around[-1]}.{item.name}": getattr(plugin, item.name) for item in _settings(type(plugin)).values()}
    return _flat(plugin.attack, around[:-1]) | own


def _settings(cls: type) -> dict[str, Any]:
    """The fields a user may set, by name."""
    return {item.name: item for item in fields(cls) if not item.metadata.get("wrapped")}


def wrappers(name: str) -> list[str]:
    """`ppa+eot+align` is wrapped in eot, then in align."""
    return name.split("+")[1:]


@cache
def _literals(path: Path) -> dict[str, Any]:
    """The module's top-level literal assignments, without running it."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in ("CARD", "PRESETS", "ARCHITECTURES"):
            found[target.id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return found


@cache
def _modules(kind: str) -> dict[str, str]:
    """Name -> importable module, ours first; an entry point cannot replace one of ours."""
    here = Path(__file__).parent / kind
    own = {path.stem: f"mibench.{kind}.{path.stem}" for path in sorted(here.glob("*.py")) if "CARD" in _literals(path)}
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
    offered = [one for one in names(kind) if _literals(_source(kind, one))["CARD"].get("role") == "wrapper"]
    if base in offered:
        raise UserError(f"{base} wraps another attack: --method ppa+{base}")
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
    found = _literals(_source(kind, name))
    offered = {"architectures": found["ARCHITECTURES"]} if "ARCHITECTURES" in found else {}
    return dict(found["CARD"]) | offered


def cards(kind: str) -> dict[str, dict[str, Any]]:
    """All cards of a kind."""
    return {name: card(kind, name) for name in names(kind)}


def presets(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """The plug-in's PRESETS, read without importing it; always has 'default'."""
    base, around = _parts(kind, name) if "+" in name else (name, [])
    found = {"default": {}, **_literals(_source(kind, base)).get("PRESETS", {})}
    for one in around:
        for preset, settings in presets(kind, one).items():
            if preset in found:
                found[preset] = found[preset] | {f"{one}.{field}": value for field, value in settings.items()}
    return found


def defaults(kind: str, name: str) -> dict[str, Any]:
    """Every setting with its default, a wrapped attack's wrappers included."""
    base, around = _parts(kind, name)
    found = {key: item.default for key, item in _settings(load(kind, base)).items()}
    for one in around:
        found |= {f"{one}.{key}": item.default for key, item in _settings(load(kind, one)).items()}
    return found


def load(kind: str, name: str) -> type:
    """The plug-in's dataclass."""
    _source(kind, name)
    module = importlib.import_module(_modules(kind)[name])
    base = getattr(importlib.import_module("mibench.core"), BASES[kind])
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f"{module.__name__} must define exactly one {BASES[kind]}; it defines {len(found)}")
    return found[0]


def parse_sets(sets: list[str]) -> dict[str, str]:
    """`["steps=60"]` to `{"steps": "60"}`."""
    parsed = {}
    for item in sets:
        field, equals, value = item.partition("=")
        if not equals or not field.strip() or not value.strip():
            raise UserError(f"--set takes field=value, for example --set steps=100; got '{item}'")
        parsed[field.strip()] = value.strip()
    return parsed


def _convert(owner: str, field: str, hint: Any, value: Any) -> Any:
    """The value as the field's type, from text (--set), JSON or Python."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in allowed and value in (None, "none", "None"):
        return None
    target = next(kind for kind in allowed if kind is not type(None))
    wrong = UserError(f"{owner}: {field} must be {getattr(target, '__name__', target)}, got '{value}'")
    origin, inner = typing.get_origin(target), typing.get_args(target)
    if origin is typing.Literal:
        if value not in inner:
            raise unknown(f"value of {owner}'s {field}", str(value), map(str, inner))
        return value
    if origin is tuple:
        if not isinstance(value, str | list | tuple):
            raise wrong
        items = value.strip("()[]").split(",") if isinstance(value, str) else list(value)
        kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(items):
            raise UserError(f"{owner}: {field} takes {len(kinds)} numbers separated by commas, got '{value}'")
        return tuple(_convert(owner, field, kind, item) for kind, item in zip(kinds, items, strict=True))
    if target is bool:
        texts = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() not in texts:
            raise wrong
        return texts[str(value).lower()]
    if isinstance(value, bool) and target in (int, float):
        raise wrong
    if target is int and isinstance(value, float) and not value.is_integer():
        raise wrong
    try:
        return target(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None


def _check(owner: str, name: str, value: Any, signed: bool) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"{owner}: {name} must be below 2^63, got more")
            if not math.isfinite(number):
                raise UserError(f"{owner}: {name} must be a finite number, got {number}")
            if number < 0 and not signed:
                raise UserError(f"{owner}: {name} must not be negative, got {number}")


def build(cls: type, owner: str, settings: dict[str, Any]) -> Any:
    """A dataclass from settings given as text or JSON; names and types are checked, numbers finite and not negative.

    A field whose metadata says `signed` may be negative.

    Raises:
        UserError: For an unknown field, a wrong type, NaN or infinity, or a value out of range.
    """
    known = _settings(cls)
    hints = typing.get_type_hints(cls)
    resolved = {}
    for name, value in settings.items():
        if name not in known:
            raise unknown(f"setting of {owner}", name, known)
        resolved[name] = _convert(owner, name, hints[name], value)
        _check(owner, name, resolved[name], bool(known[name].metadata.get("signed")))
    missing = [
        name
        for name, item in known.items()
        if name not in resolved and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise UserError(f"{owner} needs --set {missing[0]}=...")
    return cls(**resolved)


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
    plugin = build(load(kind, base), base, groups[""])
    for one in around:
        plugin = replace(build(load(kind, one), one, groups[one]), attack=plugin)
    return Choice(kind, name, preset, plugin)
