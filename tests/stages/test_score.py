"""Scoring: refusals, and what is kept between two scores."""

from pathlib import Path

import pytest
import torch
from shell import JUDGES, SMALL, command, sets, world
from torch import Tensor

from mibench.core import Split
from mibench.data import cache
from mibench.metrics.fid import frechet_distance
from mibench.runtime.errors import UserError
from mibench.stages import artifacts, score

FLOOR = ("attack", "--method", "prior_sample", "--prior", "public", *JUDGES, *SMALL)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["target", "first judge", "second judge"])
def test_answers_that_are_no_numbers_stop_the_score_and_name_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    made = world()
    root = made.copy(tmp_path)
    told = score.predict

    def broken(*given: object) -> tuple[Tensor, Tensor]:
        logits, features = told(*given)
        return logits, features.clone().fill_(torch.inf) if asked == place else features

    def count(who: object, *given: object) -> tuple[Tensor, Tensor]:
        nonlocal asked
        asked += 1
        return answers(who, *given)

    asked, answers = -1, score.answers
    monkeypatch.setattr(score, "predict", broken)
    monkeypatch.setattr(score, "answers", count)
    said = command(*FLOOR, *sets(images=2)).error
    assert "NaN or infinity" in said and "--precision fp32" in said
    assert ("targets/" in said) == (place == 0) and ("evaluators/" in said) == (place > 0)
    others = set(root.glob("scores/[!.]*"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*FLOOR, *sets(images=2)).code == 0 and len({*root.glob("scores/[!.]*")} - others) == 1


def test_private_statistics_are_taken_once_and_are_those_of_the_attacked(tmp_path: Path) -> None:
    folder = world().one("evaluators/digiface-ir-*")
    score.private_reference.cache_clear()
    found = score.private_reference(folder, (0, 2), torch.device("cpu"))
    assert score.private_reference(folder, (0, 2), torch.device("cpu")) is found
    private, _ = artifacts.read_tensors(folder / "features.safetensors", "private features")
    own = private["train_features"][(private["train_labels"] == 0) | (private["train_labels"] == 2)]
    assert torch.equal(found.features, own) and found.statistics is not None
    assert frechet_distance(found.statistics, own) == pytest.approx(0, abs=1e-6)
    other = score.private_reference(folder, (0, 1), torch.device("cpu"))
    assert len(other.features) != len(own) or not torch.equal(other.features, own)


def test_inceptions_view_of_private_images_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_SLOW_S", -1.0)
    data = artifacts.open_dataset({"name": "orl", "settings": {"image_size": 16}})
    seen = 0

    def pool3(x: Tensor) -> Tensor:
        nonlocal seen
        seen += len(x)
        return x.flatten(1).float().repeat(1, 8)[:, :2048]

    def features(real: Split) -> Tensor:
        return score.inception_features(pool3, real, data, torch.device("cpu"))

    some = data.train.take((data.train.labels < 3).nonzero()[:, 0])
    first = features(some)
    assert seen == len(some) == 21 and torch.equal(first, pool3(some.images)) and torch.equal(features(some), first)
    assert seen == 42  # twice by the test itself, never again by the score
    features(data.train)
    assert seen == 42 + len(data.train)
    for file in (tmp_path / "mibench").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(features(some), first) and seen == 42 + len(data.train) + 21


def test_a_nudged_weight_is_seen(tmp_path: Path) -> None:
    """One bit of a parent's network: what is scored would be another target than the one that was attacked."""
    root = world().copy(tmp_path)
    path = world().one("targets/*", root) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    said = command(*FLOOR, *sets(images=3)).error
    assert f"{path.relative_to(tmp_path)} was changed or cut short" in said
    content[-3] ^= 1
    path.write_bytes(content)
    assert command(*FLOOR, *sets(images=3)).code == 0
    with pytest.raises(UserError, match="was changed"):
        content[-3] ^= 1
        path.write_bytes(content)
        artifacts.read_tensors(path, "target model")
