"""When a training has converged, and the doubling that looks for it: one rule for every network, defended or not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from mibench.core import Defense, Split
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.robustness import spread
from mibench.runtime.checkpoints import read_checkpoint
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Reporter
from mibench.stats.intervals import Interval, proportion
from mibench.training.loop import Fitted, as_trained, fit, predict
from mibench.training.recipe import Training

__all__ = ["CONVERGED", "GAIN", "Candidate", "Clause", "Converged", "converge", "fitness", "verdict"]

CONVERGED = 0.99
"""Accuracy as trained from which a network has learnt its training images."""

GAIN = 0.015
"""What a doubling of the training must add to the accuracy as trained, or the training has stopped paying."""

MEASURED = 2000
"""Training images, spread over the classes, that the accuracy as trained is measured on."""

Clause = Literal["fit", "plateau", "budget"]
"""By what a training ended: its fit, a doubling that added less than `GAIN`, or the budget (it has not converged)."""


class Candidate(NamedTuple):
    """A training from scratch."""

    epochs: int
    fit: float
    """Accuracy as trained: on its own training images, freshly augmented and changed by its defenses."""
    loss: float
    """Mean training loss of the last epoch."""


class Converged(NamedTuple):
    """What the doubling leaves: the last candidate's network, and all that were tried."""

    model: nn.Module
    fitted: Fitted
    recipe: Training
    """With the last candidate's epochs."""
    fit: Interval
    candidates: list[Candidate]
    clause: Clause

    def record(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "fit": self.fit._asdict(),
            "convergence": {
                "converged": self.clause != "budget",
                "by": self.clause,
                "candidates": [candidate._asdict() for candidate in self.candidates],
            },
        }


def verdict(candidates: Sequence[Candidate], doublings: int) -> Clause | None:
    """By which clause the last candidate is the result; None where the training must be doubled.

    Args:
        candidates: In order, each twice as long as the one before.
        doublings: How many the budget allows.
    """
    last = candidates[-1]
    if last.fit >= CONVERGED:
        return "fit"
    if len(candidates) > 1 and last.fit - candidates[-2].fit < GAIN:
        return "plateau"
    return "budget" if len(candidates) > doublings else None


def converge(
    build: Callable[[], nn.Module],
    split: Split,
    classes: int,
    recipe: Training,
    engine: Engine,
    seed: int,
    reporter: Reporter,
    label: str,
    defenses: Sequence[Defense] = (),
    mirror: bool = True,
    checkpoint: Path | None = None,
    public: Split | None = None,
) -> Converged:
    """Train from scratch for `recipe.epochs`; while `verdict` says nothing, twice as long, again from scratch.

    A learning rate that has fallen to nothing cannot go on, and one that stays high stalls far below what the fall
    reaches: hence from scratch. A run resumed from `checkpoint` ends with the same bits, whichever candidate it was in.

    Args:
        build: Makes the network anew, the same each time.

    Other arguments and errors are those of `fit`.
    """
    candidates: list[Candidate] = []
    if checkpoint is not None and checkpoint.exists():
        kept = read_checkpoint(checkpoint, torch.device("cpu"))["earlier"]
        candidates = [Candidate(**candidate) for candidate in kept]
    while True:
        chosen = replace(recipe, epochs=recipe.epochs * 2 ** len(candidates))
        earlier = [candidate._asdict() for candidate in candidates]
        model = build()
        fitted = fit(
            model,
            split,
            classes,
            chosen,
            engine,
            seed,
            reporter,
            f"{label} ({chosen.epochs} epochs)" if earlier else label,
            defenses,
            mirror,
            checkpoint,
            public,
            earlier,
        )
        known = fitness(model, split, classes, chosen, defenses, engine, seed, mirror)
        candidates.append(Candidate(chosen.epochs, known.value, fitted.log[-1]["loss"]))
        clause = verdict(candidates, recipe.doublings)
        if clause is not None:
            return Converged(model, fitted, chosen, known, candidates, clause)


def fitness(
    model: nn.Module,
    split: Split,
    classes: int,
    recipe: Training,
    defenses: Sequence[Defense],
    engine: Engine,
    seed: int,
    mirror: bool,
) -> Interval:
    """Accuracy as trained, of at most `MEASURED` images; of the network itself, whatever is served."""
    some = split.take(spread(split.labels, MEASURED))
    logits, _ = predict(model, as_trained(some, recipe, defenses, engine, seed, mirror), engine)
    labels = some.labels.to(logits.device)
    return proportion(top_k(closed_set(logits, classes), labels, 1), labels)
