"""The protocol card of a score: everything that two numbers must share before they may be compared, and what may differ
but must be known.

    split           data set, settings, fingerprint of all images and names; who was attacked
    images          resolution; how files became pixels (crop, resizing, conversions)
    evaluators      architecture and run of each, the headline first
    verifiers       architecture and run of each, the headline's first; how many people each learnt
    reference       the real images that distances are taken to
    selection       how many images a person were kept, and by whose choice
    budget          most target queries per identity; access

Selection and budget are the attack's own business: rows that differ in them share a table, which shows both. What
differs in the rest is another protocol.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench.core import Dataset

__all__ = ["CHOOSING", "Origin", "attacked", "card", "digest"]

CHOOSING = ("images", "candidates", "pick", "pool", "select", "selection_views")
"""Settings of attacks that decide which of the images they made are kept."""


@dataclass(frozen=True)
class Origin:
    """How the images came to be, as far as the protocol card tells it; the default: nothing is known.

    Args:
        attack: The attack's name; None where another program made the images.
        settings: The attack's.
        access: What it was granted: white_box, black_box, label_only or none.
        budget: Most target queries per identity; None without a limit.
        dataset: Name and settings of the target's data; what the data call themselves if absent.
        version: Of the protocol: raised when the same specification would give other numbers.
    """

    attack: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    access: str = "none"
    budget: int | None = None
    dataset: Mapping[str, Any] | None = None
    version: int = 1


def attacked(labels: Int64[Tensor, " n"]) -> list[int] | None:
    """The labels attacked; None where these are the first so many, as in every attack of mibench."""
    distinct = labels.unique().tolist()
    return None if distinct == list(range(len(distinct))) else distinct


def card(
    data: Dataset,
    labels: Int64[Tensor, " n"],
    evaluators: Sequence[Mapping[str, Any]],
    verifiers: Sequence[Mapping[str, Any]],
    origin: Origin,
) -> dict[str, Any]:
    """The card of a score, as JSON values.

    Args:
        data: What target and evaluation models were trained on.
        labels: Of the reconstructions.
        evaluators: Model, run and seed of each, the headline first.
        verifiers: Model, run, seed, number of people and who they are of each, the headline's first.
        origin: How the reconstructions were made.
    """
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    c, h, w = data.image_shape
    known = origin.attack is not None
    return {
        "budget": {"access": origin.access, "queries_per_identity": origin.budget, "known": known},
        "evaluators": [dict(one) for one in evaluators],
        "verifiers": [dict(one) for one in verifiers],
        "images": {
            "channels": c,
            "height": h,
            "width": w,
            "crop": "centre square, bicubic",
            "converted": dict(data.card.get("converted", {})),
        },
        "mibench": origin.version,
        "reference": {
            "distractor_people": data.distractor_count,
            "distractors_are_public": data.distractors_are_public,
            "heldout_images": int(torch.isin(data.heldout.labels, labels).sum()),
            "train_images": int(torch.isin(data.train.labels, labels).sum()),
        },
        "selection": {
            "by": f"{origin.attack}, before any evaluation model" if known else "another program, unknown",
            "images_per_identity": [int(counts.min()), int(counts.max())],
            "settings": {key: value for key, value in origin.settings.items() if key.rpartition(".")[2] in CHOOSING},
        },
        "split": {
            "attacked": attacked(labels),
            "classes": len(data.classes),
            "dataset": dict(origin.dataset) if origin.dataset is not None else {"name": data.name, "settings": {}},
            "fingerprint": data.fingerprint(),
            "identities": len(counts),
        },
    }


def digest(given: Mapping[str, Any]) -> str:
    """12 hex digits of a card; equal cards have equal ones."""
    text = json.dumps(dict(given), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
