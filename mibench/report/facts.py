"""What `checks.py` needs to know of a score, read from the runs it builds on."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from safetensors import safe_open

from mibench import models
from mibench.evaluation.checks import Facts, Finding, Judge, check_facts
from mibench.report.naming import card
from mibench.report.result import Result
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.stages import artifacts

__all__ = ["facts", "findings"]


@cache
def _classes(path: Path) -> tuple[str, ...] | None:
    """The class names in a checkpoint's header; None where the weights were thrown away to save space."""
    return tuple(artifacts.read_header(path).get("classes", ())) if path.is_file() else None


def _weights(run: Run) -> str | None:
    """The digest of a network's file, as its run wrote it down."""
    digest = run.read("done").get("model.safetensors")
    return None if digest is None else str(digest)


def _family(name: str) -> str:
    try:
        return models.family(name)
    except UserError:  # an architecture of a plug-in that is no longer installed
        return name


@cache
def _saved(path: Path) -> str | None:
    """Digest of the pixels on disk; None where they were thrown away."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return hashlib.sha256(file.get_tensor("images").numpy().tobytes()).hexdigest()


def facts(result: Result) -> Facts:
    """One score's."""
    target, prior = result.target, result.prior
    judges = tuple(
        Judge(
            run.spec["model"],
            _family(run.spec["model"]),
            _weights(run),
            _classes(run.path / "model.safetensors"),
            own["natural_accuracy"]["value"],
            own["dataset_fingerprint"],
        )
        for run in result.evaluators
        for own in [run.read("metrics.json")]
    )
    same = prior is None or prior.spec.get("dataset") == target.spec["dataset"]
    selects = card("attacks", result.inversion.spec["attack"]["name"]).get("selects", "target")
    score = result.score
    saved = _saved(result.inversion.path / "images.safetensors") if score.pixels else None
    return Facts(
        f"{result.inversion.name} on {target.name}-{target.id}",
        _family(target.spec["model"]),
        _weights(target),
        _classes(target.path / "model.safetensors"),
        result.fingerprint,
        judges,
        score.n,
        score.inception is not None,
        None,
        result.fingerprint if same else "another",
        selects,
        score.pixels or None,
        saved,
        score.target.answer_difference,
        score.target.passes,
    )


def findings(results: Iterable[Result]) -> list[Finding]:
    """What the checks say of all scores."""
    return check_facts(facts(result) for result in results)
