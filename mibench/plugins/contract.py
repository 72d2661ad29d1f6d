"""What a card must and may say, by kind of plug-in.

`registry.CONTRACT` is raised when a plug-in that was written before would no longer run, or would give other numbers. A
card says for which version it was written: `"contract": 1`.
"""

from typing import NamedTuple

from mibench.plugins import registry
from mibench.runtime.errors import UserError

__all__ = ["KEYS", "Key", "check_card"]


class Key(NamedTuple):
    """One key of a card.

    Args:
        types: What it may be.
        meaning: In one sentence, without a full stop.
        needed: Whether every card of another package must have it.
        among: The only values, where they are few.
    """

    types: tuple[type, ...]
    meaning: str
    needed: bool = False
    among: tuple[object, ...] = ()


NONE = type(None)
CITED = {
    "summary": Key((str,), "what it is, at most 120 letters, without a full stop", True),
    "title": Key((str,), "title of the paper to cite", True),
    "authors": Key((str,), "its authors", True),
    "venue": Key((str,), "where it appeared", True),
    "year": Key((int, NONE), "when", True),
    "link": Key((str,), "where it can be read, beginning with https://", True),
    "contract": Key((int,), "the version of the contract that it was written for", True),
}
KEYS: dict[str, dict[str, Key]] = {
    "attacks": CITED
    | {
        "access": Key((str,), "what it asks the target for", True, ("none", "label_only", "black_box", "white_box")),
        "prior": Key((str, NONE), "the prior that it searches unless --prior names another; None in a wrapper", True),
        "role": Key(
            (str,), "floor: nobody's method, what others are compared with", False, ("attack", "floor", "wrapper")
        ),
        "cost": Key(
            (list, tuple, NONE),
            "[queries, gradient images, shared queries] of the preset paper, else the defaults; "
            "None: one for each public image",
        ),
        "requires": Key((list, tuple), "what a prior must offer (`mibench.core.CAPABILITIES`)"),
        "wraps": Key((str,), "gradients: only an attack that asks for some may stand inside", False, ("gradients",)),
        "selects": Key((str,), "who chooses the images that are kept", False, ("nobody", "target", "evaluator")),
        "partial": Key((dict,), "preset -> what it leaves out of the method"),
        "inside": Key((str,), "why decode(latents) does not give the images"),
        "toy": Key((dict,), "settings in the toy world: short, for laws that take many runs; enough, to succeed"),
    },
    "defenses": CITED
    | {
        "strength": Key((str, NONE), "the setting that `mibench sweep` varies", True),
        "grid": Key((list, tuple), "the values it varies it over, two or more", True),
        "adaptive": Key((dict,), "what an attacker changes who knows the defense -> why", True),
        "zero": Key((dict, str), "the settings at which it does nothing, bit for bit; or why there are none", True),
        "conflicts": Key((dict,), "other defense -> why the two do not stack"),
        "requires": Key((list, tuple), "what a family of architectures must offer"),
        "packages": Key((dict,), "package that must be installed -> the extra that brings it"),
        "toy": Key((dict,), "model: the architecture that its laws are tried on; short: settings"),
    },
    "priors": CITED
    | {
        "critic": Key((str,), "what kind of critic it has", True, ("none", "wgan", "kp1")),
        "domain": Key((str,), "what it draws: public, none, or the one data set it was made for", True),
        "conditional": Key((bool,), "whether decode is told whom to draw"),
        "differentiable": Key((bool,), "whether gradients flow from images to latents"),
        "diffusion": Key((bool,), "whether it denoises"),
        "flow": Key((bool,), "whether it carries noise along a velocity field"),
        "spaces": Key((list, tuple), "its latent spaces by name"),
        "enterable": Key((bool,), "whether a search may enter between its blocks"),
        "elsewhere": Key((str,), "the prior that is learnt in its place on other data"),
        "toy": Key((dict,), "short: settings in the toy world; size: the side of its images there"),
    },
    "data": {
        "summary": CITED["summary"],
        "images": Key((str,), "how many, of what", True),
        "identities": Key((str,), "how many", True),
        "licence": Key((str,), "of the images", True),
        "link": Key((str,), "where they come from", True),
        "year": Key((int, NONE), "when they appeared"),
        "contract": CITED["contract"],
        "toy": Key((dict,), "short: settings that make it small"),
    },
    "metrics": CITED,
}
"""Kind -> what a card says. Keys that are not here are left alone."""


def check_card(kind: str, name: str) -> None:
    """Refuse a card that lacks a key, or in which one has a value that it cannot have; mibench's own may leave out what
    does not apply to them.

    Raises:
        UserError: The first of it.
    """
    card, what = registry.card(kind, name), f"the card of the {registry.SINGULAR[kind]} {name}"
    ours = registry.is_own(kind, name)
    for key, one in KEYS[kind].items():
        if key not in card:
            if one.needed and not ours:
                raise UserError(f"{what} has no '{key}' ({one.meaning}); add it")
            continue
        value = card[key]
        if not isinstance(value, one.types) or (isinstance(value, bool) and bool not in one.types):
            allowed = " or ".join("None" if kind is NONE else kind.__name__ for kind in one.types)
            raise UserError(f"{what}: '{key}' is {value!r}; it must be {allowed}: {one.meaning}")
        if one.among and value not in one.among:
            raise UserError(f"{what}: '{key}' is {value!r}; allowed: {', '.join(map(str, one.among))}")
    if len(card["summary"]) > 120 or "\n" in card["summary"]:
        raise UserError(f"{what}: 'summary' has {len(card['summary'])} letters; at most 120, in one line")
    if card.get("link") and not str(card["link"]).startswith(("https://", "http://")):
        raise UserError(f"{what}: 'link' is {card['link']!r}; it must begin with https://")
