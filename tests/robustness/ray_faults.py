"""The fault campaign of `--on ray`, by hand: a real suite of small runs on a real cluster of several nodes in
processes, whose workers, nodes and driver are killed, frozen and interrupted at random. All bytes must be those of an
undisturbed run in-process with as many threads. Minutes long, so no test of CI.

PYTHONPATH=. python tests/robustness/ray_faults.py FOLDER [MINUTES] [SEED]
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from mibench.runs.claims import cards

SUITE = Path(__file__).with_name("small.toml")
FAULTS = ["worker"] * 4 + ["node"] * 3 + ["driver"] * 2 + ["interrupt"] * 2 + ["freeze"]
"""What happens, as often as it stands here: SIGKILL of a process that works on a run; of a node with all that is on it;
of the driver; Ctrl-C to the driver's whole process group; SIGSTOP of a process that works on a run, for good."""

QUIET = (2.0, 12.0)
"""Seconds between two faults: some time for the work to get anywhere."""


def command(root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "mibench", "run", str(SUITE), "--results", str(root), *more]


def bytes_of(root: Path) -> dict[str, Any]:
    """The digest of every file of every finished run; of run.json all but who made it and when."""
    held: dict[str, Any] = {}
    for path in sorted(root.glob("*/[!.]*/*")):
        name = str(path.relative_to(root))
        if path.name == "run.json":
            held[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "provenance"}
        elif path.name != "done":
            held[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return held


def working(root: Path) -> dict[int, str]:
    """Living processes that work on a run, and on which."""
    known = {int(card["process"]): card["run"] for card in cards(root).values() if card.get("run")}
    return {process: run for process, run in known.items() if Path(f"/proc/{process}").exists()}


class Campaign:
    """A cluster of a head without cores and two nodes of one core, and what is done to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.draw = folder, random.Random(seed)
        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.frozen: list[int] = []
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()

    def add(self) -> None:
        """A node; on a machine that is busy with other things, Ray may give up on one."""
        for _ in range(5):
            with suppress(Exception):
                self.nodes.append(self.cluster.add_node(num_cpus=1))
                return
        raise SystemExit("no node starts here")

    def start(self, root: Path) -> "subprocess.Popen[str]":
        words = command(root, "--on", f"ray:{self.cluster.address}?cpus=1")
        with (self.folder / "driver.log").open("a") as log:
            # Of a session of its own: Ctrl-C is sent to all of it, and to nothing else.
            return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log, text=True, start_new_session=True)

    def fault(self, root: Path, driver: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
        """One fault while something is worked on; the driver after it."""
        busy = sorted(set(working(root)) - set(self.frozen))
        if not busy:
            return driver
        what, victim = self.draw.choice(FAULTS), self.draw.choice(busy)
        self.faults[what] += 1
        told = working(root).get(victim, "") if what in ("worker", "freeze") else ""
        print(f"{time.strftime('%H:%M:%S')} {what} {told}", flush=True)
        if what == "worker":
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        elif what == "freeze":
            self.frozen.append(victim)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGSTOP)
        elif what == "node":
            self.cluster.remove_node(self.nodes.pop(self.draw.randrange(len(self.nodes))), allow_graceful=False)
            self.add()
        else:
            os.killpg(driver.pid, signal.SIGKILL if what == "driver" else signal.SIGINT)
            begun = time.monotonic()
            code = driver.wait(60)
            self.ends[f"{what}: exit {code}"] += 1
            print(f"  driver ended with {code} after {time.monotonic() - begun:.1f} s", flush=True)
            return self.start(root)
        return driver

    def round(self, root: Path, wanted: dict[str, Any], until: float) -> dict[str, Any]:
        """A whole suite, disturbed until `until`, then left to end."""
        begun, driver = time.monotonic(), self.start(root)
        soon, before = begun + self.draw.uniform(*QUIET), self.faults.total()
        while (code := driver.poll()) != 0:  # in the main thread: ray's nodes set handlers of signals
            time.sleep(0.2)
            if code is not None:  # a run that was hit four times is given up with a word; the same command goes on
                self.ends[f"by itself: exit {code}"] += 1
                if time.monotonic() > until + 600:
                    break
                driver = self.start(root)
            if soon < time.monotonic() < until:
                driver = self.fault(root, driver)
                soon = time.monotonic() + self.draw.uniform(*QUIET)
        hidden = [*root.glob("*/.*.claim*"), *root.glob("*/.attempts/*"), *root.glob("*/.*.partial")]
        self.thaw()
        return {
            "exit": code,
            "faults": self.faults.total() - before,
            "runs": len(list(root.glob("*/[!.]*/done"))),
            "same bytes": bytes_of(root) == wanted,
            "left over": [str(path.relative_to(root)) for path in hidden],
            "seconds": round(time.monotonic() - begun),
        }

    def thaw(self) -> None:
        for process in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
        self.frozen.clear()


def main(folder: Path, minutes: float = 15.0, seed: int = 0) -> int:
    """Rounds of the suite until the time is up; 0 if nothing was lost."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder.mkdir(parents=True, exist_ok=True)
    alone = folder / "alone"
    subprocess.run(command(alone), check=True, stdout=subprocess.DEVNULL)
    wanted, until = bytes_of(alone), time.monotonic() + 60 * minutes
    campaign, rounds = Campaign(folder, seed), []
    while time.monotonic() < until:
        rounds.append(campaign.round(folder / f"round{len(rounds)}", wanted, until))
        print(json.dumps(rounds[-1]), flush=True)
    campaign.cluster.shutdown()
    good = all(one["exit"] == 0 and one["same bytes"] and not one["left over"] for one in rounds)
    told = {"rounds": len(rounds), "files": len(wanted), "faults": campaign.faults, "ends": campaign.ends, "good": good}
    print(json.dumps(told, indent=1), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), *map(float, sys.argv[2:3]), *map(int, sys.argv[3:4])))
