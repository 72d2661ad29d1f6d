"""Anti-adversarial training: the rows it adds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from defending import ENGINE, assert_refused, batch_of, preset, step_of
from torch import Tensor
from torch.nn import functional as F
from worlds import colours, small_net

from mibench.core import Batch, Defense, Step, to_float
from mibench.defenses.at_at import AntiAdversarialTraining, other_classes
from mibench.plugins import registry
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.stages import train_target
from mibench.training import Training, fit


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


def test_two_passes_take_their_statistics_apart() -> None:
    """The authors call the network once on the images and once on the crafted ones: running means move twice."""
    split = colours(24)
    recipe = Training(1, 24, 1e-9, 0.0, "sgd", "constant", augment=False)
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Watch(Defense):
        def batch(self, batch: Batch, step: Step) -> Batch:
            seen[:] = batch.x.tensor_split(batch.passes)
            return batch

    net, hand = small_net(), small_net()
    fit(net, split, 3, recipe, ENGINE, 5, Silent(), "toy", [AntiAdversarialTraining(eps=0.2), Watch()])
    assert [len(part) for part in seen] == [24, 24]
    hand.train()
    for part in seen:
        hand(part)
    torch.testing.assert_close(net.norm.running_mean, hand.norm.running_mean)
    torch.testing.assert_close(net.norm.running_var, hand.norm.running_var)
    assert int(net.norm.num_batches_tracked) == 2
    joint = small_net()
    joint.train()
    joint(torch.cat(seen))
    assert not torch.allclose(net.norm.running_var, joint.norm.running_var, rtol=1e-3)


def test_patterns_that_bf16_rounds_away_are_trained_in_float32(tmp_path: Path) -> None:
    data = registry.configure("data", "digiface")

    def precision(*defenses: str) -> str:
        stack = [registry.configure("defenses", *one.split()) for one in defenses]
        return str(train_target.plan(tmp_path, data, "cnn", stack, 0, "bf16").spec["precision"])

    assert precision("at_at paper") == precision("re", "at_at paper") == "fp32"
    assert precision("at_at") == precision("re") == "bf16", "patterns of its default are wide enough"


def test_obeyed_is_the_share_that_is_taken_for_what_it_was_pushed_to() -> None:
    split, net = colours(30), small_net()
    step = step_of(net, 30, epoch=3)
    defense = AntiAdversarialTraining(eps=1.0, step=0.1, iterations=30)
    with torch.no_grad():
        net.head.weight.mul_(20)
    assert defense.finish(step, split)["obeyed"] > 0.9, "all of the image may change"
    assert defense.finish(step, split) == defense.finish(step, split)
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    noise = step.noise.rows(torch.arange(30))
    pushed = other_classes(split.labels, 3, noise.of("class"))
    assert defense.finish(step, split)["obeyed"] == pytest.approx(float((pushed == 0).float().mean()))


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
