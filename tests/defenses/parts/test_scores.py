"""Laws of the defenses that change what is told and nothing else: simplices, repeatability, order."""

from typing import Any

import pytest
import torch
from defending import SIDE, network, probs
from torch import nn
from worlds import colours

from mibench.core import Access, Oracle, to_float
from mibench.defenses.noise import ScoreNoise
from mibench.defenses.parts.scores import normalised
from mibench.defenses.rounding import Rounding
from mibench.defenses.ssd import StealthyShield
from mibench.defenses.temperature import Temperature
from mibench.defenses.truncate import Truncate
from mibench.models.base import Classifier
from mibench.models.served import Served

DEFENSES = [
    Truncate(2),
    Rounding(1),
    Temperature(3.0),
    ScoreNoise(0.1),
    ScoreNoise(0.1, "gaussian"),
    StealthyShield(1.0),
]


ZERO = [Truncate(0), Rounding(0), Temperature(1.0), ScoreNoise(0.0), StealthyShield(0.0)]


def served(defense: Any, model: Classifier) -> Classifier:
    torch.manual_seed(1)
    memory = defense.memory(model.head.out_features, (3, SIDE, SIDE)) or nn.Module()
    found = defense.deploy(model, memory).eval()
    assert isinstance(found, Classifier)
    return found


@pytest.mark.parametrize("defense", DEFENSES, ids=str)
def test_what_is_told_is_a_distribution_and_one_answer_for_one_image(defense: Any) -> None:
    model, x = network(), to_float(colours(30, SIDE).images)
    service = served(defense, model)
    assert isinstance(service, Served)
    told = service(x).softmax(1)
    assert (told >= 0).all()
    torch.testing.assert_close(told.sum(1), torch.ones(30))
    assert not torch.allclose(told, model(x).softmax(1), atol=1e-3)
    again = torch.cat([service(x[i : i + 1]) for i in range(30)]).softmax(1)
    torch.testing.assert_close(again, told, atol=1e-5, rtol=1e-4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(service(x[order]).softmax(1), told[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("defense", DEFENSES, ids=str)
def test_who_holds_the_weights_sees_through_it(defense: Any) -> None:
    model, x = network(), to_float(colours(6, SIDE).images)
    service, y = served(defense, model), torch.zeros(6, dtype=torch.long)
    white = Oracle(service, Access.WHITE_BOX, 3)
    torch.testing.assert_close(white.logits(x, y), model(x))
    torch.testing.assert_close(white.probs(x, y), model(x).softmax(1))
    black = Oracle(service, Access.BLACK_BOX, 3)
    torch.testing.assert_close(black.probs(x, y), service(x).softmax(1))


@pytest.mark.parametrize("defense", ZERO, ids=str)
def test_zero_is_the_model_itself(defense: Any) -> None:
    model = network()
    assert served(defense, model) is model


def test_services_stack_in_order() -> None:
    """Rounding after flattening is not flattening after rounding."""
    model, x = network(), to_float(colours(9, SIDE).images)
    p = model(x).softmax(1)
    flat_first = served(Rounding(1), served(Temperature(2.0), model))
    expected = torch.softmax(p.log() / 2, dim=1).mul(10).round()
    torch.testing.assert_close(flat_first(x).softmax(1), expected / expected.sum(1, keepdim=True))
    round_first = served(Temperature(2.0), served(Rounding(1), model))
    assert not torch.allclose(round_first(x).softmax(1), flat_first(x).softmax(1))


def test_nothing_left_goes_to_the_argmax_of_the_order() -> None:
    scores, order = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[-1.0, -0.5], [9.0, 0.0]])
    assert torch.equal(normalised(scores, order), torch.tensor([[0.0, 1.0], [0.25, 0.75]]))


@pytest.mark.parametrize("defense", [ScoreNoise(0.2), StealthyShield(1.0)], ids=str)
def test_the_key_is_the_targets_own_and_drawn_from_the_seed(defense: Any) -> None:
    x, model, answers = to_float(colours(30, SIDE).images), network(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        memory = defense.memory(3, (3, SIDE, SIDE))
        if isinstance(defense, StealthyShield):
            memory.q.copy_(probs(3, 3))
        answers.append(defense.deploy(model, memory)(x))
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert not any("key" in name for name in defense.deploy(model, memory).state_dict())
