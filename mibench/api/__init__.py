"""The Python API: train a target, learn a prior, attack, evaluate, load results.

A call plans the same runs as the command of its name, executes what is not done yet and returns an object that reads
the finished run when it is asked. Settings are grouped by what they belong to, as before the dot of `--set`:
`{"data": {"identities": 10}, "re": {"a_e": 0.8}, "training": {"epochs": 30}}`.
"""

from mibench.api.audits import audit
from mibench.api.calls import (
    Settings,
    evaluate,
    invert,
    load_results,
    load_target,
    score,
    train_evaluators,
    train_prior,
    train_target,
    train_verifiers,
)
from mibench.api.objects import Inversion, LearntPrior, Target

__all__ = [
    "Inversion",
    "LearntPrior",
    "Settings",
    "Target",
    "audit",
    "evaluate",
    "invert",
    "load_results",
    "load_target",
    "score",
    "train_evaluators",
    "train_prior",
    "train_target",
    "train_verifiers",
]
