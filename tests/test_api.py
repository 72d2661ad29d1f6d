"""The Python API makes the runs that the commands make, and the numbers that the files hold."""

import io
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from shell import ENVIRONMENT, PACKAGE, world

import mibench
from mibench.api import Target, calls
from mibench.core import to_uint8
from mibench.experiments import options
from mibench.runs import find
from mibench.runtime.engine import resolve
from mibench.training import predict

DATA = {
    "identities": 4,
    "distractors": 3,
    "public_images": 40,
    "train_images": 4,
    "heldout_images": 2,
    "distractor_images": 4,
    "image_size": 32,
}
GAN = {"steps": 2, "width": 2, "batch": 4, "warm_up": 2, "critic_steps": 1}
SHORT = {"evaluator": {"epochs": 1}}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own cache."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@cache
def finished() -> tuple[Target, Any]:
    """The target and the inversion of `shell.world`, asked for from Python."""
    settings = {"data": DATA, "training": {"epochs": 1}}
    target = mibench.train_target("re", settings=settings, results=world().results, progress=False)
    wanted = {"attack": {"steps": 3}, "prior": GAN}
    return target, mibench.invert(target, "kedmi", settings=wanted, progress=False)


@pytest.fixture
def untouched() -> Iterator[None]:
    """Nothing new appears among the runs."""
    before = sorted(world().results.glob("*/*"))
    yield
    assert sorted(world().results.glob("*/*")) == before


def test_importing_takes_no_time_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.process_time(); import mibench; took = time.process_time() - start; "
        "assert not {'torch', 'pandas', 'rich', 'numpy'} & set(sys.modules); "
        "assert 'invert' in dir(mibench); print(took)"
    )
    took = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE, capture_output=True, text=True, check=True).stdout
    assert float(took) < 0.1


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'inverse'; it offers train_target, "):
        mibench.inverse  # noqa: B018
    assert mibench.UserError is not None and mibench.Score.__name__ == "Score"


def test_a_call_finds_what_the_command_made(untouched: None) -> None:
    target, inversion = finished()
    assert target.path == world().one("targets/*-re-*")
    assert inversion.path == world().one("inversions/kedmi-*")
    assert inversion.target.data.classes == target.data.classes and inversion.images.shape[1:] == (3, 32, 32)
    assert torch.equal(to_uint8(inversion.images).float() / 255, inversion.images)
    heldout, engine = target.data.heldout, resolve("cpu", target.run.spec["precision"])
    correct = predict(target.model, heldout.images, engine)[0].argmax(1) == heldout.labels
    assert float(correct.float().mean()) == pytest.approx(target.natural_accuracy)


def test_evaluating_tensors_gives_the_numbers_of_the_file(untouched: None) -> None:
    target, inversion = finished()
    kept = mibench.score(inversion, settings=SHORT, progress=False)
    evaluators = mibench.train_evaluators(target, settings=SHORT, progress=False)
    score = mibench.evaluate(inversion.images, inversion.labels, target, evaluators)
    assert score.n == kept.n == len(inversion.labels)
    for name, judgement in score.evaluators.items():
        for metric, mean in judgement.means.items():
            assert kept.evaluators[name].means[metric].as_json() == mean.as_json(), f"{metric}@{name}"
    assert score.natural_accuracy == kept.natural_accuracy
    stored = mibench.evaluate(to_uint8(inversion.images), inversion.labels, target.model, evaluators, target.data)
    assert stored.pixels == score.pixels == kept.pixels
    assert mibench.train_verifiers(target, progress=False) == (), "fewer than 20 private people"
    assert score.gate == kept.gate == f"own_ball@{evaluators[0].name}"


def test_results_are_the_reports_frames(untouched: None) -> None:
    frames = mibench.load_results(world().results)
    run = find(world().results, world().one("scores/kedmi-*").name)
    row = frames.scores.set_index("score").loc[run.id]
    assert row["open_top1@resnet"] == run.read("scores.json")["evaluators"]["resnet"]["open_top1"]["value"]
    assert (frames.reconstructions["score"] == run.id).sum() == row["n"]
    with pytest.raises(mibench.UserError, match="no folder"):
        mibench.load_results(world().results / "nowhere")


def test_a_learnt_prior_is_the_one_that_the_attack_takes(untouched: None) -> None:
    target, inversion = finished()
    prior = mibench.train_prior("kedmi", target=target, settings={"prior": GAN}, progress=False)
    assert prior.path == world().one("priors/*-kedmi-*")
    attack = {"attack": {"steps": 3}}
    assert mibench.invert(target, "kedmi", prior=prior, settings=attack, progress=False).path == inversion.path
    with pytest.raises(mibench.UserError, match="learnt with seed 0, the attack has seed 1"):
        mibench.invert(target, "kedmi", prior=prior, seed=1)


def test_a_recipe_is_asked_for_as_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def caught(experiment: Any, *rest: Any) -> None:
        asked.append(experiment)
        raise KeyboardInterrupt

    monkeypatch.setattr(calls, "_execute", caught)
    given = {"model": "vgg16_bn64", "recipe": "kedmi-2021"}
    with pytest.raises(KeyboardInterrupt):
        mibench.train_target("re", **given, device="cpu", precision="fp32")
    wanted = options.training("target", defense="re", **given)
    assert [(one.goal, one.dataset, one.subject) for one in asked] == [(wanted.goal, wanted.dataset, wanted.subject)]
    assert asked[0].subject.each[0].pretrained == "imagenet", "as the recipe has it"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda target: mibench.train_target(settings={"dta": {}}), "unknown owner of settings 'dta'"),
        (lambda target: mibench.train_target("re", settings={"re": {"a_e": 2.0}}), "a_min <= a_e <= 1"),
        (lambda target: mibench.train_target(recipe="kedmi-2021"), "is published for vgg16_bn64"),
        (lambda target: mibench.train_prior("kedmi"), "learns from a target too"),
        (lambda target: mibench.invert(target, "all"), "one attack at a time"),
        (lambda target: mibench.invert(target, "gmi", prior="dcgan"), "critic"),
        (lambda target: mibench.train_evaluators(target, ["resnet"]), "two models of different families"),
        (lambda target: mibench.evaluate(torch.rand(1, 3, 32, 32), torch.zeros(1).long(), target.model, []), "data="),
        (lambda target: mibench.evaluate(torch.rand(1, 3, 32, 32), torch.zeros(1).long(), target, []), "evaluation"),
    ],
)
def test_mistakes_are_one_line(call: Any, message: str, untouched: None, tmp_path: Path) -> None:
    target, _ = finished()
    with pytest.raises(mibench.UserError, match=message) as raised:
        call(target)
    assert "\n" not in str(raised.value)


def test_results_show_themselves(untouched: None) -> None:
    target, inversion = finished()
    score = mibench.score(inversion, settings=SHORT, progress=False)
    accuracy = f"{100 * target.natural_accuracy:.1f}%"
    assert accuracy in repr(target) and accuracy in target._repr_html_()
    assert "data:image/png;base64," in inversion._repr_html_() and "data:image" not in target._repr_html_()
    for one in (target, inversion, score, mibench.load_results(world().results)):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(one)
        text = console.export_text()
        for name, value in one.summary().items():
            assert name in text and value.split()[0] in text
