"""Judging networks with random weights in the published format, for tests of what is done with them."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from facenet_pytorch import InceptionResnetV1
from torch import Tensor

from mibench.metrics import facenet_distance, inception, lpips_distance


def random_weights(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict of the model's keys and shapes whose activations neither vanish nor explode."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if value.dim() > 1:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=draw) * math.sqrt(2 / fan_in)
        elif key.endswith(("running_var", "weight")):
            state[key] = torch.rand(value.shape, generator=draw) * 0.5 + 0.75
        else:
            state[key] = torch.randn(value.shape, generator=draw) * 0.1
    return state


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A TORCH_HOME with all three files; removed afterwards, for they are large."""
    home = tmp_path_factory.mktemp("torch")
    hub = home / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (home / "checkpoints").mkdir()
    with torch.device("meta"):
        net = torchvision.models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        face = InceptionResnetV1(classify=True, num_classes=8631)
        alex = torchvision.models.alexnet()
    alex.classifier = torch.nn.Sequential()  # 90% of the file, and no part of LPIPS
    paths = [
        (hub / inception.WEIGHTS.names[0], net),
        (home / "checkpoints" / facenet_distance.WEIGHTS.names[0], face),
        (hub / lpips_distance.WEIGHTS["alex"].names[0], alex),
    ]
    for seed, (path, model) in enumerate(paths):
        torch.save(random_weights(model, seed), path)
    yield home
    for path, _ in paths:
        path.unlink()


@pytest.fixture
def trusting(published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights cannot have the published hash, so it is not asked for here."""
    monkeypatch.setenv("TORCH_HOME", str(published))
    monkeypatch.delenv("MIBENCH_WEIGHTS", raising=False)
    monkeypatch.setattr(inception, "WEIGHTS", dataclasses.replace(inception.WEIGHTS, sha256=""))
    alex = dataclasses.replace(lpips_distance.WEIGHTS["alex"], sha256="")
    monkeypatch.setattr(lpips_distance, "WEIGHTS", {"alex": alex})
    return published
