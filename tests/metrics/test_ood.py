"""Detection of strangers: against sklearn, by hand, and at its ends."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from mibench.metrics.ood import detection


def scores(n: int, k: int, sharpness: float, seed: int) -> torch.Tensor:
    return (sharpness * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))).softmax(1)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_auroc_is_sklearns(sharpness: float) -> None:
    inside, outside = scores(200, 10, sharpness, 1), scores(300, 10, 1.0, 2)
    confidence = torch.cat([inside, outside]).double().max(1).values
    truth = torch.cat([torch.ones(200), torch.zeros(300)])
    found = detection(inside, outside)
    assert found.auroc == pytest.approx(float(roc_auc_score(truth, confidence)), abs=1e-12)
    assert detection(outside, inside).auroc == pytest.approx(1 - found.auroc, abs=1e-12)


def two(*largest: float) -> torch.Tensor:
    top = torch.tensor(largest, dtype=torch.float64)
    return torch.stack([top, 1 - top], 1)


def test_by_hand_with_ties() -> None:
    """Pairs won: .9 beats both, .7 beats one and ties one, .6 loses to one, beats none: (2 + 1.5 + 0) of 6."""
    found = detection(two(0.9, 0.7, 0.6), two(0.7, 0.65))
    assert found.auroc == pytest.approx(3.5 / 6)
    assert found.fpr95 == 1.0, "all three must be accepted, and so .6 and both strangers"
    assert detection(two(0.9, 0.7, 0.6), two(0.7, 0.65), tpr=2 / 3).fpr95 == 0.5


def test_the_ends() -> None:
    assert detection(two(0.9, 0.95), two(0.6, 0.7)) == (1.0, 0.0)
    assert detection(two(0.6, 0.7), two(0.9, 0.95)) == (0.0, 1.0)
    assert detection(two(0.8, 0.8), two(0.8)) == (0.5, 1.0)


def test_fpr_uses_the_threshold_that_95_of_100_reach() -> None:
    inside = two(*[0.5 + i / 250 for i in range(1, 101)])
    outside = two(0.5 + 5.5 / 250, 0.5 + 6.5 / 250)
    assert detection(inside, outside).fpr95 == 0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no strangers"):
        detection(two(0.9), two(0.9)[:0])
    with pytest.raises(ValueError, match="no private images"):
        detection(two(0.9)[:0], two(0.9))
    with pytest.raises(ValueError, match="private images"):
        detection(two(float("nan")), two(0.9))
