"""The one supervised loop: targets and evaluation models, with the defenses' hooks."""

from mibench.training.convergence import Candidate, Converged, converge
from mibench.training.loop import Fitted, as_trained, empty_memories, fit, loss_of, predict, streams
from mibench.training.recipe import Training

__all__ = [
    "Candidate",
    "Converged",
    "Fitted",
    "Training",
    "as_trained",
    "converge",
    "empty_memories",
    "fit",
    "loss_of",
    "predict",
    "streams",
]
