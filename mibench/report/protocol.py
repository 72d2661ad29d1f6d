"""Why two tables are apart: the fields in which the protocols of their scores differ.

Only what `Scored.protocol` goes by makes a table of its own; fields that older scores did not write down are left out
of the comparison.
"""

from collections.abc import Iterable
from typing import Any

from mibench.report.naming import data_settings, settings_text
from mibench.report.result import Result

__all__ = ["TITLE", "apart", "fields"]

TITLE = "Why these tables are apart"


def fields(result: Result) -> dict[str, str]:
    """The comparable part of a score's protocol, field by field, as text."""
    data, split = result.target.spec["dataset"], result.score.card.get("split", {})
    images = result.score.card.get("images")
    settings = settings_text(data_settings(result.target))
    texts = {
        "data set": f"{data['name']}{f' ({settings})' if settings else ''}",
        "split": f"fingerprint {result.fingerprint[:8]}",
        "identities attacked": f"{result.score.identities} of {result.score.classes}",
        "who was attacked": _who(split.get("attacked")),
        "evaluation models": ", ".join(f"{run.spec['model']} {run.id}" for run in result.evaluators),
        "verifiers": ", ".join(f"{run.spec['model']} {run.id}" for run in result.verifiers) or "none",
    }
    if images is not None:
        texts["resolution"] = f"{images['channels']} x {images['height']} x {images['width']}"
        converted = [f"{count} {what}" for what, count in sorted(images["converted"].items())]
        texts["crop"] = ", ".join([images["crop"], *converted])
    return texts


def _who(labels: list[int] | None) -> str:
    if labels is None:
        return "the first ones"
    return f"labels {', '.join(map(str, labels[:8]))}{', ...' if len(labels) > 8 else ''}"


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the fields that both have and that differ."""
    return [name for name in one if name in other and one[name] != other[name]]


def apart(results: Iterable[Result], order: Iterable[Any]) -> list[str]:
    """One line for each table after the first: against the earlier one that is most like it, which fields differ.

    Args:
        results: The scores.
        order: The protocols in the order of their tables.
    """
    firsts: dict[str, Result] = {}
    for result in results:
        known = firsts.setdefault(result.protocol, result)
        if not known.score.card and result.score.card:
            firsts[result.protocol] = result
    earlier: dict[str, dict[str, str]] = {}
    lines = []
    for protocol in dict.fromkeys(order):
        mine = fields(firsts[protocol])
        if earlier:
            near = min(earlier, key=lambda name: len(differing(earlier[name], mine)))
            theirs = earlier[near]
            reasons = [f"{name} ({theirs[name]}; here {mine[name]})" for name in differing(theirs, mine)]
            lines.append(f"Protocol {protocol} is not {near}: {', '.join(reasons)}.")
        earlier[protocol] = mine
    return lines
