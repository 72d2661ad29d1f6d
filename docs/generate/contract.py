"""The contract with plug-ins on one page: every key of a card, every law, read from the code that holds them."""

from docstrings import cell

from mibench import testing
from mibench.plugins import registry
from mibench.plugins.contract import KEYS

__all__ = ["page"]

TITLES = {"attack": "An attack", "defense": "A defense", "prior": "A prior", "data": "A data set", "metric": "A metric"}
EXAMPLES = {"data": "dataset"}
"""Whose example's page is not called as its kind."""


def page() -> str:
    """The page."""
    spoken = registry.CONTRACT if registry.OLDEST == registry.CONTRACT else f"{registry.OLDEST} to {registry.CONTRACT}"
    parts = [
        "# The contract",
        f"This mibench speaks version {spoken} of the contract; a card says for which it was written: "
        f'`"contract": {registry.CONTRACT}`. A plug-in of a version that is not spoken is refused in one line; one '
        "that names none is taken for the oldest. It is raised when a plug-in that was written before would no "
        "longer run, or would give other numbers.",
        "The page is made from the code: the keys of a card from `mibench.plugins.contract`, the laws from "
        "`mibench.testing`. `mibench check-plugin NAME` tries the laws, in this order, in a toy world on one core. "
        "Where a law is broken, those that build on it are not judged.",
    ]
    for kind, kinds in testing.KINDS.items():
        example = EXAMPLES.get(kind, kind)
        parts += [f"## {TITLES[kind]}", f"A complete example: [{TITLES[kind].lower()}]({example}.md).", "### Its card"]
        rows = ["| key | | type | meaning |", "|:---|:---|:---|:---|"]
        for key, one in KEYS[kinds].items():
            types = " or ".join("None" if given is type(None) else given.__name__ for given in one.types)
            among = f": {', '.join(f'`{value}`' for value in one.among)}" if one.among else ""
            rows.append(f"| `{key}` | {'needed' if one.needed else ''} | {types} | {cell(one.meaning)}{among} |")
        parts += ["\n".join(rows), "### Its laws"]
        rows = ["| law | what it says | builds on |", "|:---|:---|:---|"]
        rows += [f"| {one.name} | {cell(one.says)} | {', '.join(one.needs)} |" for one in testing.book(kind)]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"
