"""Weakened skip connections, block by block, by hand."""

import copy
from typing import Any

import pytest
import torch
from defending import build, images, meta, train
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Defense
from mibench.defenses.parts.skips import weaken
from mibench.defenses.rolss import RemovedSkips
from mibench.defenses.sca import SparseCoding
from mibench.defenses.ssf import WeakSkips
from mibench.defenses.tl import FrozenPrefix
from mibench.defenses.tts import LaterRemovedSkips
from mibench.models.base import Classifier, Prepare
from mibench.models.fold import fold
from mibench.models.ir import Unit
from mibench.models.resnet import BasicBlock
from mibench.runtime.errors import UserError

SKIPS: list[Defense] = [RemovedSkips(), WeakSkips(), LaterRemovedSkips()]


def torchvision_block(bottleneck: bool, project: bool) -> nn.Module:
    from torchvision.models.resnet import BasicBlock as Basic
    from torchvision.models.resnet import Bottleneck

    kind = Bottleneck if bottleneck else Basic
    width = 8 * kind.expansion
    side = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)) if project else None
    return kind(width, 8, downsample=side)


BLOCKS = {
    "resnet, identity": lambda: BasicBlock(8, 8, 1),
    "resnet, projection": lambda: BasicBlock(8, 12, 2),
    "ir, identity": lambda: Unit(8, 8, 1),
    "ir, subsampling": lambda: Unit(8, 8, 2),
    "ir, projection": lambda: Unit(8, 12, 2),
    "torchvision basic, identity": lambda: torchvision_block(False, False),
    "torchvision basic, projection": lambda: torchvision_block(False, True),
    "torchvision bottleneck, identity": lambda: torchvision_block(True, False),
    "torchvision bottleneck, projection": lambda: torchvision_block(True, True),
}


def parts(block: Any, x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """F(x), S(x) and whether a ReLU follows the sum, from the block's own layers."""
    if isinstance(block, BasicBlock | Unit):
        return block.body(x), block.shortcut(x), isinstance(block, BasicBlock)
    out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    if hasattr(block, "conv3"):
        out = block.bn3(block.conv3(F.relu(out)))
    return out, x if block.downsample is None else block.downsample(x), True


def in_classifier(block: nn.Module) -> Classifier:
    trunk = nn.Sequential(nn.Sequential(block))
    return Classifier(Prepare((3, 8, 8), [0.5], [0.5]), trunk, nn.Linear(1, 2), 1)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("k", [0.0, 0.3, 1.0])
def test_a_block_adds_k_times_its_skip_connection(name: str, k: float) -> None:
    torch.manual_seed(0)
    plain = BLOCKS[name]().eval()
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    weak = copy.deepcopy(plain)
    weaken(in_classifier(weak), "toy", 1, k)
    first = next(layer for layer in plain.modules() if isinstance(layer, nn.Conv2d))
    x = torch.randn(2, first.in_channels, 8, 8)
    inner, skip, relu = parts(plain, x)
    expected = inner + k * skip
    torch.testing.assert_close(weak(x), F.relu(expected) if relu else expected)
    if k == 1:
        assert torch.equal(weak(x), plain(x))
    else:
        assert not torch.allclose(weak(x), plain(x))


def test_a_block_without_a_body_is_worked_out_by_hand() -> None:
    block = Unit(1, 1, 1).eval()
    nn.init.zeros_(block.body[3].weight)
    weaken(in_classifier(block), "toy", 1, 0.25)
    x = torch.tensor([[[[4.0, -8.0]]]], requires_grad=True)
    assert torch.equal(block(x), torch.tensor([[[[1.0, -2.0]]]]))
    (gradient,) = torch.autograd.grad(block(x).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.25))


@pytest.mark.parametrize("name", ["cnn", "vgg16_bn64", "densenet121", "vit_b_16", "mobilenet_v3_small"])
@pytest.mark.parametrize("defense", SKIPS)
def test_nets_without_such_skip_connections_are_refused(name: str, defense: Defense) -> None:
    with pytest.raises(UserError, match="no skip connections that can be weakened"):
        defense.surgery(meta(name))


@pytest.mark.parametrize(
    ("name", "defense"),
    [
        *[(name, defense) for name in ("resnet", "ir") for defense in (*SKIPS, FrozenPrefix(0.3), SparseCoding())],
        ("resnet18", WeakSkips()),
        ("resnet18", SparseCoding(iterations=4)),
    ],
)
def test_folding_what_was_trained_changes_nothing_but_rounding(name: str, defense: Defense) -> None:
    model = build(name, defense)
    train(model, defense, epochs=1, count=12)
    folded = fold(model.eval())
    assert sum(isinstance(part, nn.BatchNorm2d) for part in folded.modules()) < sum(
        isinstance(part, nn.BatchNorm2d) for part in model.modules()
    )
    with torch.no_grad():
        for one, other in [(folded.features(images()), model.features(images())), (folded(images()), model(images()))]:
            assert float((one - other).abs().max() / other.abs().max()) < 1e-4


def test_a_torchvision_net_is_folded_right_whatever_k() -> None:
    """Random statistics in every norm, so that a pair folded wrongly would be seen."""
    for k in (0.0, 0.37):
        model = build("resnet18")
        weaken(model, "toy", 2, k)
        torch.manual_seed(1)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean, 0.0, 0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0.0, 0.3)
        folded = fold(model.eval())
        assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
        with torch.no_grad():
            found, expected = folded.features(images()), model.features(images())
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
