"""Run an attack against a target through the oracle and keep the reconstructions as uint8 images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.core import Access, Attack, AttackContext, BudgetExhausted, Oracle, Reconstructions, to_uint8
from mibench.models.fold import fold
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, at_once, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise
from mibench.stages import artifacts

__all__ = ["ACCESS", "plan", "work"]

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
    """The run that inverts a target's first `identities` classes (all by default)."""
    return Run(
        root,
        "inversions",
        attack.name,
        {
            "access": registry.card("attacks", attack.name)["access"],
            "attack": attack.spec(),
            "budget": budget,
            "identities": identities,
            "precision": precision,
            "seed": seed,
        },
        {"prior": prior, "target": target},
    )


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Invert, quantise, write."""
    started = clock()
    target, source = run.parents["target"], run.parents["prior"]
    assert isinstance(target, Run) and isinstance(source, Run)
    data = artifacts.dataset(target)
    attack: Attack = registry.configure(
        "attacks", run.spec["attack"]["name"], settings=run.spec["attack"]["settings"]
    ).plugin
    count = run.spec["identities"] or len(data.classes)
    if not 1 <= count <= len(data.classes):
        raise UserError(f"--identities {count}: the target knows {len(data.classes)} identities")
    prior = engine.place(artifacts.load_prior(source, data))
    attack.needs(prior)  # type: ignore[arg-type]
    network = engine.place(fold(artifacts.load_classifier(target, data)))  # type: ignore[arg-type]
    labels = torch.arange(count, device=engine.device)
    cost = attack.cost(prior, len(data.public))  # type: ignore[arg-type]
    total = cost.queries * count + cost.shared_queries
    with run.writing() as folder, reporter.task(f"{run.name} on {target.name}", total, "images") as task:
        oracle = Oracle(network, ACCESS[run.spec["access"]], len(data.classes), run.spec["budget"], tick=task.advance)
        stack = artifacts.defenses(target)

        def transform(x: Tensor, noise: Noise) -> Tensor:
            for place, defense in enumerate(stack):
                x = defense.transform(x, noise.of(place))
            return x

        public = data.public.on(engine)
        batch = at_once(BATCH[engine.device.type], data.image_shape, engine.device)
        workspace = AttackContext(batch, folder, public, transform)
        found: Reconstructions | None
        try:
            with engine.autocast():
                found = attack(oracle, prior, labels, run.spec["seed"], workspace)  # type: ignore[arg-type]
        except BudgetExhausted:
            found = None
        if found is None or (run.spec["budget"] is not None and cost.queries and oracle.queries.max() == 0):
            raise UserError(
                f"a budget of {run.spec['budget']} queries per identity is too small for one step of {run.name}; it "
                f"asks for {cost.shared_queries} shared and {cost.queries} own queries when nothing stops it"
            )
        stored = to_uint8(found.images).cpu()
        artifacts.write_tensors(
            folder / "images.safetensors",
            {
                "failed": found.failed,
                "gradient_images": oracle.gradient_images,
                "images": stored,
                "labels": found.labels,
                "latents": found.latents,
                "queries": oracle.queries,
            },
            {"role": "reconstructions", "attack": run.name, "dataset": data.name, "classes_count": count},
        )
        asked = oracle.queries[labels.cpu()].double()
        metrics: dict[str, Any] = {
            "gradient_images_per_identity": float(oracle.gradient_images[labels.cpu()].double().mean()),
            "identities": count,
            "images": len(stored),
            "queries_per_identity": float(asked.mean()),
            "shared_gradients": oracle.shared_gradients,
            "shared_queries": oracle.shared_queries,
            "unoptimised_images": int(found.failed.sum()),
        }
        write_json(folder / "metrics.json", metrics)
        tile(stored[: 8 * 8], folder / "grid.png", columns=8)
        run.finish(provenance(started, describe(engine)))
