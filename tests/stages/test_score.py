"""Scoring: refusals, and what is kept between two scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
from shell import JUDGES, SMALL, command, sets, world
from torch import Tensor

from mibench import training
from mibench.core import Split
from mibench.data import cache
from mibench.evaluation import evaluate, model
from mibench.evaluation.perceptual import inception_features
from mibench.metrics.fid import frechet_distance
from mibench.runs import find
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.stages import artifacts, score

FLOOR = ("attack", "--method", "prior_sample", "--prior", "public", *JUDGES, *SMALL)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def infinite(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return logits, features.clone().fill_(torch.inf)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["target", "first judge", "second judge"])
def test_answers_that_are_no_numbers_stop_the_score_and_name_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    made = world()
    root = made.copy(tmp_path)
    whole, asked = model.answers, 0

    def broken(label: str, *given: Any) -> tuple[Tensor, Tensor]:
        """The answers of the network that is asked as the `place`-th are infinite."""
        nonlocal asked
        asked += 1
        with pytest.MonkeyPatch.context() as patch:
            if asked == place + 1:
                patch.setattr(model, "predict", lambda *rest: infinite(*training.predict(*rest)))
            return whole(label, *given)

    monkeypatch.setattr(evaluate, "answers", broken)
    said = command(*FLOOR, *sets(images=2)).error
    assert "NaN or infinity" in said and "--precision fp32" in said
    assert ("targets/" in said) == (place == 0) and ("evaluators/" in said) == (place > 0)
    others = set(root.glob("scores/[!.]*"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*FLOOR, *sets(images=2)).code == 0 and len({*root.glob("scores/[!.]*")} - others) == 1


def test_an_evaluation_model_is_prepared_once_and_again_when_its_run_is_done_again(tmp_path: Path) -> None:
    root, engine = world().copy(tmp_path), resolve("cpu", "fp32")
    run = find(root, world().one("evaluators/digiface-ir-*", root).name)
    data = artifacts.dataset(run)
    first = score.evaluation_model(run, data, engine)
    assert score.evaluation_model(run, data, engine) is first
    here = torch.device("cpu")
    real = first.reference((0, 2), here)
    assert first.reference((0, 2), here) is real and real.statistics is not None
    own = first.private.train.of(torch.tensor([0, 2])).features
    assert torch.equal(real.features, own) and frechet_distance(real.statistics, own) == pytest.approx(0, abs=1e-6)
    assert not torch.equal(first.reference((0, 1), here).features, own)
    (run.path / "done").touch()
    assert score.evaluation_model(run, data, engine) is not first


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
        return inception_features(pool3, real, data, torch.device("cpu"))

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
