"""An attack cut down to what can be timed, and with a little more of each kind of pictures that it asks for."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from mibench.core import Attack, Cost
from mibench.runtime.errors import UserError

__all__ = ["shown_through", "smallest", "within"]

ASKED: Mapping[str, Callable[[Cost], int]] = {
    "own": lambda cost: cost.queries - cost.gradient_images,
    "slopes": lambda cost: cost.gradient_images,
    "shared": lambda cost: cost.shared_queries,
}
"""The pictures that an attack asks for."""

FURTHER = 6
"""How much is added to a setting of an attack to time what it adds."""


KEPT = ("copies", "views")
"""Settings that stay as they are: pictures that one drawing is shown through, so that one of them takes less."""


def smallest(attack: Attack, prior: Any, public: int) -> tuple[Attack, dict[str, tuple[Attack, int]]]:
    """An attack, wrapped ones too, with its settings as small as they go while it asks for every kind of pictures that
    it asks for; and for each kind the attack with more of that kind alone, with how many pictures more."""
    whole = attack.cost(prior, public)
    wanted = [kind for kind, count in ASKED.items() if count(whole)]

    def cost(one: Attack | None) -> Cost | None:
        with suppress(UserError, ValueError, AssertionError):
            return one.cost(prior, public) if one is not None else None
        return None

    paths = list(_counts(attack))
    for path in [*paths, *paths]:  # twice, as one setting may hold another up
        for value in (1, 2, 4, 8, 16, 64):
            smaller = _with(attack, path, value) if value < _at(attack, path) else None
            known = cost(smaller)
            if smaller is None or known is None or known == cost(attack):
                continue
            if all(ASKED[kind](known) for kind in wanted):
                attack = smaller
                break
    base = attack.cost(prior, public)
    more: dict[str, tuple[Attack, int]] = {}
    for path in paths:
        longer = _with(attack, path, _at(attack, path) + FURTHER)
        known = cost(longer)
        if longer is None or known is None:
            continue
        added = {kind: count(known) - count(base) for kind, count in ASKED.items()}
        changed = [kind for kind, number in added.items() if number]
        if len(changed) == 1 and added[changed[0]] > 0 and changed[0] not in more:
            more[changed[0]] = longer, added[changed[0]]
    return attack, more


def _counts(attack: Attack) -> Iterator[tuple[str, ...]]:
    """Where an attack, and the one that it may be wrapped around, has a whole number above 1."""
    for one in fields(attack):
        value = getattr(attack, one.name)
        if isinstance(value, Attack):
            yield from ((one.name, *path) for path in _counts(value))
        elif type(value) is int and value > 1 and one.name not in KEPT:
            yield (one.name,)


def _at(attack: Any, path: tuple[str, ...]) -> int:
    return int(getattr(attack, path[0])) if len(path) == 1 else _at(getattr(attack, path[0]), path[1:])


def _with(attack: Any, path: tuple[str, ...], value: int) -> Attack | None:
    inner: Any = value if len(path) == 1 else _with(getattr(attack, path[0]), path[1:], value)
    with suppress(UserError, ValueError):
        return None if inner is None else replace(attack, **{path[0]: inner})
    return None


def shown_through(attack: Any) -> int:
    """Pictures that one drawing is shown through, at a step."""
    own = math.prod(value for name in KEPT if type(value := getattr(attack, name, 1)) is int)
    inner = getattr(attack, "attack", None)
    return own * (shown_through(inner) if isinstance(inner, Attack) else 1)


def within(cost: Cost, budget: int | None) -> Cost:
    """What is asked before a budget ends."""
    if budget is None:
        return cost
    shared = min(cost.shared_queries, budget)
    own = min(cost.queries, budget - shared)
    return Cost(own, min(cost.gradient_images, own), shared)
