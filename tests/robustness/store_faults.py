"""The fault campaign of `--results s3://...`, by hand: workers of several hosts (folders of their own) are killed at
random points of their work and of their requests, on a real S3 server in a process of its own; in the end every file of
every run must be that of the store, and the bytes those of an undisturbed worker. Minutes long, so no test of CI.

PYTHONPATH=.:tests python tests/robustness/store_faults.py FOLDER [KILLS] [LEAVES] [SEED]
"""

import importlib
import logging
import multiprocessing
import os
import random
import sys
import time
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from sharing import bytes_of, graph, stage

from mibench.runs import Run, claims, finished, worker
from mibench.runs.run import ELSEWHERE
from mibench.runs.store import Store
from mibench.runtime.progress import Silent

URL = "s3://bucket/results"
BODY = 4 << 20
"""Bytes that each run has beside its own, so that most of a push's time is the upload."""

FORK = multiprocessing.get_context("fork")
"""Everything is imported once; no child uses what its parent has opened."""


def serve(told: "Queue[str]") -> None:
    """An S3 server with a bucket, until it is killed."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    import fsspec

    fsspec.filesystem("s3").mkdir("bucket")
    told.put(os.environ["AWS_ENDPOINT_URL"])
    time.sleep(10**6)


def host(folder: Path) -> Store:
    here = Store(URL, folder)
    here.refresh()
    ELSEWHERE[here.folder] = here
    return here


def padded(run: Run, engine: Any, reporter: Any) -> None:
    """As `stage`, with a large file beside."""
    run.work.mkdir(parents=True, exist_ok=True)
    if not (run.work / "weights.bin").exists():
        (run.work / "weights.bin").write_bytes(random.Random(run.id).randbytes(BODY))
    stage(run, engine, reporter)


def work(folder: Path, leaves: int) -> None:
    """A worker of one host."""
    claims.SILENT, claims.BEAT, worker.STORE_WAIT = 4.0, 0.5, 0.5
    here = host(folder)
    worker.work(graph(here.folder, leaves), padded, "cpu", Silent())


def look(folder: Path, alone: Path, leaves: int) -> None:
    """Whether a third host gets everything; by its exit code."""
    last = host(folder)
    whole = len(finished(last.folder, "scores")) == leaves and bytes_of(last.folder) == bytes_of(alone)
    print(f"{len(last.known)} runs of {2 * leaves + 1}; bytes equal: {whole}", flush=True)
    sys.exit(not whole)


def main(folder: Path, kills: int, leaves: int, seed: int) -> int:
    """Run the campaign; 0 if nothing was lost."""
    draw = random.Random(seed)
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_EC2_METADATA_DISABLED="true")
    for name in ("s3fs", "moto.server"):
        importlib.import_module(name)
    told: Queue[str] = FORK.Queue()
    server = FORK.Process(target=serve, args=(told,))
    server.start()
    os.environ["AWS_ENDPOINT_URL"] = told.get(timeout=300)

    def start(where: Path) -> BaseProcess:
        process = FORK.Process(target=work, args=(where, leaves))
        process.start()
        return process

    try:
        alone = folder / "alone"
        worker.work(graph(alone, leaves), padded, "cpu", Silent())
        hosts = [folder / name for name in ("one", "two")]
        running = {where: start(where) for where in hosts}
        killed = pushing = 0
        begun = time.monotonic()
        while killed < kills and time.monotonic() - begun < 900:
            time.sleep(draw.uniform(0.0, 3.0))
            where = draw.choice(hosts)
            if not running[where].is_alive():
                break  # all is done
            pushing += bool(list(where.glob(".outbox/*")))
            running[where].kill()
            running[where].join()
            killed += 1
            running[where] = start(where)
        for process in running.values():
            process.join(900)
        codes = [process.exitcode for process in running.values()]
        print(f"{killed} kills, {pushing} during a push, {time.monotonic() - begun:.0f} s; exit codes {codes}")
        third = FORK.Process(target=look, args=(folder / "third", alone, leaves))
        third.start()
        third.join(900)
        return 0 if codes == [0, 0] and third.exitcode == 0 else 1
    finally:
        server.kill()


if __name__ == "__main__":
    numbers = [int(one) for one in sys.argv[2:]]
    kills, leaves, seed = [*numbers, *(20, 10, 0)[len(numbers) :]]
    sys.exit(main(Path(sys.argv[1]).absolute(), kills, leaves, seed))
