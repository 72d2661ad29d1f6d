"""Temperature divides the logits."""

from typing import Any

import pytest
import torch
from defending import CLASSES, assert_refused, noise

from mibench.defenses.temperature import Flattened


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    logits = torch.randn(50, CLASSES, generator=torch.Generator().manual_seed(0)) * 3
    told = Flattened(temperature)(logits.softmax(1), noise(50))
    torch.testing.assert_close(told, torch.softmax(logits / temperature, dim=1))
    assert torch.equal(Flattened(3.0)(torch.tensor([[0.0, 1.0]]), noise(1)), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("temperature", settings)
