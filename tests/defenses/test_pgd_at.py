"""Adversarial training: the images it replaces."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from defending import assert_refused, batch_noise, batch_of, preset, step_of
from worlds import colours, small_net

from mibench.core import Batch, to_float
from mibench.defenses.parts.adversary import pgd
from mibench.defenses.pgd_at import AdversarialTraining


def test_pgd_at_replaces_images_and_nothing_else() -> None:
    net, split = small_net(), colours(12)
    own = batch_of(to_float(split.images), split.labels)
    given = Batch(torch.cat([own.x, own.x[:4]]), torch.cat([own.t, own.t[:4]]), torch.ones(16), 12)
    out = AdversarialTraining(eps=0.02).batch(given, step_of(net, 12))
    assert out.clean == 12 and torch.equal(out.t, given.t) and torch.equal(out.w, given.w)
    assert torch.equal(out.x[12:], given.x[12:])
    assert torch.equal(
        out.x[:12], pgd(net, own.x, split.labels, 0.02, 0.005, 7, False, batch_noise(12).of("start"), nullcontext)
    )


@pytest.mark.parametrize(
    "settings", [{"eps": -0.1}, {"step": 2.1}, {"iterations": 0}, {"eps": float("nan")}, {"step": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("pgd_at", settings)


def test_the_papers_settings() -> None:
    assert preset("pgd_at") == AdversarialTraining(preset("pgd_at").eps, 0.25, 7)
    assert preset("pgd_at").eps == pytest.approx(8 / 255)
