"""The job script for Slurm, on Slurm's and Ray's stand-ins: who is started where, in which order, and ended with it."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "docs" / "examples" / "ray.sbatch"
STANDINS = {
    "scontrol": 'printf "n1\\nn2\\nn3\\n"',
    # Does what it is given as often as it has tasks, and ends them when it is ended, as srun does.
    "srun": """
      tasks=1; words=()
      for word in "$@"; do
        case $word in --ntasks=*) tasks=${word#*=} ;; esac
        case $word in --nodes=* | --ntasks=* | --nodelist=* | --exclude=*) ;; *) words+=("$word") ;; esac
      done
      echo "srun $*" >> "$TOLD"
      trap 'kill $(jobs -p) 2>/dev/null; exit 143' TERM
      for ((task = 0; task < tasks; task++)); do "${words[@]}" & done
      wait""",
    "hostname": "echo 10.0.0.1 10.0.0.2",
    # The control service answers at the second try; what is started stays until it is ended.
    "ray": """
      case $1 in
        status) test -f "$TOLD.asked" || { touch "$TOLD.asked"; exit 1; }; echo "ray $*" >> "$TOLD" ;;
        start) echo "ray $* in $$" >> "$TOLD"; exec sleep 60 ;;
      esac""",
    "mibench": 'sleep ${LASTS:-1}; echo "mibench $*" >> "$TOLD"; exit ${ENDS:-0}',
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of three nodes."""
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "16"}
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told"), **slurm}


def start(job: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["bash", str(SCRIPT), "suite.toml", "/shared", "?gpus=1"], env=job)


def told(job: dict[str, str]) -> list[str]:
    path = Path(job["TOLD"])
    return path.read_text().splitlines() if path.exists() else []


def left(lines: list[str]) -> list[str]:
    """Of the nodes that were started, those that live on; a killed one may take a moment."""
    for _ in range(50):
        living = [line for line in lines if " in " in line and Path(f"/proc/{line.rpartition(' ')[2]}").exists()]
        if not living:
            break
        time.sleep(0.1)
    return living


def test_a_head_then_the_others_then_the_suite_and_all_end_with_it(job: dict[str, str]) -> None:
    assert start(job | {"SLURM_GPUS_ON_NODE": "4"}).wait(30) == 0
    lines = told(job)
    begun = [line.split(" in ")[0] for line in lines if line.startswith("ray start")]
    each = "--num-cpus=16 --block --num-gpus=4"
    assert begun == [
        "ray start --head --node-ip-address=10.0.0.1 --port=24567 --include-dashboard=false "
        f"--temp-dir=/tmp/ray-1234567 {each}",
        *[f"ray start --address=10.0.0.1:24567 {each}"] * 2,
    ]
    assert lines.index("ray status --address=10.0.0.1:24567") < lines.index(
        f"srun --nodes=2 --ntasks=2 --exclude=n1 ray start --address=10.0.0.1:24567 {each}"
    )
    assert lines[-1] == "mibench run suite.toml --results /shared --on ray:10.0.0.1:24567?gpus=1"
    assert left(lines) == []


def test_the_job_ends_as_the_suite_did(job: dict[str, str]) -> None:
    assert start(job | {"ENDS": "2"}).wait(30) == 2
    assert not any("--num-gpus" in line for line in told(job))


def test_a_job_whose_time_is_up_leaves_nothing_behind(job: dict[str, str]) -> None:
    process = start(job | {"LASTS": "60"})
    until = time.monotonic() + 30
    while sum("ray start" in line and " in " in line for line in told(job)) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert left(told(job)) == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
