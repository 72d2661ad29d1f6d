"""What people call a target, an attack and their settings, from specifications."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mibench.plugins import registry
from mibench.runs import Run
from mibench.runtime.errors import UserError

__all__ = ["card", "changes", "data_settings", "defense_label", "preset", "settings_text"]


def changes(kind: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not the plug-in's defaults; all of them if the plug-in is no longer installed."""
    defaults = _defaults(kind, name)
    if defaults is None:
        return dict(settings)
    return {key: value for key, value in settings.items() if defaults.get(key) != _plain(value)}


@cache
def _defaults(kind: str, name: str) -> dict[str, Any] | None:
    """As JSON has them; None if the plug-in is no longer installed. Kept: a report asks for each many times."""
    try:
        return {key: _plain(value) for key, value in registry.defaults(kind, name).items()}
    except (UserError, ImportError):
        return None


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def card(kind: str, name: str) -> dict[str, Any]:
    """The plug-in's card; empty if it is no longer installed."""
    try:
        return registry.card(kind, name)
    except UserError:
        return {}


def data_settings(run: Run) -> dict[str, Any]:
    """The settings of a run's data set that are not defaults, as they were given; of a folder or file only its name."""
    asked, known = run.inputs.get("dataset", {}).get("settings", {}), run.spec["dataset"]["settings"]
    if not asked:
        return changes("data", run.spec["dataset"]["name"], known)
    # What its content stands for in the specification is a path where it was given.
    paths = {
        key: Path(value).name for key, value in asked.items() if isinstance(value, str) and known.get(key) != value
    }
    return changes("data", run.spec["dataset"]["name"], paths | {key: asked[key] for key in asked if key not in paths})


def settings_text(settings: Mapping[str, Any]) -> str:
    """`a_e=0.8 ratio=0.5,2`."""
    return " ".join(f"{key}={_value_text(value)}" for key, value in settings.items())


def _value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_value_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def defense_label(spec: Mapping[str, Any]) -> str:
    """`none`, `re a_e=0.8`, `re a_e=0.4 + bido`: names, their strength, and what else is not a default."""
    labels = []
    for item in spec.get("defenses", []):
        name, settings = item["name"], item["settings"]
        strength = card("defenses", name).get("strength")
        shown: dict[str, Any] = {strength: settings[strength]} if strength and strength in settings else {}
        labels.append(f"{name} {settings_text(shown | changes('defenses', name, settings))}".strip())
    return " + ".join(labels) or "none"


def preset(kind: str, name: str, settings: Mapping[str, Any]) -> str:
    """The preset that gives these settings; else the nearest with what differs: `quick objective=max_margin`. What is
    nearest to the defaults stands without their name."""
    own = (_defaults(kind, name) or {}) | {field: _plain(value) for field, value in settings.items()}
    apart = {
        key: {field: value for field, value in own.items() if whole.get(field) != value}
        for key, whole in _presets(kind, name).items()
    }
    # Presets that give the very settings go before the defaults, and the defaults before what is as near.
    key = min(apart, key=lambda key: (len(apart[key]), (key == "default") != bool(apart[key])))
    return " ".join(filter(None, ["" if key == "default" and apart[key] else key, settings_text(apart[key])]))


@cache
def _presets(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """Every setting under each preset; kept as `_defaults` are."""
    try:
        presets = registry.presets(kind, name)
    except UserError:
        presets = {"default": {}}
    defaults = _defaults(kind, name) or {}
    return {key: defaults | {field: _plain(value) for field, value in own.items()} for key, own in presets.items()}
