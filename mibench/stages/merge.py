"""Put an inversion together from its shards, each of which attacked a part of the identities, wherever that was done.

What belongs to one identity (images, latents, its queries) comes from the shard that attacked it; the sums of the trace
are added. Queries that serve everybody at once are asked again in each shard, of the same images: the inversion counts
them once, as if it had not been split, and its card (`run.json`, `merged`) says how often they were asked.
"""

from typing import Any

import torch
from torch import Tensor

from mibench.plugins import registry
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter
from mibench.stages import artifacts
from mibench.stages.invert import Shared, people, trace_of, write

__all__ = ["missing", "work"]

ROWS = ("failed", "images", "labels", "latents", "missing")
"""Tensors with rows of one identity after the other."""


def missing(run: Run) -> list[Run]:
    """The shards of an inversion that are not finished."""
    return [part for part in run.parts if not part.done]


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Merge.

    Raises:
        UserError: A shard is missing, damaged, of other people than its number says, or what it asked for everybody is
            not what the others asked; or the attack draws what one identity gets from what others got.
    """
    started = clock()
    if left := missing(run):
        numbers = ", ".join("{}/{}".format(*part.spec["shard"]) for part in left)
        raise UserError(f"{run.label} lacks the shard(s) {numbers}; run mibench invert --shard with each of them first")
    data = artifacts.dataset(run.target)
    count = run.spec["identities"] or len(data.classes)
    labels = torch.arange(count, device=engine.device)
    source = run.prior
    assert source is not None
    prior = artifacts.load_prior(source, data)
    chosen = run.spec["attack"]
    attack: Any = registry.configure("attacks", chosen["name"], settings=chosen["settings"]).plugin
    cost = attack.cost(prior, len(data.public))
    trace = trace_of(cost, run.spec["budget"], len(data.classes), count, engine)
    pieces: list[dict[str, Tensor]] = []
    shared: Shared | None = None
    for part in run.parts:
        measured = part.read("metrics.json")
        tensors, _ = artifacts.read_tensors(part.path / "images.safetensors", "reconstructions")
        pieces.append({"missing": torch.zeros(0, dtype=torch.int64), **tensors})
        own = people(count, *part.spec["shard"])
        if tensors["labels"].unique().tolist() != list(own):
            raise UserError(
                f"{part.path} holds other people than {own.start} to {own.stop - 1}; delete it, run it again"
            )
        if trace is not None:
            trace.add(tensors)
        said = Shared(measured["shared_queries"], measured["shared_gradients"], measured["global_generators"])
        if said.generators:
            raise UserError(
                f"{run.name} drew from the global generators of {', '.join(said.generators)}, so that what one "
                "identity gets depends on the others: its shards are not parts of one inversion; run it without shards"
            )
        if shared is not None and said != shared:
            raise UserError(
                f"{part.label} asked {said.queries} queries for everybody and {run.parts[0].label} {shared.queries}: "
                "they are not parts of one inversion; run it without shards"
            )
        shared = said
    assert shared is not None
    joined = {name: torch.cat([piece[name] for piece in pieces]) for name in ROWS}
    for name in ("gradient_images", "queries"):
        joined[name] = torch.stack([piece[name] for piece in pieces]).sum(dim=0)
    with run.writing(describe(engine), reporter.say) as folder:
        write(run, folder, data, joined, labels, trace, shared)
        made = [part.read("run.json")["provenance"] for part in run.parts]
        merged = {
            "cpu_seconds": round(sum(one["cpu_seconds"] for one in made), 2),
            "seconds": round(sum(one["seconds"] for one in made), 2),
            "shards": [part.id for part in run.parts],
            "shared_queries_asked": len(run.parts) * shared.queries,
        }
        run.finish(provenance(started, describe(engine) | {"isolation": "none"}), merged=merged)
