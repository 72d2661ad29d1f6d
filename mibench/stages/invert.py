"""Run an attack against a target through the oracle and keep the reconstructions as uint8 images."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from mibench.core import (
    Access,
    Attack,
    AttackContext,
    BudgetExhausted,
    Checked,
    Cost,
    Dataset,
    Oracle,
    Prior,
    Trace,
    checked,
    shown_by,
    to_uint8,
)
from mibench.isolation import guard
from mibench.models.fold import fold
from mibench.plugins import capabilities, registry
from mibench.plugins.registry import Choice
from mibench.runs import Run, clock, provenance
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint
from mibench.runtime.engine import Engine, at_once, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.memory import bytes_each, free_memory, halved, holds, total_memory
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise, seeded_globals
from mibench.stages import artifacts

__all__ = ["ACCESS", "Shared", "batch_of", "people", "plan", "trace_of", "work", "write"]

ACCESS = {
    "none": Access.LABEL_ONLY,
    "label_only": Access.LABEL_ONLY,
    "black_box": Access.BLACK_BOX,
    "white_box": Access.WHITE_BOX,
}
"""What a CARD's `access` grants; an attack with 'none' gets the least, and never asks."""

HALVED = "checkpoint@batch.pt"
"""How many images an interrupted run searched at once after it had run out of memory; no part of an attack has an @."""

BATCH = {"cpu": 128, "cuda": 2048, "mps": 512}
"""Images of 64 px searched at once: what stays in a CPU's cache; what fills a GPU."""


def plan(
    root: Path,
    target: Run,
    prior: Run,
    attack: Choice,
    seed: int,
    precision: str,
    identities: int | None = None,
    budget: int | None = None,
    isolate: bool = False,
    shards: int = 1,
) -> Run:
    """The run that inverts a target's first `identities` classes (all by default).

    `isolate` and `shards` are no part of what decides the result: they are recorded. Of several shards each is a run of
    its own, of a part of the identities (`people`), and the inversion is put together from them (`stages.merge`).

    Raises:
        UserError: The attack asks for more than a target of somebody else's gives, or is both isolated and split.
    """
    if isolate and shards > 1:
        raise UserError("--isolate and shards exclude each other: a sealed process attacks everybody; leave one out")
    access = registry.card("attacks", attack.name)["access"]
    grants = target.spec.get("grants")
    if grants is not None and ACCESS[access] > ACCESS[grants]:
        raise UserError(
            f"{attack.name} needs {ACCESS[access].words} access; {target.label} gives {ACCESS[grants].words} only"
        )
    spec = {
        "access": access,
        "attack": attack.spec(),
        "budget": budget,
        "identities": identities,
        "precision": precision,
        "seed": seed,
    }
    parents: dict[str, Run | list[Run]] = {"prior": prior, "target": target}
    inputs: dict[str, Any] = ({"isolate": True} if isolate else {}) | ({"shards": shards} if shards > 1 else {})
    each = range(1, shards + 1) if shards > 1 else ()
    parts = [Run(root, "shards", attack.name, spec | {"shard": [number, shards]}, parents) for number in each]
    return Run(root, "inversions", attack.name, spec, parents, inputs, tuple(parts))


def people(count: int, shard: int, shards: int) -> range:
    """The identities of one shard, of 1 to `shards`; together all of 0 to `count`, each in one.

    A shard begins at a multiple of the largest power of two that is at most half its share: what an attack searches at
    once then begins, for most numbers of rows per identity, where a batch of the whole would.

    Raises:
        UserError: If there are more shards than identities, or no shard has this number.
    """
    if not 1 <= shard <= shards <= count:
        raise UserError(f"shard {shard}/{shards} of {count} identities: give 1 <= i <= n <= {count} as i/n")
    step = 1 << max(0, (count // (2 * shards)).bit_length() - 1)
    edges = [min(count, step * ((2 * place * count + shards * step) // (2 * shards * step))) for place in range(shards)]
    return range(edges[shard - 1], [*edges[1:], count][shard - 1])


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Invert, quantise, write."""
    started = clock()
    target, source = run.target, run.prior
    if source is None:
        raise UserError(f"{run.label} has no prior; its images were made by another program")
    data = artifacts.dataset(target)
    count = run.spec["identities"] or len(data.classes)
    if not 1 <= count <= len(data.classes):
        raise UserError(f"--identities {count}: the target knows {len(data.classes)} identities")
    prior: Prior = engine.place(artifacts.load_prior(source, data))  # type: ignore[assignment]
    network = engine.place(fold(artifacts.load_classifier(target, data)))
    attacked = people(count, *run.spec["shard"]) if run.kind == "shards" else range(count)
    labels = torch.arange(attacked.start, attacked.stop, device=engine.device)
    count = len(attacked)
    isolated = bool(run.inputs.get("isolate", False))
    attacking = _isolated if isolated else _here
    access, budget = ACCESS[run.spec["access"]], run.spec["budget"]
    planned = batch_of(engine, data.image_shape, prior, network if access == Access.WHITE_BOX else None, reporter.say)
    with (
        run.writing(describe(engine), reporter.say) as folder,
        attacking(run, engine, prior, data, labels, planned) as (cost, attack, isolation),
    ):
        if isolation:
            reporter.say(f"isolation: {isolation}")
        total = cost.queries * count + cost.shared_queries

        def tried(batch: int) -> tuple[Outcome, Oracle, Trace | None, int]:
            """The attack with an oracle of its own: what is kept is counted again, what was lost is not."""
            with reporter.task(f"{run.name} on {target.name}", total, "images") as task:
                trace = trace_of(cost, budget, len(data.classes), count, engine)
                oracle = Oracle(network, access, len(data.classes), budget, task.advance, attacked, trace)
                with oracle.watched(), engine.autocast():
                    return attack(oracle, folder, batch), oracle, trace, batch

        def smaller(batch: int, said: str) -> None:
            reporter.say(f"{run.label}: {engine.device} ran out of memory ({said}); {batch} images at once from now on")
            write_checkpoint(folder / HALVED, {"batch": batch})

        known = folder / HALVED
        first = int(read_checkpoint(known, torch.device("cpu"))["batch"]) if known.exists() else planned
        (outcome, generators), oracle, trace, batch = halved(tried, min(first, planned), smaller)
        if generators:
            reporter.say(
                f"{run.name} drew from the global generators of {', '.join(generators)}; they are seeded from the run, "
                "but what one identity gets now depends on the others, and an interrupted run would end otherwise"
            )
        if outcome is None or (budget is not None and cost.queries and oracle.queries.max() == 0):
            raise UserError(
                f"a budget of {budget} queries per identity is too small for one step of {run.name}; it asks for "
                f"{cost.shared_queries} shared and {cost.queries} own queries when nothing stops it"
            )
        made, missing = outcome
        if len(missing):
            names = ", ".join(data.classes[label] for label in missing.tolist())
            reporter.say(f"{run.label}: {len(missing)} of {count} identities failed, no image came back: {names}")
        for file in run.clear():
            reporter.say(f"{run.label}: ignored {file}, which the attack left in the run's folder")
        tensors = {
            "failed": made.failed,
            "gradient_images": oracle.gradient_images,
            "images": to_uint8(made.images).cpu(),
            "labels": made.labels,
            "latents": made.latents,
            "missing": missing,
            "queries": oracle.queries,
        }
        shared = Shared(oracle.shared_queries, oracle.shared_gradients, generators)
        write(run, folder, data, tensors, labels, trace, shared)
        run.finish(provenance(started, describe(engine) | {"batch": batch, "isolation": isolation or "none"}))


class Shared(NamedTuple):
    """What is no single identity's."""

    queries: int
    gradients: int
    generators: list[str]


def write(
    run: Run,
    folder: Path,
    data: Dataset,
    tensors: dict[str, Tensor],
    labels: Int64[Tensor, " c"],
    trace: Trace | None,
    shared: Shared,
) -> None:
    """The files of an inversion or of a shard of one; a shard also keeps the sums of its trace."""
    header = {"role": "reconstructions", "attack": run.name, "dataset": data.name, "classes_count": len(labels)}
    kept = {name: tensor for name, tensor in tensors.items() if name != "missing" or len(tensor)}
    if run.kind == "shards" and trace is not None:
        kept |= trace.counts()
    artifacts.write_tensors(folder / "images.safetensors", kept, header)
    if trace is not None and (moments := trace.moments()):
        artifacts.write_log(folder / "log.jsonl", [moment.line() for moment in moments])
    write_json(folder / "metrics.json", measured(tensors, labels, shared))
    tile(tensors["images"][: 8 * 8], folder / "grid.png", columns=8)


Outcome = tuple[Checked | None, list[str]]
"""What an attack returned, checked (None where the budget did not suffice), and the global generators that it used."""

Attacking = tuple[Cost, Callable[[Oracle, Path, int], Outcome], str]
"""What an attack will cost, what runs it with so many images at once, and how it is isolated (empty: not at all)."""


@contextmanager
def _here(
    run: Run, engine: Engine, prior: Prior, data: Dataset, labels: Int64[Tensor, " c"], planned: int
) -> Iterator[Attacking]:
    """The attack in this process."""
    chosen = run.spec["attack"]
    attack: Attack = registry.configure("attacks", chosen["name"], settings=chosen["settings"]).plugin
    capabilities.require(attack, prior)

    def attacked(oracle: Oracle, folder: Path, batch: int) -> Outcome:
        shown = shown_by(artifacts.defenses(run.target))
        workspace = AttackContext(batch, folder, data.public.on(engine), shown, registry.shown_under)
        outcome: Checked | None = None
        with (
            seeded_globals(run.spec["seed"], "attack") as generators,
            suppress(BudgetExhausted),
            capabilities.naming_others(),
        ):
            made = attack(oracle, prior, labels, run.spec["seed"], workspace)
            outcome = checked(made, run.name, labels, data.image_shape)
        return outcome, generators

    yield attack.cost(prior, len(data.public)), attacked, ""


@contextmanager
def _isolated(
    run: Run, engine: Engine, prior: Prior, data: Dataset, labels: Int64[Tensor, " c"], planned: int
) -> Iterator[Attacking]:
    """The attack in a sealed process of its own, which is given everything that it may know and asks for the rest.

    Its batch stays as it was planned: if memory is short in there the run ends with that error.
    """
    access = ACCESS[run.spec["access"]]
    guard.possible(access)
    pictures = [Path(one) for one in run.target.inputs["dataset"]["settings"].values() if isinstance(one, str) and one]
    with guard.guarded([run.root, *(one for one in pictures if one.exists())]) as cell:
        fields = {
            "access": access.name,
            "attacked": len(labels),
            "batch": planned,
            "budget": run.spec["budget"],
            "classes": len(data.classes),
            "seed": run.spec["seed"],
        }
        defenses = artifacts.defenses(run.target)
        cost = cell.give(run.spec["attack"], prior, data.public, defenses, engine, fields)

        def attacked(oracle: Oracle, folder: Path, batch: int) -> Outcome:
            made, generators = guard.serve(cell.wire, oracle, folder)
            if made is None:
                return None, generators
            return checked(made, run.name, labels, data.image_shape), generators

        yield cost, attacked, cell.isolation


def trace_of(cost: Cost, budget: int | None, classes: int, people: int, engine: Engine) -> Trace | None:
    """Where the target's answers are noted; None where nothing is asked for one person."""
    own = cost.queries if budget is None else min(cost.queries, budget - cost.shared_queries)
    return Trace(classes, people, own, engine.device) if own > 0 else None


def batch_of(
    engine: Engine,
    image_shape: tuple[int, int, int],
    prior: Prior,
    network: nn.Module | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Images searched at once: half of the memory is for what they keep.

    On a CPU what large priors say of themselves decides, on a GPU what an image takes there. All of the memory counts
    and not what is free now, so that the same machine gives the same pieces; unless so many do not fit into what is
    free, which is told.

    Args:
        engine: Where.
        image_shape: Of one image.
        prior: On the device.
        network: The target on the device, if it is differentiated.
        say: Told where others use so much of the device that fewer fit.
    """
    device = engine.device
    most = at_once(BATCH[device.type], image_shape, device)
    if device.type != "cuda":
        return most if not prior.footprint else max(1, min(most, total_memory(device) // 2 // prior.footprint))
    each = max(prior.footprint, bytes_each(device, partial(_pass, engine, prior, network)))
    usual = holds(total_memory(device), each, most)
    now = holds(free_memory(device), each, usual)
    if now < usual:
        say(
            f"{device} has {free_memory(device) / 1e9:.1f} of its {total_memory(device) / 1e9:.1f} GB free: {now} "
            f"images at once instead of {usual}, so that results differ by rounding from those of the whole device"
        )
    return now


def _pass(engine: Engine, prior: Prior, network: nn.Module | None, count: int) -> None:
    """What a step of a search does with so many images: drawn and, by the target, differentiated."""
    key = torch.arange(count, device=engine.device)
    with torch.set_grad_enabled(network is not None), engine.autocast():
        z = prior.sample(Noise(0, key).of("memory")).requires_grad_(network is not None)
        x = prior.decode(z, torch.zeros_like(key)) if prior.differentiable else prior.decode(z.detach())
        if network is not None:
            moved = z if x.requires_grad else x.requires_grad_()
            torch.autograd.grad(network(x).float().sum(), moved, allow_unused=True)


def measured(tensors: Mapping[str, Tensor], labels: Int64[Tensor, " c"], shared: Shared) -> dict[str, Any]:
    """What an inversion cost, per attacked identity and shared by all; and of whom no image came back, if of any."""
    attacked = labels.cpu()
    missing = tensors["missing"].tolist()
    return ({"missing": missing} if missing else {}) | {
        "global_generators": shared.generators,
        "gradient_images_per_identity": float(tensors["gradient_images"][attacked].double().mean()),
        "identities": len(attacked),
        "images": len(tensors["images"]),
        "queries_per_identity": float(tensors["queries"][attacked].double().mean()),
        "shared_gradients": shared.gradients,
        "shared_queries": shared.queries,
        "unoptimised_images": int(tensors["failed"].sum()),
    }
