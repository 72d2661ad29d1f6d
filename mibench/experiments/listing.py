"""What `mibench list suites` shows, read without torch: what each suite is about, what it needs, what it comes to.

What only planning can tell stands in the suite's own `[takes]`; a test holds it to the plan, and `python
docs/generate/takes.py SUITE` prints it:

    [takes]
    data = ["facescrub", "ffhq"]       # to be fetched; embedded data sets are not
    runs = 106                         # where nothing is done; the zoo's are among them
    hours = 1.7                        # of one core, what `[seconds]` adds up to
    disk = "94 MB"                     # of results
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mibench.runtime.errors import UserError

__all__ = ["FOLDER", "Listed", "cost_line", "listed", "read"]

FOLDER = Path(__file__).parent / "suites"
"""Where the suites lie that ship with mibench."""

PICKLES = (".pkl", ".pickle", ".pt", ".pth")
"""How files of generators end."""

FIELDS: Mapping[str, type | tuple[type, ...]] = {"data": list, "runs": int, "hours": (int, float), "disk": str}
"""Of `[takes]`."""


@dataclass(frozen=True)
class Listed:
    """One suite.

    Args:
        name: It.
        title: What it is about.
        data: Data sets by name.
        fetched: Those, and the attacker's image sets, that must be fetched.
        weights: Files of weights, and `ImageNet` where networks start from it.
        sweeps: Names of its sweeps.
        runs: How many; None where it is not said, as of the others.
        hours: Of one core, by the suite's own measurement.
        disk: Of results, in words.
    """

    name: str
    title: str
    data: tuple[str, ...]
    fetched: tuple[str, ...]
    weights: tuple[str, ...]
    sweeps: tuple[str, ...]
    runs: int | None
    hours: float | None
    disk: str

    @property
    def cost(self) -> str:
        """`106 runs, 1.7 core hours, 94 MB`."""
        parts = [f"{self.runs:,} runs"] if self.runs else []
        parts += (
            [f"{self.hours:,.2g} core hours" if self.hours < 10 else f"{self.hours:,.0f} core hours"]
            if self.hours
            else []
        )
        return ", ".join([*parts, *([f"{self.disk} of results"] if self.disk else [])])


def listed() -> list[Listed]:
    """The suites that ship with mibench, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.toml"))]


def read(path: Path) -> Listed:
    """What one suite says of itself.

    Raises:
        UserError: `[takes]` has a field that is unknown, or of a wrong type.
    """
    shared: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    takes = shared.get("takes", {})
    for name, value in takes.items():
        if name not in FIELDS or not isinstance(value, FIELDS[name]):
            raise UserError(f"{path}: [takes] has data (a list), runs, hours and disk; got {name} = {value!r}")
    parts = [{**shared, **part} for part in shared.get("sweep", [{}])]
    weights = dict.fromkeys(shared.get("needs", {}))
    for part in parts:
        if str(part.get("prior", "")).endswith(PICKLES):
            weights[part["prior"]] = None
        if part.get("recipe") or part.get("pretrained") == "imagenet":
            weights["ImageNet"] = None
    return Listed(
        path.stem,
        str(shared.get("title", "")),
        tuple(dict.fromkeys(str(part.get("dataset", "digiface")) for part in parts)),
        tuple(map(str, takes.get("data", ()))),
        tuple(weights),
        tuple(str(part["name"]) for part in parts if "name" in part),
        takes.get("runs"),
        float(takes["hours"]) if "hours" in takes else None,
        str(takes.get("disk", "")),
    )


def cost_line(name: str) -> str:
    """What a shipped suite comes to, as a sentence for its page; empty where it does not say."""
    one = read(FOLDER / f"{name}.toml")
    return f"{one.cost}; hours of a GPU have not been measured." if one.cost else ""
