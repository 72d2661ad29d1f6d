"""mibench: how much of a classifier's private training images a model-inversion attack can reconstruct.

The Python API is loaded when it is first used, so that `import mibench` takes no time:

    target = mibench.train_target(defense="re")
    inversion = mibench.invert(target, "ppa")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mibench.api import Inversion as Inversion
    from mibench.api import LearntPrior as LearntPrior
    from mibench.api import Target as Target
    from mibench.api import audit as audit
    from mibench.api import evaluate as evaluate
    from mibench.api import invert as invert
    from mibench.api import load_results as load_results
    from mibench.api import load_target as load_target
    from mibench.api import score as score
    from mibench.api import train_evaluators as train_evaluators
    from mibench.api import train_prior as train_prior
    from mibench.api import train_target as train_target
    from mibench.api import train_verifiers as train_verifiers
    from mibench.evaluation.model import EvaluationModel as EvaluationModel
    from mibench.evaluation.score import Score as Score
    from mibench.evaluation.verifier import Verifier as Verifier
    from mibench.report import Frames as Frames
    from mibench.report.verdict import Verdict as Verdict
    from mibench.runtime.errors import UserError as UserError

__version__ = "0.1.0"

_WHERE = {
    "train_target": "mibench.api",
    "train_evaluators": "mibench.api",
    "train_verifiers": "mibench.api",
    "train_prior": "mibench.api",
    "load_target": "mibench.api",
    "invert": "mibench.api",
    "score": "mibench.api",
    "evaluate": "mibench.api",
    "audit": "mibench.api",
    "load_results": "mibench.api",
    "Target": "mibench.api",
    "EvaluationModel": "mibench.evaluation.model",
    "LearntPrior": "mibench.api",
    "Inversion": "mibench.api",
    "Score": "mibench.evaluation.score",
    "Verifier": "mibench.evaluation.verifier",
    "Frames": "mibench.report",
    "Verdict": "mibench.report.verdict",
    "UserError": "mibench.runtime.errors",
}
"""Public name -> the module that defines it, in the order in which a reader meets them."""

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'mibench' has no attribute {name!r}; it offers {', '.join(_WHERE)}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
