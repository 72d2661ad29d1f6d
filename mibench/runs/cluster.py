"""The graph of runs on Ray: each run is a task with its resources; the results folder is shared by all nodes.

The driver decides what is ready, Ray where it goes. Nothing but words travels: parents and results are files, so a task
that Ray repeats after the death of its worker or node goes on from the checkpoint. An application error comes back as
words and is not repeated. Runs are claimed as by `mibench worker` (`runs.claims`): a worker that was only cut off finds
its directory taken over and can finish nothing twice.
"""

import atexit
import heapq
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch

from mibench.runs.claims import FOLDER, Worker, cards, require_same, versions
from mibench.runs.executor import Stage, attempt, pending
from mibench.runs.relay import Event, Relay, Shown
from mibench.runs.run import KINDS, Run
from mibench.runtime.engine import cores, resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter

__all__ = ["Cluster", "execute", "read"]

RETRIES = 3
"""How often Ray repeats a task whose worker or node died."""

TOLD = 0.5
"""Seconds between two words of a task's bar."""

LOOK = 5.0
"""Seconds between two looks at the nodes."""

REFUSALS = 4
"""Looks in a row that nobody answers, after which a cluster is gone."""

TICK = 0.2
"""Seconds between two looks at what is done and how far the rest has come."""


@dataclass(frozen=True)
class Cluster:
    """Where runs go, and what each takes there.

    Args:
        address: `ray://HOST:PORT` of a head node, `HOST:PORT` of its control service where the driver is itself on a
            node, or `local` for a cluster of this machine alone.
        cpus: Cores of a run; None is what a run takes in-process, half of the driver's.
        gpus: Of a GPU; None is one for `--device cuda`, else none.
        memory: Bytes that a node must have left for a run; Ray counts them and does not limit them.
    """

    address: str = "local"
    cpus: float | None = None
    gpus: float | None = None
    memory: float | None = None


def read(text: str) -> Cluster:
    """What stands behind `--on`: `ray`, `ray://head:10001`, `ray:head:6379`, each with `?cpus=1&gpus=.5&memory=8e9`.

    Raises:
        UserError: If it is nothing of that.
    """
    where, _, query = text.partition("?")
    if where != "ray" and not where.startswith(("ray://", "ray:")):
        raise UserError(f"--on takes ray, ray://HOST:PORT or ray:HOST:PORT, got '{text}'")
    shares: dict[str, float] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        try:
            shares[name] = float(value)
        except ValueError:
            shares[name] = -1.0
        if name not in ("cpus", "gpus", "memory") or not 0 <= shares[name] < float("inf"):
            raise UserError(f"--on {text}: behind the ? stand cpus, gpus and memory of a run, none of them negative")
    address = where if where.startswith("ray://") else where.removeprefix("ray").removeprefix(":")
    return Cluster(address or "local", **shares)


def execute(runs: list[Run], stage: Stage, device: str, reporter: Reporter, force: bool, cluster: Cluster) -> None:
    """Do everything that `runs` need on a cluster.

    Raises:
        UserError: The first mistake of a stage, with what was finished before it kept; or no such cluster, one without
            room for a run, another version on a node, a results folder that a node does not see, a run given up by Ray.
    """
    todo = pending(runs, force)
    if force:
        for run in runs:
            run.discard()
    if not todo:
        return
    if not todo[0].root.is_absolute():
        raise UserError(f"a cluster needs the whole path of the results folder, got {todo[0].root}")
    if "," in device:
        raise UserError(f"--device {device}: on Ray a training has one device; start mibench run on the node instead")
    if find_spec("ray") is None:
        raise UserError("--on ray needs the package ray; install it with: pip install 'mibench[ray]'")
    with _connected(cluster) as ray, Worker(todo[0].root, f"ray-{os.getpid()}-{time.time_ns():x}") as driver:
        _Driver(ray, todo, stage, device, reporter, cluster, driver).run()


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address != "local":
        _require_answer(cluster.address)
        if _token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does; an address alone never does
    import ray
    from ray.exceptions import RayError

    try:
        # Never "auto": it would join whatever cluster somebody has started on this machine.
        local: dict[str, Any] = {"include_dashboard": False} if cluster.address == "local" else {}
        ray.init(cluster.address, namespace="mibench", logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise _absent(cluster.address, said) from None
    try:
        yield ray
    except _Vanished:
        atexit.unregister(ray.shutdown)  # it would wait for the cluster
        atexit.register(_leave)
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _absent(address: str, said: str) -> UserError:
    return UserError(f"no cluster answers at {address} ({said}); start one with: ray start --head")


def _require_answer(address: str) -> None:
    """Ray itself asks for minutes.

    Raises:
        UserError: If nobody listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (ValueError, OverflowError):
        raise UserError(f"--on takes ray://HOST:PORT or ray:HOST:PORT, got '{address}' without a port") from None
    except OSError as error:
        raise _absent(address, str(error)) from None


def _leave() -> None:
    """Ray's library crashes where it is unloaded after its cluster is gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(2)


class _Vanished(UserError):
    """Nothing can be asked of the cluster any more."""


def _token() -> bool:
    """Whether there is a token with which clusters are asked; Ray makes one at its first start on a machine."""
    told = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return told or (Path.home() / ".ray" / "auth_token").is_file()


class _Driver:
    """The ready runs, those on the cluster, and what they say."""

    def __init__(
        self, ray: Any, todo: list[Run], stage: Stage, device: str, reporter: Reporter, cluster: Cluster, driver: Worker
    ) -> None:
        self.ray = ray
        self.reporter = reporter
        self.driver = driver
        threads = max(1, cores() // 2)
        self.shares: dict[str, float] = {
            "num_cpus": float(threads) if cluster.cpus is None else cluster.cpus,
            "num_gpus": float(device.startswith("cuda")) if cluster.gpus is None else cluster.gpus,
        }
        if cluster.memory is not None:
            self.shares["memory"] = cluster.memory
        self._require_room()
        self.board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        # Ray counts deaths of workers and nodes; what a stage raises comes back as words and is never repeated.
        self.task = ray.remote(max_retries=RETRIES, retry_exceptions=False, **self.shares)(_task)
        self.given = (stage, device, threads, driver.group, driver.token, versions(), self.board)
        self.waiting = {run.label: run for run in todo}
        self.missing = {
            run.label: {parent.label for parent in run.ancestors() if parent.label in self.waiting} for run in todo
        }
        self.children: dict[str, list[str]] = {}
        for label, parents in self.missing.items():
            for parent in parents:
                self.children.setdefault(parent, []).append(label)
        self.order = {run.label: (KINDS.index(run.kind), place) for place, run in enumerate(todo)}
        self.ready = [(*self.order[label], label) for label, parents in self.missing.items() if not parents]
        heapq.heapify(self.ready)
        self.running: dict[Any, Run] = {}
        self.shown = Shown(reporter, anew=True)
        # Ray's client says by itself that it has lost the cluster.
        self.control = "" if cluster.address.startswith("ray://") else str(ray.get_runtime_context().gcs_address)
        self.unanswered = 0

    def _require_room(self) -> None:
        """What no node has would be waited for without a word."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(names[key], 0) >= value for key, value in self.shares.items()) for node in nodes):
            wanted = ", ".join(f"{names[key]} {value:g}" for key, value in self.shares.items() if value)
            offered = "; ".join(", ".join(f"{key} {node.get(key, 0):g}" for key in names.values()) for node in nodes)
            raise UserError(f"no node of the cluster has {wanted} for one run (they have: {offered}); ask for less")

    def _window(self) -> int:
        """Twice what fits at once, so that no core waits for the driver."""
        share = max(self.shares["num_cpus"], 0.1)
        return max(2, int(2 * self.ray.cluster_resources().get("CPU", 1.0) / share))

    def run(self) -> None:
        """Until all is done, or the first mistake."""
        try:
            window, looked = self._window(), time.monotonic()
            while self.ready or self.running:
                if time.monotonic() - looked > LOOK:
                    if self._answers():  # nodes come and go
                        window = self._window()
                        self._revive()
                    looked = time.monotonic()
                while self.ready and len(self.running) < window:
                    self._submit(self.waiting.pop(heapq.heappop(self.ready)[-1]))
                finished, _ = self.ray.wait(list(self.running), num_returns=1, timeout=TICK)
                self._listen()
                for reference in finished:
                    self._over(self.running.pop(reference), reference)
        except (_Vanished, ConnectionError) as error:
            raise _Vanished(
                f"the cluster is gone ({str(error).splitlines()[0]}); what is done is kept: start another and run the "
                "same command again"
            ) from None
        except BaseException:  # Ctrl-C too: what the tasks have done is in their checkpoints
            for reference in self.running:
                with suppress(Exception):
                    self.ray.cancel(reference, force=True)
            self._release()
            raise
        finally:
            self.shown.close()

    def _answers(self) -> bool:
        """Whether the cluster's control service does.

        Raises:
            _Vanished: After some refusals in a row. Ray itself would end this process after a minute of them.
        """
        if not self.control:
            return True
        host, _, port = self.control.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=LOOK).close()
        except OSError as error:
            self.unanswered += 1
            if self.unanswered == REFUSALS:
                raise _Vanished(f"{self.control}: {error}") from None
            return False
        self.unanswered = 0
        return True

    def _release(self) -> None:
        """Whoever comes next need not wait for workers that were ended to fall silent."""
        for token, card in cards(self.driver.root).items():
            if card.get("group") == self.driver.group and token != self.driver.token:
                self.driver.bury(token)
        for run in self.running.values():
            self.driver.free(run)

    def _submit(self, run: Run) -> None:
        self.running[self.task.options(name=run.label).remote(run, *self.given)] = run

    def _revive(self) -> None:
        """Give a run whose worker is silent to another: Ray waits for a frozen node without end. Should it wake, it
        finds its directory taken."""
        known = cards(self.driver.root)
        silent = {
            card.get("run")
            for token, card in known.items()
            if card.get("group") == self.driver.group
            and token != self.driver.token
            and self.driver.silent(token, known)
        }
        alive = {card.get("run") for card in known.values()} - silent
        for reference, run in list(self.running.items()):
            if run.label in silent - alive:
                self.reporter.say(f"note: {run.label}: its worker gives no sign of life; given to another")
                self.running.pop(reference)
                with suppress(Exception):  # should Ray repeat it after all, two would do the same run
                    self.ray.cancel(reference, force=True)
                for token, card in known.items():
                    if card.get("run") == run.label:
                        self.driver.bury(token)
                self._submit(run)

    def _over(self, run: Run, reference: Any) -> None:
        try:
            how, words = self.ray.get(reference)
        except ConnectionError:
            raise
        except Exception as error:
            said = (str(error) or type(error).__name__).strip().splitlines()
            raise UserError(
                f"{run.label} was lost with its worker or node {RETRIES + 1} times, most likely for want of memory "
                f"({type(error).__name__}: {said[0] if said else ''}); what is done is kept: run the same command again"
            ) from None
        if how == "failed":
            raise UserError(words)
        self.reporter.say(f"done {run.label}")
        for child in self.children.get(run.label, ()):
            self.missing[child].discard(run.label)
            if not self.missing[child]:
                heapq.heappush(self.ready, (*self.order[child], child))

    def _listen(self) -> None:
        with suppress(Exception):  # the board's node died: it begins again empty, and nothing but bars is lost
            for what, key, value in self.ray.get(self.board.drain.remote(), timeout=1.0):
                self.shown.replay(what, key, value)


class _Board:
    """An actor: what tasks have said since the driver last asked."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events


def _task(
    run: Run, stage: Stage, device: str, threads: int, group: str, driver: str, theirs: dict[str, str], board: Any
) -> tuple[str, str]:
    """One run on a node; says how it ended: an exception of two arguments would not survive the way back."""
    host = socket.gethostname()
    try:
        require_same(versions(), theirs, "the driver")
        if not (run.root / FOLDER / f"{driver}.json").is_file():
            raise UserError(
                f"{host} does not see the results folder {run.root} of the driver: put it on a file system that all "
                "nodes share, under the same path"
            )
        torch.set_num_threads(threads)  # the driver's number on every node: rounding depends on it
        reporter = Relay(lambda event: board.put.remote(event), TOLD)
        with Worker(run.root, group) as worker:
            while not run.done:
                with worker.claimed(run) as own:
                    if own is not None and not run.done:
                        try:
                            attempt(own, stage, resolve(device, run.spec["precision"]), worker.telling(reporter))
                        except Exception:
                            if not worker.lost(own):
                                raise
                            worker.group = ""  # it was taken for dead: from now on it waits for who has the run
                if not run.done:
                    time.sleep(1.0)
    except UserError as error:
        return "failed", str(error)
    except Exception as error:
        return "failed", f"{run.label} failed on {host}: {type(error).__name__}: {error}"
    return "done", ""
