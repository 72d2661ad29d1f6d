"""Attack accuracy: ties, shifts, what k and the private classes do, parity; further laws are checks of `verify`."""

import math

import pytest
import torch
from features import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from mibench.metrics import accuracy


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_agrees_with_scikit_learn_and_torch_when_no_logits_tie(k: int) -> None:
    logits, labels = normal(300, 9), torch.arange(300) % 9
    hits = accuracy.top_k(logits, labels, k)
    assert torch.equal(hits, (logits.topk(k).indices == labels[:, None]).any(dim=1))
    if k < 9:
        expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k)
        assert float(hits.double().mean()) == pytest.approx(expected)


def test_a_tie_counts_against_the_attack() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2])
    assert accuracy.top_k(logits, labels, 1).tolist() == [False, False, False]
    assert accuracy.top_k(logits, labels, 2).tolist() == [True, False, False]
    assert accuracy.top_k(logits, labels, 3).tolist() == [True, True, True]


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_top_k_ignores_shifts_and_grows_with_k_and_shrinks_with_classes(seed: int, k: int) -> None:
    logits, labels = normal(20, 7, seed=seed).round(), torch.arange(20) % 4
    hits = accuracy.top_k(logits, labels, k)
    assert torch.equal(hits, accuracy.top_k(2 * logits + 3, labels, k))
    assert bool((hits <= accuracy.top_k(logits, labels, k + 1)).all())
    closed = accuracy.top_k(accuracy.closed_set(logits, 4), labels, min(k, 4))
    assert k > 4 or bool((hits <= closed).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_accuracy_refuses_numbers_that_are_not_finite(bad: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="accuracy: 1 of 6 logits"):
        accuracy.top_k(logits, torch.tensor([0, 1]))


@pytest.mark.parametrize("label", [-1, 3])
def test_accuracy_refuses_labels_that_are_no_class(label: int) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 2"):
        accuracy.top_k(torch.zeros(1, 3), torch.tensor([label]))


def test_accuracy_refuses_impossible_k_and_private_classes() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match="allowed: 1 to 3"):
            accuracy.top_k(torch.zeros(1, 3), torch.tensor([0]), k)
    for classes in (0, 4):
        with pytest.raises(ValueError, match="private classes"):
            accuracy.closed_set(torch.zeros(1, 3), classes)
