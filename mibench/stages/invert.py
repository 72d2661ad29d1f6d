"""Run an attack against a target through the oracle and keep the reconstructions as uint8 images."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.core import (
    Access,
    Attack,
    AttackContext,
    BudgetExhausted,
    Defense,
    Oracle,
    Prior,
    Reconstructions,
    to_uint8,
)
from mibench.models.fold import fold
from mibench.plugins import capabilities, registry
from mibench.plugins.registry import Choice
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, at_once, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise
from mibench.stages import artifacts

__all__ = ["ACCESS", "plan", "shown_by", "work"]

ACCESS = {
    "none": Access.LABEL_ONLY,
    "label_only": Access.LABEL_ONLY,
    "black_box": Access.BLACK_BOX,
    "white_box": Access.WHITE_BOX,
}
"""What a CARD's `access` grants; an attack with 'none' gets the least, and never asks."""

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
) -> Run:
    """The run that inverts a target's first `identities` classes (all by default).

    Raises:
        UserError: The attack asks for more than a target of somebody else's gives.
    """
    access = registry.card("attacks", attack.name)["access"]
    grants = target.spec.get("grants")
    if grants is not None and ACCESS[access] > ACCESS[grants]:
        raise UserError(
            f"{attack.name} needs {ACCESS[access].words} access; {target.label} gives {ACCESS[grants].words} only"
        )
    return Run(
        root,
        "inversions",
        attack.name,
        {
            "access": access,
            "attack": attack.spec(),
            "budget": budget,
            "identities": identities,
            "precision": precision,
            "seed": seed,
        },
        {"prior": prior, "target": target},
    )


def shown_by(defenses: Sequence[Defense]) -> Callable[[Tensor, Noise], Tensor]:
    """What defenses do to the training images, without the base augmentation between `before` and `transform`."""

    def transform(x: Tensor, noise: Noise) -> Tensor:
        for hook in ("before", "transform"):
            for place, defense in enumerate(defenses):
                x = getattr(defense, hook)(x, noise.of(place))
        return x

    return transform


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Invert, quantise, write."""
    started = clock()
    target, source = run.target, run.prior
    if source is None:
        raise UserError(f"{run.label} has no prior; its images were made by another program")
    data = artifacts.dataset(target)
    attack: Attack = registry.configure(
        "attacks", run.spec["attack"]["name"], settings=run.spec["attack"]["settings"]
    ).plugin
    count = run.spec["identities"] or len(data.classes)
    if not 1 <= count <= len(data.classes):
        raise UserError(f"--identities {count}: the target knows {len(data.classes)} identities")
    prior: Prior = engine.place(artifacts.load_prior(source, data))  # type: ignore[assignment]
    capabilities.require(attack, prior)
    network = engine.place(fold(artifacts.load_classifier(target, data)))
    labels = torch.arange(count, device=engine.device)
    cost = attack.cost(prior, len(data.public))
    total = cost.queries * count + cost.shared_queries
    with run.writing() as folder, reporter.task(f"{run.name} on {target.name}", total, "images") as task:
        oracle = Oracle(network, ACCESS[run.spec["access"]], len(data.classes), run.spec["budget"], tick=task.advance)
        batch = at_once(BATCH[engine.device.type], data.image_shape, engine.device)
        workspace = AttackContext(batch, folder, data.public.on(engine), shown_by(artifacts.defenses(target)))
        made: Reconstructions | None = None
        with suppress(BudgetExhausted), engine.autocast(), capabilities.naming_others():
            made = attack(oracle, prior, labels, run.spec["seed"], workspace)
        if made is None or (run.spec["budget"] is not None and cost.queries and oracle.queries.max() == 0):
            raise UserError(
                f"a budget of {run.spec['budget']} queries per identity is too small for one step of {run.name}; it "
                f"asks for {cost.shared_queries} shared and {cost.queries} own queries when nothing stops it"
            )
        stored = to_uint8(made.images).cpu()
        tensors = {
            "failed": made.failed,
            "gradient_images": oracle.gradient_images,
            "images": stored,
            "labels": made.labels,
            "latents": made.latents,
            "queries": oracle.queries,
        }
        header = {"role": "reconstructions", "attack": run.name, "dataset": data.name, "classes_count": count}
        artifacts.write_tensors(folder / "images.safetensors", tensors, header)
        write_json(folder / "metrics.json", measured(made, oracle, labels))
        tile(stored[: 8 * 8], folder / "grid.png", columns=8)
        run.finish(provenance(started, describe(engine)))


def measured(made: Reconstructions, oracle: Oracle, labels: Int64[Tensor, " c"]) -> dict[str, Any]:
    """What an inversion cost, per attacked identity and shared by all."""
    attacked = labels.cpu()
    return {
        "gradient_images_per_identity": float(oracle.gradient_images[attacked].double().mean()),
        "identities": len(attacked),
        "images": len(made.images),
        "queries_per_identity": float(oracle.queries[attacked].double().mean()),
        "shared_gradients": oracle.shared_gradients,
        "shared_queries": oracle.shared_queries,
        "unoptimised_images": int(made.failed.sum()),
    }
