"""What can go wrong with a cluster, each tried on a real one of this machine, by hand: an error of a stage, a node with
another version, two drivers at once, Ctrl-C, a cluster that vanishes, Ray's client. The work is that of `sharing`.

PYTHONPATH=.:tests python tests/robustness/ray_trials.py FOLDER [TRIAL ...]
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharing import bytes_of, graph, left_over, stage

import mibench
from mibench.runs import cluster, executor, worker
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent

LEAVES = 3
HOST, PORT, CLIENT = "127.0.0.1", int(os.environ.get("RAY_TRIAL_PORT", "21379")), 21001
ADDRESS = f"{HOST}:{PORT}"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SPARE = {"RAY_USAGE_STATS_ENABLED": "0", "PAUSE": "1.0"}


class Told(Silent):
    def say(self, line: str) -> None:
        print(line, flush=True)


def drive(root: Path, where: str) -> int:
    """A driver of its own process; ends as the command line does."""
    try:
        cluster.execute(graph(root, LEAVES), stage, "cpu", Told(), False, cluster.read(where))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


class Driver:
    def __init__(self, root: Path, where: str) -> None:
        words = [sys.executable, __file__, "--drive", str(root), where]
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def end(self, within: float = 300.0) -> dict[str, Any]:
        begun = time.monotonic()
        try:
            out, err = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, err = self.process.communicate()
        seconds = round(time.monotonic() - begun, 1)
        return {"exit": self.process.returncode, "done": out.count("done "), "said": err[-600:], "seconds": seconds}


@contextmanager
def nodes(cpus: int = 2, environment: dict[str, str] | None = None, client: bool = False) -> Iterator[list[Any]]:
    """A head (without cores where another node follows) and, of another environment, a second node."""
    processes = []

    def start(*words: str, **more: str) -> None:
        own = {**os.environ, **SPARE, **more}
        log = open("ray_start.log", "a")  # noqa: SIM115
        processes.append(subprocess.Popen([*RAY, "start", "--block", *words], env=own, stdout=log, stderr=log))

    try:
        own = [f"--ray-client-server-port={CLIENT}"] if client else []
        start("--head", f"--node-ip-address={HOST}", f"--port={PORT}", "--include-dashboard=false", *own,
              f"--num-cpus={0 if environment else cpus}")  # fmt: skip
        until = time.monotonic() + 300
        for port in [PORT, *([CLIENT] if client else [])]:
            while socket.socket().connect_ex((HOST, port)):
                if time.monotonic() > until:
                    raise SystemExit("the head does not answer")
                time.sleep(1)
        time.sleep(20)  # its port is open before it can be asked
        if environment:
            start(f"--address={ADDRESS}", f"--num-cpus={cpus}", **environment)
            time.sleep(90)  # to begin and to join, on a busy machine
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def begun(root: Path, steps: int = 2) -> None:
    """Wait until there is work to lose."""
    until = time.monotonic() + 180
    while time.monotonic() < until:
        if (root / "steps").exists() and len((root / "steps").read_text().splitlines()) >= steps:
            return
        time.sleep(0.2)


def twice(root: Path) -> int:
    steps = (root / "steps").read_text().splitlines()
    return len(steps) - len(set(steps))


def whole(root: Path, alone: Path) -> dict[str, Any]:
    return {"same bytes": bytes_of(root) == bytes_of(alone), "twice": twice(root), "left over": left_over(root)}


def error(root: Path, alone: Path) -> dict[str, Any]:
    """A stage's mistake is told, not repeated; mended, the same command goes on."""
    root.mkdir()
    (root / "s.fails").touch()
    with nodes():
        first = Driver(root, f"ray:{ADDRESS}?cpus=1").end()
        failures = (root / "failures").read_text().splitlines()
        (root / "s.fails").unlink()
        second = Driver(root, f"ray:{ADDRESS}?cpus=1").end()
    repeated = len(failures) - len(set(failures))
    return {"first": first, "repeated": repeated, "second": second, **whole(root, alone)}


def versions(root: Path, alone: Path) -> dict[str, Any]:
    """A node whose mibench is another one."""
    package = root.parent / "other" / "mibench"
    package.mkdir(parents=True)
    own = Path(mibench.__file__).parent
    for path in own.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    text = (own / "__init__.py").read_text()
    (package / "__init__.py").write_text(text.replace(f'"{mibench.__version__}"', '"9.9.9"'))
    path = os.pathsep.join([str(package.parent), str(Path(__file__).parent.parent)])
    with nodes(environment={"PYTHONPATH": path}):
        return {"driver": Driver(root, f"ray:{ADDRESS}?cpus=1").end()}


def drivers(root: Path, alone: Path) -> dict[str, Any]:
    """Two at once."""
    with nodes():
        both = [Driver(root, f"ray:{ADDRESS}?cpus=1") for _ in range(2)]
        ends = [one.end() for one in both]
    return {"drivers": ends, **whole(root, alone)}


def interrupt(root: Path, alone: Path) -> dict[str, Any]:
    """Ctrl-C in a terminal reaches the driver's whole process group, on a cluster of its own."""
    driver = Driver(root, "ray?cpus=1")
    begun(root)
    os.killpg(driver.process.pid, signal.SIGINT)
    end = driver.end(90)
    group = subprocess.run(["pgrep", "-g", str(driver.process.pid)], capture_output=True, text=True).stdout.split()
    return {
        "driver": end,
        "processes left": len(group),
        "again": Driver(root, "ray?cpus=1").end(),
        **whole(root, alone),
    }


def vanish(root: Path, alone: Path) -> dict[str, Any]:
    """The whole cluster is killed under the driver."""
    with nodes() as processes:
        driver = Driver(root, f"ray:{ADDRESS}?cpus=1")
        begun(root)
        for process in processes:
            subprocess.run(["pkill", "-KILL", "-P", str(process.pid)])
            process.kill()
        end = driver.end(240)
    with nodes():
        again = Driver(root, f"ray:{ADDRESS}?cpus=1").end()
    return {"driver": end, "again": again, **whole(root, alone)}


def absent(root: Path, alone: Path) -> dict[str, Any]:
    """Nobody answers there."""
    return {where: Driver(root, where).end(120) for where in (f"ray:{HOST}:21999", f"ray://{HOST}:21998")}


def client(root: Path, alone: Path) -> dict[str, Any]:
    """`ray://`: the driver is on no node."""
    with nodes(client=True):
        where = f"ray://{HOST}:{CLIENT}?cpus=1"
        driver = Driver(root, where)
        begun(root)
        os.killpg(driver.process.pid, signal.SIGINT)
        end = driver.end(90)
        return {"interrupted": end, "again": Driver(root, where).end(), **whole(root, alone)}


class Clock(Silent):
    """Times of runs that are done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def say(self, line: str) -> None:
        self.times.append(time.monotonic())

    def each(self) -> float:
        """Milliseconds from one to the next; the first quarter, in which processes start, is left out."""
        begun = len(self.times) // 4
        return round(1000 * (self.times[-1] - self.times[begun]) / (len(self.times) - 1 - begun), 1)


def overhead(root: Path, alone: Path) -> dict[str, Any]:
    """Milliseconds of a run that does next to nothing, one after the other: in this process, by a worker, on Ray."""
    os.environ.update(PAUSE="0", MIBENCH_WORKERS="1")
    leaves, told = 60, {}
    for again in range(2):
        for name in ("process", "worker", "ray"):
            runs, clock = graph(root / f"{name}{again}", leaves), Clock()
            if name == "process":
                executor.execute(runs, stage, "cpu", clock)
            elif name == "worker":
                worker.work(runs, stage, "cpu", clock)
            else:
                cluster.execute(runs, stage, "cpu", clock, False, cluster.read("ray?cpus=2"))
            told[f"{name} {again}"] = clock.each()
    return {"milliseconds a run": told, "load": os.getloadavg()[0]}


TRIALS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    one.__name__: one for one in (error, versions, drivers, interrupt, vanish, absent, client, overhead)
}


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    alone = folder / "alone"
    worker.work(graph(alone, LEAVES), stage, "cpu", Silent())
    for name in names or TRIALS:
        print(json.dumps({name: TRIALS[name](folder / name, alone)}, indent=1), flush=True)


if __name__ == "__main__":
    os.environ.update(SPARE)
    if sys.argv[1] == "--drive":
        sys.exit(drive(Path(sys.argv[2]), sys.argv[3]))
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
