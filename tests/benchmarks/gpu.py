"""What a GPU has still to show, in one go of less than eight minutes; prints one JSON object a line.

    python tests/benchmarks/gpu.py                                   # on a CUDA device
    python tests/benchmarks/gpu.py --device cpu --only gmi --no-bench   # the script itself, without one

1. Every gradient attack on the toy world: the same bits twice on the device, how far it ends from the CPU, how
   many people it finds, and how often more steps make the host wait (torch.cuda.set_sync_debug_mode counts it).
2. `mibench bench --precision both` on the device.
3. A profile of one PPA: the operations that take longest there.

No result of it is in the repository: mibench has not been run on CUDA. The pages say so.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from worlds import World, quick, workspace

from mibench.core import Access, Reconstructions
from mibench.plugins import registry
from mibench.testing.attacks import far, same

LIMIT_S = 420


def attacked(name: str, device: torch.device, steps: int | None = None) -> tuple[Reconstructions, float]:
    """What an attack finds in a fresh toy world on a device, and the share of rows that its target names right."""
    world = World(6)
    settings: dict[str, Any] = dict(registry.card("attacks", name)["toy"]["short"])
    if steps is not None and isinstance(settings.get("steps"), int):
        settings["steps"] = steps
    world.target.to(device)
    prior: Any = world.prior_for(name).to(device)
    labels = torch.arange(world.classes, device=device)
    found = quick(name, **settings)(world.oracle(Access.WHITE_BOX), prior, labels, 0, workspace(world))
    with torch.no_grad():
        right = world.target(found.images).argmax(dim=1) == found.labels
    return found, float(right.float().mean())


def waits(name: str, device: torch.device, steps: int) -> int:
    """How often the host waited for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            attacked(name, device, steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


def on_host(found: Reconstructions) -> Reconstructions:
    """The same on the CPU."""
    return Reconstructions(found.images.cpu(), found.labels.cpu(), found.latents.cpu())


def main() -> None:
    """Run all of it, until the time is up."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--device", default="cuda")
    asked.add_argument("--only", nargs="*", help="attacks")
    asked.add_argument("--no-bench", action="store_true")
    given = asked.parse_args()
    device, begun = torch.device(given.device), time.monotonic()
    cards = registry.cards("attacks")
    names = [name for name, card in cards.items() if card["access"] == "white_box" and card["role"] != "wrapper"]
    broken = 0
    for name in given.only or names:
        if time.monotonic() - begun > LIMIT_S / 2:
            print(json.dumps({"attack": name, "left out": "no time"}))
            continue
        try:
            first, right = attacked(name, device)
            told: dict[str, Any] = {
                "attack": name,
                "found": right,
                "same bits twice": same(on_host(first), on_host(attacked(name, device)[0])),
                "furthest from the CPU": far(on_host(first), attacked(name, torch.device("cpu"))[0]),
            }
            if device.type == "cuda":
                told["waits of 4 more steps"] = waits(name, device, 8) - waits(name, device, 4)
        except Exception as error:
            told, broken = {"attack": name, "error": f"{type(error).__name__}: {error}"}, broken + 1
        print(json.dumps(told), flush=True)
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as seen:
        attacked("ppa", device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(json.dumps({"profile": seen.key_averages().table(sort_by=by, row_limit=15).splitlines()}), flush=True)
    if not given.no_bench:
        left = max(60.0, LIMIT_S - (time.monotonic() - begun))
        words = ["bench", "--device", given.device, "--precision", "both", "--json"]
        done = subprocess.run([sys.executable, "-m", "mibench", *words], capture_output=True, text=True, timeout=left)
        print(json.dumps({"bench": json.loads(done.stdout or "[]"), "said": done.stderr[-2000:]}))
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
