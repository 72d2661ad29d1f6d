"""What every statistic and metric refuses: numbers that are not finite."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["require_finite"]


def require_finite(metric: str, what: str, x: Float[Tensor, "*s"]) -> None:
    """Refuse NaN and infinity: a broken number must not become a score.

    Raises:
        ValueError: names the metric and counts the bad values.
    """
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(f"{metric}: {bad} of {x.numel()} {what} are NaN or infinite; all must be finite")
