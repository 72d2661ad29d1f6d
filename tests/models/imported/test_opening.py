"""One network in every form that a user may have it in: found out the same, and the same answers."""

from pathlib import Path

import pytest
import torch
import torchvision
from drawn import tree
from torch import Tensor, nn

from mibench import models
from mibench.experiments.audit import pictures
from mibench.models.imported.network import assemble
from mibench.models.imported.normalisations import IMAGENET
from mibench.models.imported.opening import open_source
from mibench.models.imported.probe import find
from mibench.models.imported.sources import ModelSource, read_source
from mibench.models.imported.ways import Given, Pictures

PEOPLE, SIZE = 4, 64
MEAN, STD = (torch.tensor(one).view(3, 1, 1) for one in IMAGENET)
GIVEN = Given(size=SIZE, normalise="imagenet", channels="rgb", output="logits")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    private, _ = tree(tmp_path_factory.mktemp("drawn"), private=PEOPLE, public=1, each=5, size=SIZE, colour=True)
    return pictures(private)


def fitted(features: nn.Module, head: nn.Linear, x: Tensor, labels: Tensor) -> None:
    """Give the head the weights that name these pictures: minus the distance to each class's mean feature."""
    with torch.no_grad():
        z = features(x).flatten(1)
        z = (z - z.mean(dim=0)) / z.std()
        means = torch.stack([z[labels == person].mean(dim=0) for person in range(PEOPLE)])
        shift, scale = features(x).flatten(1).mean(dim=0), features(x).flatten(1).std()
        head.weight.copy_(2 * means / scale)
        head.bias.copy_(-means.square().sum(dim=1) - head.weight @ shift)


@pytest.fixture(scope="module")
def resnet(shown: Pictures) -> nn.Module:
    """torchvision's resnet18 with a head of four behind a dropout, which names the people it is shown."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.resnet18(weights=None)
        net.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, PEOPLE))
    x = (shown.at(SIZE, 3).float() / 255 - MEAN) / STD
    with torch.no_grad():
        net.train()(x)  # batch norms remember these pictures
    net.eval()
    fitted(nn.Sequential(*list(net.children())[:-1]), net.fc[1], x, shown.labels)
    return net.requires_grad_(False)


def saved(form: str, net: nn.Module, folder: Path) -> ModelSource:
    x = torch.rand(2, 3, SIZE, SIZE)
    if form == "object":
        return ModelSource("object", "ResNet", digest="0" * 64, objects={"module": net})
    if form == "weights":
        torch.save(net.state_dict(), folder / "w.pt")
        return read_source("resnet18", folder / "w.pt", None)
    if form == "exported":
        batch = torch.export.Dim("batch", min=1, max=512)
        torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: batch},)), folder / "m.pt2")
        return read_source(str(folder / "m.pt2"), None, None)
    if form == "torchscript":
        torch.jit.save(torch.jit.trace(net, x), folder / "m.ts")
        return read_source(str(folder / "m.ts"), None, None)
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    torch.onnx.export(net, (x,), folder / "m.onnx", dynamo=True, verbose=False)  # takes two images at once
    return read_source(str(folder / "m.onnx"), None, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", ["weights", "object", "exported", "torchscript", "onnx"])
def test_every_form_gives_the_same_answers(form: str, resnet: nn.Module, shown: Pictures, tmp_path: Path) -> None:
    opened = open_source(saved(form, resnet, tmp_path))
    found = find(opened, shown, GIVEN)
    assert found.way.accuracy > 0.9
    pixels = shown.at(SIZE, 3).float() / 255
    with torch.no_grad():
        target = assemble(opened, found.wanted, (3, SIZE, SIZE))
        torch.testing.assert_close(target(pixels), resnet((pixels - MEAN) / STD), atol=1e-4, rtol=1e-4)
    if form in ("weights", "object"):
        assert opened.family == "resnet"
        assert target.features(pixels).shape[1] == 512, "cut before its last layer"


def test_a_network_of_timm_opens(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t", num_classes=PEOPLE).eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    opened = open_source(read_source("timm:resnet10t", tmp_path / "w.pt", None))
    x = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(opened.module(x), net(x))
    assert opened.family == "resnet"
    assert list(opened.declared.means) == ["timm's for resnet10t"]


def test_a_network_of_our_own_opens_at_any_size_it_fits(tmp_path: Path) -> None:
    net = models.build("cnn", PEOPLE, (3, 32, 32)).eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    opened = open_source(read_source("cnn", tmp_path / "w.pt", None))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened.module(x), net(x))
    assert opened.family == models.family("cnn")
