"""How long the laws take: `python docs/generate/seconds.py` tries them all and writes docs/extend/seconds.md."""

import sys
import tempfile
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from unittest.mock import patch

import torch

from mibench import testing
from mibench.plugins import registry
from mibench.plugins.new import new
from mibench.testing.laws import judge

__all__ = ["page"]

PAGE = Path(__file__).parent.parent / "extend" / "seconds.md"
WRAPPED = ("gmi+eot", "ppa+eot", "ppa+ppdg", "ppa+untrap")
"""Beside every shipped attack that stands alone: one with each wrapper."""


def seconds(kind: str, name: str) -> dict[str, float]:
    """Law -> processor seconds on one thread.

    Raises:
        AssertionError: If a law is broken.
    """
    trial, book, taken = testing.trial(kind, name), testing.book(kind), {}
    for law in book:
        since = time.process_time()
        verdict = judge(trial, law, book)
        taken[law.name] = time.process_time() - since
        assert verdict.outcome in ("kept", "does not apply"), verdict.line
    return taken


def page() -> str:
    """The page, from trying every law here and now."""
    alone = [name for name, card in registry.cards("attacks").items() if card["role"] != "wrapper"]
    attacks = {}
    for name in [*alone, *WRAPPED]:
        attacks[name] = seconds("attack", name)
        print(f"{name}: {sum(attacks[name].values()):.1f} s", file=sys.stderr, flush=True)
    worst = max(attacks, key=lambda name: sum(attacks[name].values()))
    parts = [
        "# How long the laws take",
        "Seconds of one processor core, one thread, of `mibench check-plugin NAME` without the seconds in which Python "
        "and torch start; made by `python docs/generate/seconds.py` on one shared core of a server. The slowest "
        f"shipped attack is {worst} with {sum(attacks[worst].values()):.0f} s.",
        "## Attacks",
        "| law | mean | longest | of |\n|:---|---:|---:|:---|\n"
        + "\n".join(
            f"| {law.name} | {sum(one[law.name] for one in attacks.values()) / len(attacks):.2f} "
            f"| {max(one[law.name] for one in attacks.values()):.2f} "
            f"| {max(attacks, key=lambda name: attacks[name][law.name])} |"
            for law in testing.book("attack")
        ),
        "| attack | all laws |\n|:---|---:|\n"
        + "\n".join(f"| {name} | {sum(taken.values()):.1f} |" for name, taken in attacks.items()),
        "## What `mibench new` writes",
    ]
    for kind, kinds in testing.KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            name = f"timed_{kind}"
            new(kind, name, Path(folder))
            point = EntryPoint(name, name, f"mibench.{kinds}")
            sys.path.insert(0, f"{folder}/{name}")
            with patch.object(registry, "entry_points", lambda group, point=point: [point] * (group == point.group)):
                registry._modules.cache_clear()
                taken = seconds(kind, name)
            sys.path.pop(0)
            registry._modules.cache_clear()
        rows = "\n".join(f"| {law} | {value:.2f} |" for law, value in taken.items())
        parts.append(f"| {kind}: law | seconds |\n|:---|---:|\n{rows}\n| all | {sum(taken.values()):.1f} |")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
