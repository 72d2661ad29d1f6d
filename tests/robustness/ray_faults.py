"""The fault campaign of `--on ray`, by hand: workers, nodes and the driver are killed at random on a real cluster of
several nodes in processes, and the bytes must be those of an undisturbed worker. Minutes long, so no test of CI.

PYTHONPATH=.:tests python tests/robustness/ray_faults.py FOLDER [LEAVES] [SEED]
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sharing import bytes_of, graph, left_over, stage

from mibench.runs import cluster, worker
from mibench.runs.claims import cards
from mibench.runtime.progress import Silent


class Told(Silent):
    """Says on stdout, with the time, what the driver is told."""

    def say(self, line: str) -> None:
        print(f"{time.monotonic():.0f} {line}", flush=True)


def drive(root: Path, leaves: int, address: str) -> None:
    """A driver of its own process."""
    cluster.execute(graph(root, leaves), stage, "cpu", Told(), False, cluster.read(f"ray:{address}?cpus=1"))


def working(root: Path) -> list[int]:
    """Living processes that work on a run."""
    known = [int(card["process"]) for card in cards(root).values() if card.get("run")]
    return [process for process in known if Path(f"/proc/{process}").exists()]


def main(folder: Path, leaves: int, seed: int) -> int:
    """Run the campaign; 0 if nothing was lost."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    alone, shared = folder / "alone", folder / "shared"
    worker.work(graph(alone, leaves), stage, "cpu", Silent())
    os.environ["PAUSE"] = "1.0"
    draw = random.Random(seed)
    nodes: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    others = [nodes.add_node(num_cpus=1) for _ in range(2)]
    faults: list[str] = []

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, __file__, "--drive", str(shared), str(leaves), nodes.address])

    driver, begun = start(), time.monotonic()
    plan = ["worker", "driver", "node", "worker"]
    next_fault = begun + 1.0
    while (code := driver.poll()) is None:  # in the main thread: ray's nodes set handlers of signals
        time.sleep(0.1)
        busy = working(shared)
        if not plan or not busy or time.monotonic() < next_fault:
            continue
        what = plan.pop(0)
        faults.append(what)
        print(f"{time.monotonic():.0f} fault: {what}", flush=True)
        if what == "worker":
            os.kill(draw.choice(busy), signal.SIGKILL)
        elif what == "node":
            nodes.remove_node(others.pop(draw.randrange(len(others))), allow_graceful=False)
            others.append(nodes.add_node(num_cpus=1))
        else:
            driver.kill()
            driver.wait()
            driver = start()
        next_fault = time.monotonic() + 3.0 + 2.0 * draw.random()
    steps = (shared / "steps").read_text().splitlines()
    told = {
        "driver's exit code": code,
        "faults": faults,
        "runs": len(bytes_of(shared)),
        "same bytes": bytes_of(alone) == bytes_of(shared),
        "steps done twice": len(steps) - len(set(steps)),
        "left over": left_over(shared),
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(told, indent=1), flush=True)
    nodes.shutdown()
    return 0 if code == 0 and told["same bytes"] else 1


if __name__ == "__main__":
    if sys.argv[1] == "--drive":
        drive(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        sys.exit(main(Path(sys.argv[1]).absolute(), *(int(word) for word in [*sys.argv[2:], "3", "0"][:2])))
