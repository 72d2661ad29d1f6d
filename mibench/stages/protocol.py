"""The protocol card of a score: everything that two numbers must share before they may be compared, and what may differ
but must be known.

    split           data set, settings, fingerprint of all images and names; who was attacked
    images          resolution; how files became pixels (crop, resizing, conversions)
    evaluators      architecture and run of each, the headline first
    reference       the real images that distances are taken to
    selection       how many images a person were kept, and by whose choice
    budget          most target queries per identity; access

Selection and budget are the attack's own business: rows that differ in them share a table, which shows both. What
differs in the rest is another protocol.
"""

import hashlib
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.core import Dataset
from mibench.runs import PROTOCOL, Run, canonical

__all__ = ["CHOOSING", "attacked", "card", "digest"]

CHOOSING = ("images", "candidates", "pick", "pool", "select", "selection_views")
"""Settings of attacks that decide which of the images they made are kept."""


def attacked(labels: Int64[Tensor, " n"]) -> list[int] | None:
    """The labels attacked; None where these are the first so many, as in every attack of mibench."""
    found = labels.unique().tolist()
    return None if found == list(range(len(found))) else found


def card(
    data: Dataset, target: Run, inversion: Run, evaluators: list[Run], labels: Int64[Tensor, " n"]
) -> dict[str, Any]:
    """The card of a score, as JSON values.

    Args:
        data: What target and evaluation models were trained on.
        target: What was attacked.
        inversion: What was scored.
        evaluators: Who judged.
        labels: Of the reconstructions.
    """
    spec = inversion.spec
    settings = spec["attack"]["settings"]
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    imported = "prior" not in inversion.parents
    c, h, w = data.image_shape
    return {
        "budget": {"access": spec["access"], "queries_per_identity": spec["budget"], "known": not imported},
        "evaluators": [{"model": run.spec["model"], "run": run.id, "seed": run.spec["seed"]} for run in evaluators],
        "images": {
            "channels": c,
            "height": h,
            "width": w,
            "crop": "centre square, bicubic",
            "converted": dict(data.card.get("converted", {})),
        },
        "mibench": PROTOCOL,
        "reference": {
            "distractor_people": data.distractor_count,
            "distractors_are_public": data.distractors_are_public,
            "heldout_images": int(torch.isin(data.heldout.labels, labels).sum()),
            "train_images": int(torch.isin(data.train.labels, labels).sum()),
        },
        "selection": {
            "by": "another program, unknown" if imported else f"{spec['attack']['name']}, before any evaluation model",
            "images_per_identity": [int(counts.min()), int(counts.max())],
            "settings": {key: value for key, value in settings.items() if key.rpartition(".")[2] in CHOOSING},
        },
        "split": {
            "attacked": attacked(labels),
            "classes": len(data.classes),
            "dataset": target.spec["dataset"],
            "fingerprint": data.fingerprint(),
            "identities": len(counts),
        },
    }


def digest(found: dict[str, Any]) -> str:
    """12 hex digits of a card; equal cards have equal ones."""
    return hashlib.sha256(canonical(found).encode()).hexdigest()[:12]
