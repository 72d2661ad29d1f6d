"""Removed skip connections: which blocks, and what still learns."""

from typing import Any

import pytest
import torch
from defending import assert_refused, assert_trains_like_none, build, images, meta
from torch.nn import functional as F

from mibench.defenses.parts.skips import Scaled
from mibench.defenses.rolss import RemovedSkips
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "stages", "blocks", "place"),
    [
        ("resnet", 1, 1, "trunk.stage3."),
        ("ir", 1, 1, "trunk.stage4."),
        ("ir3", 1, 3, "trunk.stage4."),
        ("facenet64", 1, 3, "trunk.stage4."),
        ("ir152", 2, 39, "trunk.stage"),
        ("resnet18", 1, 2, "trunk.layer4."),
        ("resnet50", 1, 3, "trunk.layer4."),
        ("resnet152", 2, 39, "trunk.layer"),
        ("wide_resnet50_2", 1, 3, "trunk.layer4."),
        ("resnet", 3, 3, "trunk.stage"),
        ("resnet18", 0, 0, ""),
    ],
)
def test_every_block_of_the_last_stages_is_changed(name: str, stages: int, blocks: int, place: str) -> None:
    model = RemovedSkips(stages).surgery(meta(name))
    found = [path for path, module in model.named_modules() if isinstance(module, Scaled)]
    assert len(found) == blocks and all(path.startswith(place) for path in found)
    assert isinstance(model, Classifier)


def test_removed_projections_learn_nothing_and_the_rest_does() -> None:
    model = build("resnet", RemovedSkips())
    F.cross_entropy(model(images()), torch.arange(6) % 3).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad == 0).all()) == (".skip." in path), path


@pytest.mark.parametrize(("settings", "message"), [({"stages": -1}, "stages must be >= 0")])
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    assert_refused("rolss", settings, message)


def test_more_stages_than_there_are_are_refused() -> None:
    with pytest.raises(UserError, match="stages must be <= 3 for this architecture, got 4") as caught:
        RemovedSkips(4).surgery(meta("resnet"))
    assert "\n" not in str(caught.value)


def test_no_stage_is_no_defense_bit_for_bit() -> None:
    assert_trains_like_none("resnet", RemovedSkips(0))
