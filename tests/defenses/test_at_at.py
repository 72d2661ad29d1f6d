"""Anti-adversarial training: the rows it adds."""

from typing import Any

import pytest
import torch
from defending import assert_refused, batch_of, preset, step_of
from torch import Tensor
from torch.nn import functional as F
from worlds import colours, small_net

from mibench.core import to_float
from mibench.defenses.at_at import AntiAdversarialTraining, other_classes
from mibench.runtime.rng import Noise


def test_the_added_rows_of_at_at() -> None:
    """Own rows untouched, then (x + delta, y') with y' != y; the row weights sum to 1.08 n."""
    net, split = small_net(), colours(12)
    given = batch_of(to_float(split.images), split.labels)
    defense = AntiAdversarialTraining(eps=0.01, iterations=10)
    out = defense.batch(given, step_of(net, 12))
    assert out.clean == 12 and torch.equal(out.x[:12], given.x) and torch.equal(out.t[:12], given.t)
    assert float(out.w.sum()) == pytest.approx(1.08 * 12) and torch.equal(out.w[12:], torch.full((12,), 0.08))
    y = out.t[12:].argmax(1)
    assert torch.equal(out.t[12:], F.one_hot(y, 3).float()) and (y != split.labels).all()
    assert (out.x[12:] - given.x).abs().max() <= 0.01 + 1e-6

    def p(images: Tensor) -> Tensor:
        return net.eval()(images).softmax(1).gather(1, y[:, None])[:, 0]

    assert (p(out.x[12:]) > p(given.x)).all()


def test_other_classes_are_even_and_never_the_own() -> None:
    n = 8000
    y = torch.arange(n) % 5
    drawn = other_classes(y, 5, Noise(0, torch.arange(n)))
    table = torch.stack([torch.bincount(drawn[y == k], minlength=5) for k in range(5)])
    assert (table.diagonal() == 0).all()
    others = table[~torch.eye(5, dtype=torch.bool)].double()
    assert (others - n / 20).abs().max() < 4.5 * (n / 5 * 0.25 * 0.75) ** 0.5
    assert torch.equal(other_classes(y, 2, Noise(0, torch.arange(n)))[y < 2], 1 - y[y < 2])


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": -0.1},
        {"eps": 1.1},
        {"step": 0.0},
        {"iterations": 0},
        {"lam": float("nan")},
        {"eps": float("nan")},
        {"step": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("at_at", settings)


def test_the_papers_settings() -> None:
    assert preset("at_at") == AntiAdversarialTraining(0.08, 2.5e-4, 0.2, 5)
