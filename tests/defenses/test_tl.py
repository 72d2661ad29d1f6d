"""Frozen prefixes: how far they reach, and that they keep every bit."""

import copy
from typing import Any

import pytest
import torch
from defending import assert_refused, build, meta, same_state, train
from torch import nn

from mibench import models
from mibench.core import Defense
from mibench.defenses.tl import CARD as TL
from mibench.defenses.tl import FrozenPrefix
from mibench.models.base import Classifier


def layers(model: Classifier) -> list[tuple[int, bool]]:
    """Size and frozenness of each layer of the trunk, in order."""
    own = [list(module.parameters(recurse=False)) for module in model.trunk.modules()]
    assert all(len({parameter.requires_grad for parameter in part}) == 1 for part in own if part)
    return [(sum(parameter.numel() for parameter in part), not part[0].requires_grad) for part in own if part]


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir", "resnet18", "vit_b_16"])
@pytest.mark.parametrize("freeze", [0.0, 0.02, 0.3, 0.5, 0.8, 1.0])
def test_a_prefix_is_frozen_up_to_the_share_and_no_further(name: str, freeze: float) -> None:
    model = meta(name)
    FrozenPrefix(freeze).surgery(model)
    found = layers(model)
    total = sum(size for size, _ in found)
    frozen = [is_frozen for _, is_frozen in found]
    held = sum(frozen)
    assert frozen == [True] * held + [False] * (len(found) - held), "a prefix"
    assert sum(size for size, _ in found[:held]) <= freeze * total
    assert sum(size for size, _ in found[: held + 1]) > freeze * total or held == len(found)
    assert (held == 0) == (freeze == 0 or found[0][0] > freeze * total)
    assert (held == len(found)) == (freeze == 1)
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_the_paper_preset_freezes_eight_of_the_thirteen_convolutions_of_vgg() -> None:
    with torch.device("meta"):
        model = models.build("vgg16_bn64", 1000, (3, 64, 64))
        FrozenPrefix(0.2).surgery(model)
    frozen = [not layer.weight.requires_grad for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert frozen == [True] * 8 + [False] * 5
    total = sum(parameter.numel() for parameter in model.parameters())
    learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (round(learnt / 1e6, 2), round(learnt / total, 3)) == (13.86, 0.826)


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir"])
def test_every_strength_of_the_grid_freezes_something_else(name: str) -> None:
    held = [sum(frozen for _, frozen in layers(FrozenPrefix(share).surgery(meta(name)))) for share in TL["grid"]]
    assert held == sorted(set(held)) and held[0] > 0


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_frozen_layers_keep_every_bit_and_the_others_learn(bn: Any) -> None:
    defense = FrozenPrefix(0.3, bn)
    model = build("resnet", defense)
    before = copy.deepcopy(model.state_dict())
    (report,) = train(model, defense).reports
    kinds = {"frozen": 0, "statistics": 0, "learnt": 0}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        frozen = not next(iter(own.values())).requires_grad
        for name, value in own.items():
            assert torch.equal(value, before[f"{path}.{name}"]) == frozen, path
            kinds["frozen" if frozen else "learnt"] += 1
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            held = torch.equal(module.running_mean, before[f"{path}.running_mean"])
            assert held == (frozen and bn == "eval"), path
            kinds["statistics"] += frozen
    assert min(kinds.values()) > 2
    assert report == {"trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    assert report["trainable_parameters"] < sum(p.numel() for p in model.parameters())


def test_freezing_nothing_is_no_defense_from_the_same_start() -> None:
    start = build("resnet", seed=4)
    plain, held = copy.deepcopy(start), FrozenPrefix(0.0).surgery(copy.deepcopy(start))
    train(plain)
    train(held, FrozenPrefix(0.0))  # type: ignore[arg-type]
    assert same_state(plain, held)


def test_a_network_that_nobody_trained_is_no_start() -> None:
    assert FrozenPrefix.start == "public" and Defense.start == "any"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": 1.01}, "freeze must lie in"),
        ({"freeze": -0.01}, "freeze must lie in"),
        ({"freeze": float("nan")}, "freeze must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    assert_refused("tl", settings, message)
