"""Cohen's kappa of two evaluation models' hits."""

import math

import pytest
import torch
from features import normal
from sklearn.metrics import cohen_kappa_score

from mibench.metrics.agreement import kappa


def test_kappa_is_scikit_learns() -> None:
    one, other = normal(200) > 0.3, normal(200, seed=1) + 0.5 * normal(200) > 0
    assert kappa(one, other) == pytest.approx(cohen_kappa_score(one.numpy(), other.numpy()), abs=1e-12)
    assert kappa(one, one) == 1.0 and math.isnan(kappa(torch.ones(3).bool(), torch.ones(3).bool()))


def test_no_verdicts_have_no_kappa() -> None:
    with pytest.raises(ValueError, match="kappa: 0 and 0 verdicts"):
        kappa(torch.zeros(0).bool(), torch.zeros(0).bool())
