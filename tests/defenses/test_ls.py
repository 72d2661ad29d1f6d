"""Label smoothing against its closed form and torch's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from defending import assert_refused, at_epoch, drawn, preset, weighted_rows
from torch.nn import functional as F

from mibench.defenses.ls import LabelSmoothing, smoothed
from mibench.defenses.nls import NegativeLabelSmoothing
from mibench.training import loss_of


@pytest.mark.parametrize("alpha", [-0.1, -0.05, 0.0, 0.2, 1.0])
def test_smoothed_targets_give_the_closed_form(alpha: float) -> None:
    """CE with (1 - a) t + a/k is (1 - a) NLL + a mean_k(-ln p_k), and its logit gradient p - t'."""
    batch, logits = replace(weighted_rows(), w=torch.ones(6)), drawn(6, 4).requires_grad_()
    log_p = F.log_softmax(logits, 1)
    wanted = (1 - alpha) * F.cross_entropy(logits, batch.t.argmax(1)) + alpha * -log_p.mean(1).mean()
    loss = loss_of(replace(batch, t=smoothed(batch.t, alpha)), logits)
    torch.testing.assert_close(loss, wanted)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient * 6, log_p.exp().detach() - ((1 - alpha) * batch.t + alpha / 4))


def test_positive_smoothing_is_torchs() -> None:
    batch, logits = replace(weighted_rows(), w=torch.ones(6)), drawn(6, 4)
    found = loss_of(LabelSmoothing(0.1).batch(batch, at_epoch()), logits)
    torch.testing.assert_close(found, F.cross_entropy(logits, batch.t.argmax(1), label_smoothing=0.1))


def test_it_commutes_with_mixing_and_leaves_all_but_the_targets() -> None:
    batch = weighted_rows(b=9, clean=6)
    for defense in (LabelSmoothing(0.3), NegativeLabelSmoothing(-0.3, begin=0.0, full=0.0)):
        out = defense.batch(batch, at_epoch())
        assert out.x is batch.x and out.w is batch.w and out.clean == 6
        torch.testing.assert_close(out.t.sum(1), torch.ones(9))  # of added rows too
        assert not torch.isclose(out.t, batch.t).all(1).any()
        mixed = replace(batch, t=0.7 * batch.t + 0.3 * batch.t.flip(0))
        torch.testing.assert_close(defense.batch(mixed, at_epoch()).t, 0.7 * out.t + 0.3 * out.t.flip(0))


@pytest.mark.parametrize("settings", [{"alpha": -0.1}, {"alpha": 1.5}, {"alpha": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("ls", settings, next(iter(settings)))


def test_the_papers_settings() -> None:
    assert preset("ls") == LabelSmoothing(0.1)
