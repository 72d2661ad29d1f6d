"""Audits of small models, end to end: from a file to a verdict."""

import json
import os
from pathlib import Path
from typing import Any

import pooled
import pytest
import torch
from drawn import tree
from pooled import PEOPLE
from torch import nn

import mibench
from mibench.core import Access
from mibench.experiments import audit as audits
from mibench.experiments import auditing
from mibench.models.imported.opening import open_source
from mibench.models.imported.sources import read_source
from mibench.models.imported.ways import Given
from mibench.models.imported.weights import read_state, require_memory, tensor_bytes
from mibench.report.verdict import FEWEST, Outcome, verdict
from mibench.runtime import engine
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, execute, import_target, imported

BRIEF: dict[str, dict[str, Any]] = {
    "attack": {"steps": 2, "pool": 16},
    "prior": {"steps": 1, "warm_up": 1},
    "evaluator": {"epochs": 1},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Private and public pictures, grey and 28 px, and the weights of a `Pooled` that knows the private classes."""
    root = tmp_path_factory.mktemp("drawn")
    private, public = tree(root, private=PEOPLE, public=9, each=6)
    net = pooled.pooled(private)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, root / "w.pt")
    return private, public, root


def asked(world: tuple[Path, Path, Path], **changes: Any) -> audits.Asked:
    private, public, root = world
    options: dict[str, Any] = {
        "source": read_source(f"{pooled.__file__}:Pooled", root / "w.pt", None),
        "private": private,
        "public": public,
        "given": Given(size=28, normalise="half"),
        "method": "ppa",
        "settings": BRIEF,
        "image_size": 16,
    }
    return audits.Asked(**(options | changes))


def test_a_checkpoint_and_pictures_give_a_verdict_and_ordinary_runs(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    at = engine.resolve("cpu", "fp32")
    prepared = audits.prepare(asked(world), tmp_path)
    assert prepared.found.way.accuracy > 0.9
    assert prepared.access is Access.WHITE_BOX
    planned = audits.schedule(prepared, tmp_path, at)
    assert not any(step.done for step in planned.steps)
    execute(list(planned.runs), "cpu", Silent())
    again = audits.schedule(audits.prepare(asked(world), tmp_path), tmp_path, at)
    assert all(step.done for step in again.steps), "the same question finds everything done"
    from mibench.api.audits import verdict_of

    said = verdict_of(prepared, planned, tmp_path)
    assert said.people == PEOPLE >= FEWEST
    assert said.outcome in (Outcome.LEAKS, Outcome.NOT_SHOWN)
    assert said.gap is not None
    assert (said.outcome is Outcome.LEAKS) == (said.gap.low > 0)
    assert json.loads(json.dumps(said.to_json(), allow_nan=False))["outcome"] == said.outcome.value
    # An ordinary target: everything else of mibench takes it.
    target = prepared.target
    data = artifacts.open_dataset(target.inputs["dataset"])
    network = artifacts.load_classifier(target, data)
    own = open_source(asked(world).source).module
    x = data.heldout.images.float() / 255
    shown = nn.functional.interpolate(x, (28, 28), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(network(x), own((shown - 0.5) / 0.5), atol=1e-4, rtol=1e-4)
    assert network.features(x).shape[1] == 49, "cut before its last layer"
    table = mibench.load_results(tmp_path).scores
    assert set(table["target"].dropna()) == {target.id}
    from mibench.report.cite import bibtex

    assert "struppek" in bibtex(planned.runs[-1]).lower()


def test_ids_hang_on_the_bytes_of_the_model(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    private, public, root = world
    ids = set()
    for scale in (1.0, 1.001):
        state = read_state(root / "w.pt").tensors
        torch.save({name: value * scale for name, value in state.items()}, tmp_path / "w.pt")
        source = read_source(f"{pooled.__file__}:Pooled", tmp_path / "w.pt", None)
        question = audits.Asked(source, private, public, given=Given(28, "half"))
        ids.add(audits.prepare(question, tmp_path).target.id)
    assert len(ids) == 2


@pytest.mark.parametrize("attack", ["ppa", "gmi"])
def test_an_attack_that_needs_more_than_the_access_is_refused(
    world: tuple[Path, Path, Path], tmp_path: Path, attack: str
) -> None:
    prepared = audits.prepare(asked(world, access=Access.BLACK_BOX, method=attack, settings={}), tmp_path)
    with pytest.raises(UserError, match="needs more than black box access"):
        audits.schedule(prepared, tmp_path, engine.resolve("cpu", "fp32"))


def test_no_public_pictures_are_refused_with_what_to_do(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --public DIR"):
        audits.prepare(asked(world, public=None), tmp_path)


# --- files that are not what they should be


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(UserError, match="is a pipe; give a file"):
        read_source("resnet18", tmp_path / "w.pt", None)


def test_a_model_larger_than_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert tensor_bytes(tmp_path / "w.safetensors") == 4 * 10**12
    with pytest.raises(UserError, match=r"holds 4000.0 GB of tensors.*--endpoint"):
        require_memory(tmp_path / "w.safetensors")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"state_dict": Evil()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"cannot be read as tensors alone"):
        read_state(tmp_path / "w.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "no file of weights"), (b"hello", "no file of weights|cannot be read"), ({"a": 1}, "not weights by name")],
)
def test_what_is_no_weights_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "w.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=told):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("model", "weights", "told"),
    [
        (None, None, "which model"),
        (None, "w.pt", "name it with --model"),
        ("w.pt", None, "give it as --weights"),
        ("resnet18", None, "network without weights"),
        ("resnet18", "nowhere.pt", "No such file"),
    ],
)
def test_half_a_model_is_refused(model: str | None, weights: str | None, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_source(model, Path(weights) if weights else None, None)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    import torchvision

    net = torchvision.models.shufflenet_v2_x0_5(num_classes=7)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"does not fit mobilenet_v3_small|has no last layer"):
        open_source(read_source("mobilenet_v3_small", tmp_path / "w.pt", None))
    opened = open_source(read_source("shufflenet_v2_x0_5", tmp_path / "w.pt", None))
    assert opened.family == "shufflenetv2"
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened.module(x), net.eval()(x))


def test_a_custom_head_behind_dropout_is_read_off_the_weights(tmp_path: Path) -> None:
    import torchvision

    net = torchvision.models.shufflenet_v2_x0_5(num_classes=7)
    net.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(1024, 5))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        opened = open_source(read_source("shufflenet_v2_x0_5", tmp_path / "w.pt", None))
        torch.testing.assert_close(opened.module(x), net.eval()(x))


def test_typed_options_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="known: black-box, label-only, white-box"):
        auditing.read_access("grey-box")
    with pytest.raises(UserError, match="whose pictures"):
        auditing.read(endpoint="http://localhost:1/")
    with pytest.raises(ValueError, match="no scored attack"):
        verdict([], "0123")
    assert import_target.FITTED == 300
    assert imported.FILES["onnx"].endswith(".onnx")
