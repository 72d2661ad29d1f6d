"""An attack cut down to what can be timed, and with a little more of each kind of pictures that it asks for."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from mibench.core import Attack, Cost
from mibench.runtime.errors import UserError

__all__ = ["smallest", "within"]

ASKED: Mapping[str, Callable[[Cost], int]] = {
    "own": lambda cost: cost.queries - cost.gradient_images,
    "slopes": lambda cost: cost.gradient_images,
    "shared": lambda cost: cost.shared_queries,
}
"""The pictures that an attack asks for."""

FURTHER = 6
"""How much is added to a setting of an attack to time what it adds."""


def smallest(attack: Attack, prior: Any, public: int) -> tuple[Attack, dict[str, tuple[Attack, int]]]:
    """An attack with its settings as small as they go while it asks for every kind of pictures that it asks for; and
    for each kind the attack with more of that kind alone, with how many pictures more."""
    whole = attack.cost(prior, public)
    wanted = [kind for kind, count in ASKED.items() if count(whole)]

    def cost(one: Attack) -> Cost | None:
        with suppress(UserError, ValueError, AssertionError):
            return one.cost(prior, public)
        return None

    names = [
        one.name for one in fields(attack) if type(getattr(attack, one.name)) is int and getattr(attack, one.name) > 1
    ]
    for name in names:
        for value in (1, 2, 4):
            smaller = _with(attack, name, value) if value < getattr(attack, name) else None
            known = cost(smaller) if smaller is not None else None
            if smaller is None or known is None or known == cost(attack):
                continue
            if all(ASKED[kind](known) for kind in wanted):
                attack = smaller
                break
    base = cost(attack)
    more: dict[str, tuple[Attack, int]] = {}
    for name in names if base is not None else ():
        longer = _with(attack, name, getattr(attack, name) + FURTHER)
        known = cost(longer) if longer is not None else None
        if longer is None or known is None or base is None:
            continue
        added = {kind: count(known) - count(base) for kind, count in ASKED.items()}
        changed = [kind for kind, number in added.items() if number]
        if len(changed) == 1 and added[changed[0]] > 0 and changed[0] not in more:
            more[changed[0]] = longer, added[changed[0]]
    return attack, more


def _with(attack: Attack, name: str, value: int) -> Attack | None:
    with suppress(UserError, ValueError):
        return replace(attack, **{name: value})
    return None


def within(cost: Cost, budget: int | None) -> Cost:
    """What is asked before a budget ends."""
    if budget is None:
        return cost
    shared = min(cost.shared_queries, budget)
    own = min(cost.queries, budget - shared)
    return Cost(own, min(cost.gradient_images, own), shared)
