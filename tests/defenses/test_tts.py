"""Skip connections that go during training: the clock."""

from typing import Any, ClassVar

import pytest
import torch
from defending import ENGINE, assert_refused, assert_trains_like_none, build, same_state, train
from torch import nn

from mibench.core import Batch, Defense, Step
from mibench.defenses.parts.skips import Scaled
from mibench.defenses.rolss import RemovedSkips
from mibench.defenses.tts import LaterRemovedSkips
from mibench.runtime.rng import Noise


def step_at(model: nn.Module, epoch: int, epochs: int) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Step(model, nn.Module(), optimizer, Noise(0, torch.arange(2)), epoch, epochs, ENGINE)


class Watch(Defense):
    """Notes k at every step."""

    seen: ClassVar[list[set[float]]] = []

    def batch(self, batch: Batch, step: Step) -> Batch:
        self.seen.append({float(module.k) for module in step.model.modules() if isinstance(module, Scaled)})
        return batch


@pytest.mark.parametrize(
    ("warm", "epochs", "full"), [(0.5, 4, 2), (0.05, 20, 1), (0.15, 20, 3), (0.0, 3, 0), (1.0, 3, 3)]
)
def test_skip_connections_go_when_their_share_of_the_epochs_is_over(warm: float, epochs: int, full: int) -> None:
    defense, watch = LaterRemovedSkips(warm), Watch()
    watch.seen.clear()
    model = build("resnet", defense)
    train(model, defense, watch, epochs=epochs, count=8)
    assert watch.seen == [{1.0}] * full + [{0.0}] * (epochs - full)


def test_the_clock_does_not_depend_on_earlier_calls() -> None:
    defense = LaterRemovedSkips(0.5)
    model = build("resnet", defense)
    (skip,) = (module for module in model.modules() if isinstance(module, Scaled))
    for epoch, k in [(3, 0.0), (1, 1.0), (1, 1.0), (2, 0.0), (0, 1.0)]:
        defense.epoch(step_at(model, epoch, 4))
        assert float(skip.k) == k


def test_without_a_warm_start_tts_is_rolss() -> None:
    ends = []
    for defense in (RemovedSkips(), LaterRemovedSkips(0.0)):
        model = build("resnet", defense)
        train(model, defense)
        ends.append(model)
    assert same_state(*ends)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm": -0.1}, "warm must lie in"),
        ({"warm": 1.1}, "warm must lie in"),
        ({"warm": float("nan")}, "warm must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    assert_refused("tts", settings, message)


@pytest.mark.parametrize("name", ["resnet", "ir"])
def test_going_at_the_end_is_no_defense_bit_for_bit(name: str) -> None:
    assert_trains_like_none(name, LaterRemovedSkips(1.0))
