"""What a suite comes to, as the `[takes]` of its file: python docs/generate/takes.py MACHINE SUITE ...

Hours are those of `mibench run SUITE --check` on the machine that this runs on, in fp32, where nothing is done yet.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["takes"]


def takes(suite: str, machine: str, hours: bool = True) -> dict[str, Any]:
    """The fields of `[takes]`; without hours nothing is timed."""
    from mibench.experiments import suites
    from mibench.experiments.plan import plan
    from mibench.experiments.room import bytes_of, results_bytes
    from mibench.experiments.seconds import Stopwatch, estimate
    from mibench.runs.executor import pending
    from mibench.runtime.absent import as_published
    from mibench.runtime.engine import resolve, set_threads
    from mibench.zoo import Shelf

    set_threads("cpu")
    with as_published(), TemporaryDirectory() as folder:
        experiments = suites.read(suite)
        runs = pending(list({run.id: run for one in experiments for run in plan(one, Path(folder), Shelf())}.values()))
        watch = Stopwatch(resolve("cpu", "fp32"))
        told = estimate(runs, watch) if hours else None
        plugins = [one.dataset.plugin for one in experiments if one.dataset is not None]
        data = dict.fromkeys(name for one in plugins if hasattr(one, "needed") for name, _ in one.needed())
        known = {"data": list(data)} if data else {}
        known |= {"runs": len(runs)}
        if told is not None:
            known |= {"hours": float(f"{told.seconds / 3600:.2g}"), "machine": machine}
        return known | {"disk": bytes_of(float(f"{results_bytes(runs, watch):.2g}"))}


if __name__ == "__main__":
    where, *names = sys.argv[1:]
    for name in names:
        print(f"# {name}\n[takes]")
        for key, value in takes(name, where).items():
            text = "[" + ", ".join(f'"{one}"' for one in value) + "]" if isinstance(value, list) else value
            print(f"{key} = {text}" if not isinstance(text, str) or isinstance(value, list) else f'{key} = "{text}"')
