"""A planned run with everything made small that only costs time; what decides which code runs stays.

Counts of steps, images and people become a few. Texts, switches and everything that is no count are the suite's own.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mibench.plugins import registry
from mibench.runs import Run

__all__ = ["COUNTS", "IDENTITIES", "SIDE", "small"]

IDENTITIES = 2
"""People that are attacked."""

SIDE = 32
"""Side in pixels from which networks look at images, where they take any."""

BATCH = 64
"""Images in a step of a training: of twenty people with two images each a pass is a step, and the doubled training has
two. For large networks, and for Muon, a step costs as much as its images."""

COUNTS: Mapping[str, int] = {
    **{"images": 2, "candidates": 3, "keep": 2, "pool": 10, "own_pool": 8, "init_pool": 60, "samples": 24},
    **{"steps": 2, "iterations": 2, "generations": 2, "pivot_steps": 2, "pgd_steps": 2, "sampler_steps": 2},
    **{"population": 8, "queries": 24, "points": 4, "top": 5, "episodes": 20, "rounds": 2},
    **{"selection_views": 2, "views": 2, "copies": 2},
    **{"epochs": 1, "student_epochs": 1, "embedding_epochs": 1, "map_epochs": 1, "people": 24},
    **{"batch": 8, "student_batch": 16, "map_batch": 16, "reference_batch": 8, "tune_steps": 2, "warm_up": 2},
}
"""Settings of attacks and priors that are counts, and the most that a rehearsal gives them."""


def small(run: Run, parents: Mapping[str, Run | list[Run]]) -> Run:
    """The run as it is rehearsed, under an id that no real run has.

    Args:
        run: As planned.
        parents: Its parents as they are rehearsed.
    """
    spec: dict[str, Any] = {**run.spec, "rehearsal": True}
    if str(spec.get("model", "")).startswith("timm:") and spec.get("pretrained") is True:
        spec["pretrained"] = False
    if "training" in spec:
        spec["training"] = _training(spec["training"])
    if run.kind == "inversions":
        spec["attack"] = _plugin("attacks", spec["attack"])
        spec["identities"] = IDENTITIES
    if run.kind == "priors" and spec.get("origin") != "imported":
        spec["prior"] = _plugin("priors", spec["prior"])
    return replace(run, spec=spec, parents=parents)


def _training(given: Mapping[str, Any]) -> dict[str, Any]:
    """One pass; twice as long once where the recipe doubles."""
    less = {"epochs": 1, "least_steps": 0, "doublings": min(1, given["doublings"]), "batch": min(BATCH, given["batch"])}
    return {**given, **less}


def _plugin(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """An attack or a prior with few of everything: as its card says of a toy, and at most `COUNTS`."""
    toy = registry.card(kind, given["name"]).get("toy", {}).get("short", {})
    settings = {
        name: _fewer(name.rpartition(".")[2], value, toy.get(name)) for name, value in given["settings"].items()
    }
    return {**given, "settings": settings}


def _fewer(name: str, value: Any, toy: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_fewer(name, one, None) for one in value]
    if not _number(value):
        return value
    known = [most for most in (COUNTS.get(name), toy) if _number(most)]
    return min([value, *known])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
