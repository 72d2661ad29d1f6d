"""Why two tables are apart: the fields in which the protocols of their scores differ.

Only what `Scored.protocol` goes by makes a table of its own; fields that older scores did not write down are left out
of the comparison.
"""

from collections.abc import Iterable
from typing import Any

from mibench.report.collect import Scored, settings_text

__all__ = ["TITLE", "apart", "fields"]

TITLE = "Why these tables are apart"


def fields(one: Scored) -> dict[str, str]:
    """The comparable part of a score's protocol, field by field, as text."""
    asked, split = one.target.spec["dataset"], one.card.get("split", {})
    images = one.card.get("images")
    settings = settings_text("data", asked["name"], asked["settings"])
    found = {
        "data set": f"{asked['name']}{f' ({settings})' if settings else ''}",
        "split": f"fingerprint {one.fingerprint[:8]}",
        "identities attacked": f"{one.scores['identities']} of {one.scores['classes']}",
        "who was attacked": _who(split.get("attacked")),
        "evaluation models": ", ".join(f"{run.spec['model']} {run.id}" for run in one.evaluators),
    }
    if images is not None:
        found["resolution"] = f"{images['channels']} x {images['height']} x {images['width']}"
        converted = [f"{count} {what}" for what, count in sorted(images["converted"].items())]
        found["crop"] = ", ".join([images["crop"], *converted])
    return found


def _who(labels: list[int] | None) -> str:
    if labels is None:
        return "the first ones"
    return f"labels {', '.join(map(str, labels[:8]))}{', ...' if len(labels) > 8 else ''}"


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the fields that both have and that differ."""
    return [name for name in one if name in other and one[name] != other[name]]


def apart(found: Iterable[Scored], order: Iterable[Any]) -> list[str]:
    """One line for each table after the first: against the earlier one that is most like it, which fields differ.

    Args:
        found: The scores.
        order: The protocols in the order of their tables.
    """
    firsts: dict[str, Scored] = {}
    for one in found:
        known = firsts.setdefault(one.protocol, one)
        if not known.card and one.card:
            firsts[one.protocol] = one
    told: dict[str, dict[str, str]] = {}
    lines = []
    for protocol in dict.fromkeys(order):
        mine = fields(firsts[protocol])
        if told:
            near = min(told, key=lambda name: len(differing(told[name], mine)))
            theirs = told[near]
            said = [f"{name} ({theirs[name]}; here {mine[name]})" for name in differing(theirs, mine)]
            lines.append(f"Protocol {protocol} is not {near}: {', '.join(said)}.")
        told[protocol] = mine
    return lines
