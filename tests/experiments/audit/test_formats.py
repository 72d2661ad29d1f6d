"""One network in every form that a user may have it in, audited: the same reconstructions and the same verdict."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from drawn import tree
from torch import Tensor, nn

from mibench.api.audits import verdict_of
from mibench.core import Access
from mibench.experiments import audit as audits
from mibench.models.imported.normalisations import IMAGENET
from mibench.models.imported.opening import open_source
from mibench.models.imported.sources import read_source
from mibench.models.imported.ways import Given, Pictures
from mibench.report.verdict import Outcome, Verdict
from mibench.runtime import engine
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, execute

PEOPLE, SIZE = 6, 64
MEAN, STD = (torch.tensor(one).view(3, 1, 1) for one in IMAGENET)
FORMS = ("weights", "exported", "torchscript", "onnx")
BRIEF: dict[str, dict[str, Any]] = {
    "attack": {"generations": 2, "population": 4, "images": 1},
    "prior": {"steps": 1, "warm_up": 1},
    "evaluator": {"epochs": 1},
}


def resnet18(shown: Pictures, size: int) -> nn.Module:
    """torchvision's resnet18 with a head behind a dropout that names these people: random features, nearest means."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.resnet18(weights=None)
        net.fc = head = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, len(shown.names)))
    x = (shown.at(size, 3).float() / 255 - MEAN) / STD
    for norm in (one for one in net.modules() if isinstance(one, nn.BatchNorm2d)):
        norm.momentum = None  # remembers exactly these pictures
    with torch.no_grad():
        net.train()(x)
        z = nn.Sequential(*list(net.eval().children())[:-1])(x).flatten(1)
        shift, scale = z.mean(dim=0), z.std()
        unit = (z - shift) / scale
        means = torch.stack([unit[shown.labels == person].mean(dim=0) for person in range(len(shown.names))])
        last = head[1]
        assert isinstance(last, nn.Linear)
        last.weight.copy_(2 * means / scale)
        last.bias.copy_(-means.square().sum(dim=1) - last.weight @ shift)
    return net.requires_grad_(False)


def save(net: nn.Module, size: int, folder: Path) -> dict[str, tuple[str, Path | None]]:
    """All forms, as (--model, --weights)."""
    x = torch.rand(2, 3, size, size)
    torch.save(net.state_dict(), folder / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and exporters talk
        batch = torch.export.Dim("batch", min=1, max=512)
        torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: batch},)), folder / "m.pt2")
        torch.jit.save(torch.jit.trace(net, x), folder / "m.ts")
        torch.onnx.export(net, (x,), folder / "m.onnx", dynamo=True, verbose=False)
    named = {
        form: (str(folder / name), None) for form, name in zip(FORMS[1:], ("m.pt2", "m.ts", "m.onnx"), strict=True)
    }
    return {"weights": ("resnet18", folder / "w.pt"), **named}


def test_every_form_gets_the_same_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIBENCH_WORKERS", "1")
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    private, public = tree(tmp_path, private=PEOPLE, public=9, each=4, size=SIZE, colour=True)
    shown, results = audits.pictures(private), tmp_path / "results"
    net = resnet18(shown, SIZE)
    pixels = shown.at(SIZE, 3).float() / 255
    verdicts: dict[str, Verdict] = {}
    images: dict[str, Tensor] = {}
    for form, (model, file) in save(net, SIZE, tmp_path).items():
        given = Given(SIZE, "imagenet", "rgb", "logits")  # finding it out is test_opening's business
        asked = audits.Asked(read_source(model, file, None), private, public, Access.BLACK_BOX, given)
        asked = replace(asked, method="cma_es", queries=250, image_size=16, settings=BRIEF)
        prepared = audits.prepare(asked, results)
        assert prepared.found.way.accuracy == 1
        planned = audits.schedule(prepared, results, engine.resolve("cpu", "fp32"))
        execute(list(planned.runs), "cpu", Silent())
        data = artifacts.open_dataset(prepared.target.inputs["dataset"])
        target = artifacts.load_classifier(prepared.target, data)
        answered = open_source(asked.source).module((pixels - MEAN) / STD)
        torch.testing.assert_close(answered, net((pixels - MEAN) / STD), atol=1e-4, rtol=1e-4)
        assert target(data.heldout.images.float() / 255).shape[1] == PEOPLE
        verdicts[form] = verdict_of(prepared, planned, results)
        (attack,) = [run.inversion for run in planned.runs if run.inversion.name == "cma_es"]
        images[form] = artifacts.read_tensors(attack.path / "images.safetensors", "reconstructions")[0]["images"]
    first = verdicts["weights"]
    assert first.outcome in (Outcome.LEAKS, Outcome.NOT_SHOWN)
    for form in FORMS[1:]:
        same = replace(verdicts[form], target=first.target, model=first.model, findings=first.findings)
        assert same.headline == first.headline and same.exposed == first.exposed
        assert (images[form].int() - images["weights"].int()).abs().max() <= 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_at_224_px_the_answers_are_the_networks_own(tmp_path: Path) -> None:
    """Of the forms that are made in a moment; of the others only the verdict was compared at this size."""
    private, _ = tree(tmp_path, private=3, public=1, each=2, size=224, colour=True)
    shown = audits.pictures(private)
    assert shown.side == 224
    net = resnet18(shown, 224)
    x = (shown.at(224, 3)[:2].float() / 255 - MEAN) / STD
    torch.save(net.state_dict(), tmp_path / "w.pt")
    torch.jit.save(torch.jit.trace(net, x), tmp_path / "m.ts")
    for model, file in (("resnet18", tmp_path / "w.pt"), (str(tmp_path / "m.ts"), None)):
        with torch.no_grad():
            torch.testing.assert_close(
                open_source(read_source(model, file, None)).module(x), net(x), atol=1e-4, rtol=1e-4
            )
