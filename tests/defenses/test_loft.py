"""The low-rank head and the adapted loss against closed forms."""

import math
from typing import Any

import pytest
import torch
from defending import assert_refused, at_epoch, cnn, drawn, labels, pixels, preset, trained, weighted_rows
from torch.nn import functional as F

from mibench.core import Batch, Defense
from mibench.defenses.loft import LowRank, adapted
from mibench.runtime.errors import UserError
from mibench.training import loss_of


@pytest.mark.parametrize("tanh", [False, True])
def test_the_head_is_of_low_rank_and_bounded(tanh: bool) -> None:
    """logits = up(tanh(down(BN(h)))), the authors' `NeckWrapper`: the batch norm has the features' width."""
    defense = LowRank(rank=2, tanh=tanh)
    model = cnn(defense).eval()
    h = 50 * drawn(30, 128)
    with torch.no_grad():
        model.head.norm.running_mean.copy_(drawn(128, seed=1))
        model.head.norm.running_var.copy_(drawn(128, seed=2).square() + 0.1)
        torch.testing.assert_close(
            model.head.norm(h), (h - drawn(128, seed=1)) / (drawn(128, seed=2).square() + 0.1 + 1e-5).sqrt()
        )
        logits = model.head(h)
        singular = torch.linalg.svdvals(logits - model.head.up.bias)
        hidden = model.head.down(model.head.norm(h))
        wanted = model.head.up(hidden.tanh() if tanh else hidden)
        bound = model.head.up.weight.abs().sum(1) + model.head.up.bias.abs()
    torch.testing.assert_close(logits, wanted)
    assert (singular[2:] < 1e-5 * singular[0]).all() and singular[1] > 1e-3
    assert bool((logits.abs() <= bound).all()) == tanh
    assert torch.equal(model.features(pixels()), cnn().eval().features(pixels()))


@pytest.mark.parametrize("b", [0.5, 2.0, 10.0, 20.0])
def test_the_adapted_loss_is_lowest_where_the_score_is_exp_minus_1_over_b(b: float) -> None:
    """Golden: b = 10 gives .905 and b = 20 .951; the value there is -1 / (b e)."""
    p = torch.linspace(0.01, 0.999, 2000, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], 1).float()
    t = torch.tensor([[1.0, 0.0]]).expand(2000, 2)
    loss = adapted(t, logits, b)
    best = loss.argmin()
    assert float(p[best]) == pytest.approx(math.exp(-1 / b), abs=3e-3)
    assert float(loss[best]) == pytest.approx(-1 / (b * math.e), rel=1e-3)
    assert b != 10 or math.exp(-1 / b) == pytest.approx(0.905, abs=5e-4)
    exact = torch.tensor([[math.log(math.exp(-1 / b)), math.log(1 - math.exp(-1 / b))]], requires_grad=True)
    (gradient,) = torch.autograd.grad(adapted(t[:1], exact, b).sum(), exact)
    torch.testing.assert_close(gradient, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_stage_2_replaces_the_cross_entropy_of_every_row() -> None:
    batch, logits = weighted_rows(b=9, clean=6), drawn(9, 4).requires_grad_()
    defense = LowRank(confidence_b=3.0, stage2=0.25)
    assert [defense.penalty(batch, logits, [], at_epoch(epoch, 8)) is None for epoch in range(8)] == [True] * 6 + [
        False
    ] * 2
    total = loss_of(batch, logits) + defense.penalty(batch, logits, [], at_epoch(6, 8))
    wanted = 0.25 * (batch.w * adapted(batch.t, logits, 3.0)).sum() / 6
    torch.testing.assert_close(total, wanted)
    found, expected = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (total, wanted))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert LowRank().penalty(batch, logits, [], at_epoch(7, 8)) is None
    assert LowRank(confidence_b=3.0, stage2=0.0).penalty(batch, logits, [], at_epoch(7, 8)) is None


@pytest.mark.parametrize("b", [1.5, 6.0])
def test_stage_2_sets_the_confidence_on_training_images(b: float) -> None:
    def confidence(defense: Defense) -> float:
        scores = trained(defense, epochs=16)(pixels()).softmax(1)
        return float(scores.gather(1, labels()[:, None]).mean().detach())

    assert confidence(LowRank()) > 0.95
    assert confidence(LowRank(confidence_b=b, stage2=1.0)) == pytest.approx(math.exp(-1 / b), abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [{"rank": 0}, {"confidence_b": -1.0}, {"confidence_b": float("nan")}, {"stage2": 1.5}, {"stage2": float("nan")}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("loft", settings, next(iter(settings)))


def test_the_authors_loss_in_numbers() -> None:
    """Golden, the authors' `InverseFocalLoss(8)` in float64 on these logits: -.25 p^8 (-ln p), meaned."""
    logits = torch.sin(torch.arange(20.0, dtype=torch.float64)).reshape(5, 4) * 4
    y = torch.tensor([2, 3, 0, 2, 3])
    batch = Batch(torch.zeros(5, 1, 1, 1), F.one_hot(y, 4).double().float(), torch.ones(5), 5)
    defense = LowRank(confidence_b=8.0, stage2=1.0)
    found = loss_of(batch, logits.float()) + defense.penalty(batch, logits.float(), [], at_epoch(0, 1))
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    assert float(found) == pytest.approx(-0.0069687430, rel=1e-4)
    assert float(found) == pytest.approx(float((0.25 * p**8 * p.log()).mean()), rel=1e-4)


def test_the_papers_settings() -> None:
    assert preset("loft") == LowRank(50, True, 0.0)
    assert preset("loft", "calor") == LowRank(40, True, 8.0, 0.25, 0.05)


def test_a_rank_above_the_features_is_refused() -> None:
    with pytest.raises(UserError, match="rank must be at most the 128"):
        cnn(LowRank(rank=129))
