"""What the machine must have: disk for prepared data and results, memory for the largest run; against what is free."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mibench.data.published.needs import top_of
from mibench.data.published.source import Published
from mibench.experiments.audit.costs import attacker_of, images_of
from mibench.experiments.needs import Thing
from mibench.experiments.seconds import Estimate, Stopwatch, data_of
from mibench.experiments.sizes import sizes_of
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import Run
from mibench.runtime.absent import Absent
from mibench.runtime.engine import Engine, workers
from mibench.runtime.errors import UserError
from mibench.runtime.pixels import machine_memory, memory_limit
from mibench.stages import artifacts, import_prior

__all__ = ["bytes_of", "of_machine", "prepared_bytes", "results_bytes"]

NUMBER = 4
"""Bytes of a weight."""

PROCESS = 0.6e9
"""Bytes of memory of a process that has loaded torch and nothing else, measured on Linux."""

FIXED = 100_000
"""Bytes of a run's records, pictures and tables besides what is counted."""


def bytes_of(count: float) -> str:
    """`1.2 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def prepared_bytes(datasets: Sequence[Choice]) -> float:
    """What is still to be written below the folder of all data sets."""
    count = 0.0
    for data in datasets:
        if isinstance(data.plugin, Published) and not data.plugin.here():
            count += sizes_of(data).pixels
    return count


def results_bytes(todo: Sequence[Run], watch: Stopwatch) -> float:
    """What is still to be written into the folder of all runs: weights, reconstructions, what judges say of pictures.

    The largest checkpoint is counted once for each process; it goes when its run is finished.
    """
    kept, largest = 0.0, 0.0
    for run in todo:
        kept += FIXED
        if import_prior.is_imported(run):
            kept += NUMBER * _imported(run)
            continue
        size = sizes_of(data_of(run))
        if "model" in run.spec:
            _, classes = size.learnt(run.kind)
            weights = NUMBER * watch.parameters(run.spec["model"], classes, size.shape)
            answers = NUMBER * (classes + 1024) * (size.train + size.heldout) if run.kind == "evaluators" else 0
            kept, largest = kept + weights + answers, max(largest, 3.0 * weights)
        elif run.kind == "priors":
            kept += NUMBER * watch.numbers(run, size)
        elif run.kind == "inversions" and run.prior is not None:
            attacker = attacker_of(run)
            pictures = (run.spec["identities"] or size.classes) * images_of(attacker.attack)
            kept += pictures * (math.prod(size.shape) + NUMBER * watch.latents(attacker.prior, size))
    return kept + largest * 2


def _imported(run: Run) -> int:
    """Numbers of an imported generator and its critic."""
    plugin = registry.configure("priors", import_prior.PLUGIN, settings=run.spec["prior"]["settings"]).plugin
    drawn = plugin.crop or plugin.resolution
    shape = (plugin.colours, drawn, drawn)
    with torch.device("meta"):
        built = plugin.build(shape, 1, artifacts.nothing(shape))
    return sum(one.numel() for one in built.parameters())


def of_machine(
    datasets: Sequence[Choice], todo: Sequence[Run], estimate: Estimate, watch: Stopwatch, results: Path, engine: Engine
) -> list[Thing]:
    """Disk and memory."""
    places: dict[Path, float] = {results.absolute(): results_bytes(todo, watch)}
    unprepared = prepared_bytes(datasets)
    if unprepared:
        try:
            top = top_of(str(getattr(datasets[0].plugin, "root", "")), datasets[0].name)
        except (Absent, UserError):
            top = None
        if top is None:
            told = f"{bytes_of(unprepared)} for prepared pictures; where is not known yet"
            disk = [Thing("machine", "disk for data", "unclear", told, "set MIBENCH_DATA=DIR")]
        else:
            places[top] = unprepared
            disk = []
    else:
        disk = []
    return [*disk, *_disks(places), *_memory(datasets, estimate, engine)]


def _disks(places: dict[Path, float]) -> list[Thing]:
    """What each file system must take, together."""
    together: dict[int, tuple[list[Path], float]] = {}
    for place, count in places.items():
        there = next(one for one in [place, *place.parents] if one.exists())
        number = os.stat(there).st_dev
        names, whole = together.get(number, ([], 0.0))
        together[number] = [*names, there if there == place else place], whole + count
    things = []
    for names, count in together.values():
        there = next(one for one in [names[0], *names[0].parents] if one.exists())
        free = float(shutil.disk_usage(there).free)
        told = f"{bytes_of(count)} needed, {bytes_of(free)} free"
        where = " and ".join(map(str, names))
        remedy = "make room there, or give another folder with --results or MIBENCH_DATA"
        enough = count <= free
        things.append(
            Thing("machine", f"disk, {where}", "have" if enough else "missing", told, "" if enough else remedy)
        )
    return things


def _memory(datasets: Sequence[Choice], estimate: Estimate, engine: Engine) -> list[Thing]:
    pixels = max((sizes_of(data).pixels for data in datasets), default=0)
    host = float(min(pixels, memory_limit()))
    things = []
    if engine.device.type == "cuda":
        free, whole = map(float, torch.cuda.mem_get_info(engine.device))
        known = estimate.memory > 0
        things.append(_fits(f"memory of {engine.device}", estimate.memory, free, whole, "another GPU", known))
        needed = PROCESS + host
    else:
        needed = workers(engine.device.type) * (PROCESS + host + estimate.memory)
    remedy = "fewer processes (MIBENCH_WORKERS=1), fewer pixels held (MIBENCH_MEMORY=1), or another machine"
    known = estimate.memory > 0 or not estimate.runs
    return [*things, _fits("memory", needed, _available(), float(machine_memory()), remedy, known)]


def _fits(what: str, needed: float, free: float, whole: float, remedy: str, known: bool = True) -> Thing:
    told = f"{bytes_of(needed)} needed, {bytes_of(free)} of {bytes_of(whole)} free"
    if needed > whole:
        return Thing("machine", what, "missing", told, remedy)
    if needed > free:
        return Thing("machine", what, "unclear", f"{told} now", f"end what else works on the machine; or {remedy}")
    if not known:
        return Thing("machine", what, "unclear", f"{told}; that of the largest run was not measured", "add --measure")
    return Thing("machine", what, "have", told)


def _available() -> float:
    """Bytes of memory that are free or can be freed."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(1024.0 * int(line.split()[1]), float(machine_memory()))
    except OSError:
        pass
    return float(machine_memory())
