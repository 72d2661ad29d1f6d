"""The fault campaign of `--results s3://...`, by hand: workers of several hosts (folders of their own) are killed at
random points of their work and of their requests, on a real S3 server in a process of its own; in the end every file of
every run must be that of the store, and the bytes those of an undisturbed worker. Minutes long, so no test of CI.

PYTHONPATH=.:tests python tests/robustness/store_faults.py FOLDER [KILLS] [LEAVES] [SEED]
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from sharing import bytes_of, graph, stage

from mibench.runs import claims, finished, worker
from mibench.runs.run import ELSEWHERE
from mibench.runs.store import Store
from mibench.runtime.progress import Silent

URL = "s3://bucket/results"
BODY = 8 << 20
"""Bytes that each run's model is padded with, so that most of a push's time is the upload."""


def serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    import fsspec

    fsspec.filesystem("s3").mkdir("bucket")
    print(os.environ["AWS_ENDPOINT_URL"], flush=True)
    time.sleep(10**6)


def host(folder: Path) -> Store:
    here = Store(URL, folder)
    here.refresh()
    ELSEWHERE[here.folder] = here
    return here


def padded(run, engine, reporter) -> None:
    """As `stage`, with a large file beside."""
    run.work.mkdir(parents=True, exist_ok=True)
    if not (run.work / "weights.bin").exists():
        (run.work / "weights.bin").write_bytes(random.Random(run.id).randbytes(BODY))
    stage(run, engine, reporter)


def work(folder: Path, leaves: int) -> None:
    claims.SILENT, claims.BEAT, worker.STORE_WAIT = 4.0, 0.5, 0.5
    here = host(folder)
    worker.work(graph(here.folder, leaves), padded, "cpu", Silent())


def alive(folder: Path, process: int) -> bool:
    """Whether this process has begun to work."""
    return any(card["process"] == process for card in claims.cards(folder).values())


def main(folder: Path, kills: int, leaves: int, seed: int) -> int:
    """Run the campaign; 0 if nothing was lost."""
    draw = random.Random(seed)
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_EC2_METADATA_DISABLED="true")
    me = [sys.executable, __file__]
    server = subprocess.Popen([*me, "--serve"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    os.environ["AWS_ENDPOINT_URL"] = server.stdout.readline().strip()
    try:
        alone = folder / "alone"
        worker.work(graph(alone, leaves), padded, "cpu", Silent())
        hosts = [folder / name for name in ("one", "two")]

        def start(where: Path) -> "subprocess.Popen[bytes]":
            return subprocess.Popen([*me, "--work", str(where), str(leaves)])

        running = {where: start(where) for where in hosts}
        killed = pushing = 0
        begun = time.monotonic()
        while any(process.poll() is None for process in running.values()) or killed < kills:
            where = draw.choice(hosts)
            while running[where].poll() is None and not alive(where, running[where].pid):
                time.sleep(0.05)  # it has only begun to import
            time.sleep(draw.uniform(0.0, 6.0))
            if killed < kills:
                if running[where].poll() is None:
                    pushing += bool(list(where.glob(".outbox/*")))
                    running[where].send_signal(signal.SIGKILL)
                    running[where].wait()
                    killed += 1
                running[where] = start(where)
            if time.monotonic() - begun > 900:
                print("not at an end after 15 minutes")
                return 1
        codes = [process.wait() for process in running.values()]
        last = host(folder / "last")
        whole = len(finished(last.folder, "scores")) == leaves and bytes_of(last.folder) == bytes_of(alone)
        left = sorted(key for key in last.objects if not key.startswith("runs/") and not key.startswith("workers/"))
        print(
            f"{killed} kills, {pushing} of them during a push, {len(last.known)} runs of {2 * leaves + 1}, "
            f"{time.monotonic() - begun:.0f} s, exit codes {codes}, bytes equal: {whole}; left: {left}"
        )
        return 0 if whole and codes == [0, 0] else 1
    finally:
        server.kill()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    elif sys.argv[1] == "--work":
        work(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        numbers = [int(one) for one in sys.argv[2:]]
        kills, leaves, seed = [*numbers, *(20, 10, 0)[len(numbers) :]]
        sys.exit(main(Path(sys.argv[1]).absolute(), kills, leaves, seed))
