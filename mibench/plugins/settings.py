"""Settings of plug-ins: from text, TOML or JSON to a typed dataclass, once."""

import math
import shlex
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from mibench.runtime.errors import UserError, unknown

__all__ = ["named", "parse_settings", "resolve_settings", "settings_of", "typed_settings"]


def settings_of(cls: type) -> dict[str, Any]:
    """The fields a user may set, by name."""
    return {item.name: item for item in fields(cls) if not item.metadata.get("wrapped")}


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, evaluated once."""
    return typing.get_type_hints(cls)


def parse_settings(sets: list[str]) -> dict[str, str]:
    """`["steps=60"]` to `{"steps": "60"}`."""
    parsed = {}
    for item in sets:
        field, equals, value = item.partition("=")
        if not equals or not field.strip() or not value.strip():
            raise UserError(f"--set takes field=value, for example --set steps=100; got '{item}'")
        parsed[field.strip()] = value.strip()
    return parsed


def named(text: str) -> tuple[str, dict[str, str]]:
    """`re location=torus` to its name and settings."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words or any("=" not in word for word in words[1:]):
        raise UserError(f"'{text}' should be a name and settings, as in: re location=torus a_e=0.4")
    return words[0], parse_settings(words[1:])


def _convert(owner: str, field: str, hint: Any, value: Any) -> Any:
    """The value as the field's type, from text (--set), JSON or Python."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in allowed and value in (None, "none", "None"):
        return None
    target = next(kind for kind in allowed if kind is not type(None))
    origin, inner = typing.get_origin(target), typing.get_args(target)

    def wrong() -> UserError:  # made only where it is raised: a plan of thousands of runs converts without one
        return UserError(f"{owner}: {field} must be {getattr(target, '__name__', target)}, got '{value}'")

    if origin is typing.Literal:
        if value not in inner:
            raise unknown(f"value of {owner}'s {field}", str(value), map(str, inner))
        return value
    if origin is tuple:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]  # TOML's 3 is --set's 3: one of them
        if not isinstance(value, str | list | tuple):
            raise wrong()
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
            raise wrong()
        return texts[str(value).lower()]
    if isinstance(value, bool) and target in (int, float):
        raise wrong()
    if target is int and isinstance(value, float) and not value.is_integer():
        raise wrong()
    try:
        return target(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong() from None


def _check(owner: str, name: str, value: Any, signed: bool) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"{owner}: {name} must be below 2^63, got more")
            if not math.isfinite(number):
                raise UserError(f"{owner}: {name} must be a finite number, got {number}")
            if number < 0 and not signed:
                raise UserError(f"{owner}: {name} must not be negative, got {number}")


def typed_settings(cls: type, owner: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Some of a dataclass's fields from text, TOML or JSON, typed; numbers are finite and not negative.

    A field whose metadata says `signed` may be negative.

    Raises:
        UserError: For an unknown field, a wrong type, NaN or infinity, or a value out of range.
    """
    known = settings_of(cls)
    hints = _hints(cls)
    typed = {}
    for name, value in settings.items():
        if name not in known:
            raise unknown(f"setting of {owner}", name, known)
        typed[name] = _convert(owner, name, hints[name], value)
        _check(owner, name, typed[name], bool(known[name].metadata.get("signed")))
    return typed


def resolve_settings(cls: type, owner: str, settings: Mapping[str, Any]) -> Any:
    """The whole dataclass from what `typed_settings` makes of the given fields.

    Raises:
        UserError: As there, and for a field that has no default and is not given.
    """
    typed = typed_settings(cls, owner, settings)
    missing = [
        name
        for name, item in settings_of(cls).items()
        if name not in typed and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise UserError(f"{owner} needs --set {missing[0]}=...")
    return cls(**typed)
