"""SMILE's surrogate: class weights, the loss by its definition in float64, what batch reweighting does not do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks.parts.experts import Experts, LongTail, class_weights
from mibench.runtime.errors import UserError


def test_class_weights_golden_values() -> None:
    """(1 - .9) / (1 - .9^(n + 1)) at n = 0, 5, 10, 50; classes 1 ... 3 are among the best two of 5, 10, 50 answers."""
    log_p = torch.full((65, 60), -9.0)
    rows = torch.arange(65)
    log_p[rows, 4 + rows % 50] = -0.1  # somebody is always best
    for count, (first, c) in zip((5, 10, 50), ((0, 1), (5, 2), (15, 3)), strict=True):
        log_p[first : first + count, c] = -1.0
    w = class_weights(log_p, 2, 0.9)
    torch.testing.assert_close(w[:4], torch.tensor([1.0, 0.21342, 0.14569, 0.10047]), rtol=0, atol=1e-4)
    assert w.min() > 0.1 and torch.equal(class_weights(log_p, 99, 0.0), torch.ones(60))
    # All classes are among the ten best of five: n = N.
    few = torch.randn(7, 5).log_softmax(1)
    torch.testing.assert_close(class_weights(few, 10, 0.9), torch.full((5,), 0.1 / (1 - 0.9**8)))


def by_hand(logits: Tensor, log_p: Tensor, w: Tensor, lesson: LongTail) -> float:
    """The authors' loss spelled out with loops over images and classes."""

    def softmax(values: list[float]) -> list[float]:
        top = max(values)
        powers = [math.exp(value - top) for value in values]
        return [power / sum(powers) for power in powers]

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    experts, images, _ = logits.shape
    heat = lesson.temperature
    own, alike = [0.0] * images, [0.0] * experts
    for i in range(images):
        teacher = softmax([v / heat for v in log_p[i].tolist()])
        mean = softmax([v / heat for v in logits[:, i].mean(0).tolist()])
        for e in range(experts):
            row = logits[e, i].tolist()
            own[i] += kl(teacher, softmax([v / heat for v in row]))
            own[i] -= lesson.ce * math.log(softmax(row)[int(log_p[i].argmax())])
            alike[e] += kl(softmax([min(20.0, max(-20.0, v / heat)) for v in row]), mean) / images
    weights = w.tolist()
    if lesson.reweight == "batch":
        fit = sum(own) / images * sum(weights)
    else:
        fit = sum(a * b for a, b in zip(weights, own, strict=True))
    return fit + (lesson.diversity * sum(1 / value for value in alike) if lesson.diversity else 0.0)


@pytest.mark.parametrize("given", [{}, {"reweight": "batch"}, {"diversity": 0.0}, {"temperature": 2.0, "ce": 1.5}])
def test_the_loss_by_hand(given: dict[str, Any]) -> None:
    g = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(3, 5, 6, generator=g, dtype=torch.float64)
    logits[0, 0, 0] = 30.0  # beyond the clip at 20 T
    log_p = (3 * torch.randn(5, 6, generator=g, dtype=torch.float64)).log_softmax(1)
    w = torch.rand(5, generator=g, dtype=torch.float64)
    lesson = LongTail(**given)
    assert float(lesson.loss(logits, log_p, w)) == pytest.approx(by_hand(logits, log_p, w, lesson), rel=1e-12)
    shifted = lesson.loss(logits, log_p + torch.randn(5, 1, dtype=torch.float64), w)  # logits serve as scores do
    assert float(shifted) == pytest.approx(float(lesson.loss(logits, log_p, w)), rel=1e-12)


def test_batch_reweighting_favours_no_image() -> None:
    """As released, only the sum of the weights counts; per image it matters whose weight is whose."""
    g = torch.Generator().manual_seed(2)
    logits, log_p = torch.randn(3, 4, 5, generator=g), torch.randn(4, 5, generator=g).log_softmax(1)
    w = torch.tensor([1.0, 0.1, 0.1, 0.1])

    def gradient(reweight: Any, weights: Tensor) -> Tensor:
        point = logits.clone().requires_grad_()
        return torch.autograd.grad(LongTail(reweight=reweight).loss(point, log_p, weights), point)[0]

    torch.testing.assert_close(gradient("batch", w), gradient("batch", w.roll(1)))
    torch.testing.assert_close(gradient("batch", torch.full((4,), 0.3)), gradient("sample", torch.full((4,), 0.3)))
    assert not torch.allclose(gradient("sample", w), gradient("sample", w.roll(1)), atol=1e-2)


def test_experts_learn_the_scores_share_one_bn_and_keep_its_statistics() -> None:
    g = torch.Generator().manual_seed(3)
    features = torch.randn(300, 6, generator=g)
    log_p = (2 * features @ torch.randn(6, 4, generator=g)).log_softmax(1)
    experts = Experts(6, 32, 4, 3)
    state = torch.random.get_rng_state()
    kept = LongTail(epochs=60, batch=64, diversity=0.5).teach(experts, features, log_p, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    unseen = torch.randn(500, 6, generator=g)
    with torch.no_grad():
        said = experts(unseen).mean(0).argmax(1)
    # The same linear map, by least squares on what was shown.
    solved = torch.linalg.lstsq(features, log_p - log_p.mean(1, keepdim=True)).solution
    assert (said == (unseen @ solved).argmax(1)).float().mean() > 0.9
    again = LongTail(epochs=60, batch=64, diversity=0.5).teach(Experts(6, 32, 4, 3), features, log_p, 5)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    longer = LongTail(epochs=1, batch=64, diversity=0.5).teach(Experts(6, 32, 4, 3), features, log_p, 5)
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(kept[name], longer[name])
    assert not torch.equal(kept["norm.weight"], longer["norm.weight"])


def test_diversity_keeps_experts_apart() -> None:
    g = torch.Generator().manual_seed(4)
    features = torch.randn(200, 6, generator=g)
    log_p = (2 * features @ torch.randn(6, 4, generator=g)).log_softmax(1)

    def spread(diversity: float) -> float:
        experts = Experts(6, 16, 4, 3)
        LongTail(epochs=30, batch=50, diversity=diversity).teach(experts, features, log_p, 5)
        with torch.no_grad():
            return float(experts(features).softmax(2).var(dim=0).mean())

    assert spread(10.0) > 2 * spread(0.0)


def test_a_loss_that_breaks_is_told() -> None:
    features, log_p = torch.randn(20, 3), torch.full((20, 4), float("nan"))
    with pytest.raises(UserError, match="experts' loss stopped being finite"):
        LongTail(epochs=1).teach(Experts(3, 4, 4, 2), features, log_p.nan_to_num(0.0) / 0.0, 0)
