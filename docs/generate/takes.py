"""What a suite comes to, as the `[takes]` of its file: python docs/generate/takes.py SUITE ..."""

import sys
from pathlib import Path
from typing import Any

__all__ = ["takes"]


def takes(suite: str) -> dict[str, Any]:
    """The fields of `[takes]`, where nothing is done yet; hours only where the suite's `[seconds]` tell them."""
    from mibench import zoo
    from mibench.cli.printing import hours_of
    from mibench.experiments import suites
    from mibench.experiments.plan import plan
    from mibench.experiments.room import bytes_of, results_bytes
    from mibench.experiments.seconds import Stopwatch
    from mibench.runs.executor import pending
    from mibench.runtime.absent import as_published
    from mibench.runtime.engine import resolve

    with as_published():
        experiments = suites.read(suite)
        runs = pending([run for one in experiments for run in plan(one, Path("no-results"), zoo.Shelf())])
        plugins = [one.dataset.plugin for one in experiments if one.dataset is not None]
        data = dict.fromkeys(name for one in plugins if hasattr(one, "needed") for name, _ in one.needed())
        own = suites.seconds(suite)
        hours = hours_of([run for run in runs if not zoo.origin(run)], own)[0] if own else 0.0
        disk = bytes_of(float(f"{results_bytes(runs, Stopwatch(resolve('cpu', 'fp32'))):.2g}"))
    known: dict[str, Any] = {"data": list(data)} if data else {}
    return known | {"runs": len(runs)} | ({"hours": float(f"{hours:.2g}")} if hours else {}) | {"disk": disk}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"# {name}\n[takes]")
        for key, value in takes(name).items():
            shown = "[" + ", ".join(f'"{one}"' for one in value) + "]" if isinstance(value, list) else value
            print(f'{key} = "{shown}"' if isinstance(value, str) else f"{key} = {shown}")
