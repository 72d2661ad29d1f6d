"""What a trained target tells of itself, and that evaluation models are none of a defense's business."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mibench.metrics.ood import detection
from mibench.plugins import registry
from mibench.plugins.settings import resolve_settings
from mibench.runs import Run
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, train_target
from mibench.training import Training, as_trained, predict

ENGINE = resolve("cpu", "fp32")
PEOPLE = {
    "identities": 4,
    "train_images": 6,
    "heldout_images": 3,
    "public_images": 40,
    "distractors": 2,
    "distractor_images": 4,
    "image_size": 16,
}


def data() -> registry.Choice:
    return registry.configure("data", "digiface", settings=PEOPLE)


def target(root: Path, *defenses: registry.Choice) -> Run:
    run = train_target.plan(root, data(), "cnn", list(defenses), 0, "fp32", {"epochs": 1, "batch": 8})
    train_target.work(run, ENGINE, Silent())
    return run


def test_a_defense_that_trains_on_strangers_reports_who_is_let_in(tmp_path: Path) -> None:
    run = target(tmp_path, registry.configure("defenses", "dcd", settings={"share": 0.5, "images": 5}))
    (report,) = run.read("metrics.json")["defense_reports"]
    assert {"impostor_acceptance", "accuracy_protected", "accuracy_unprotected"} <= report.keys()
    assert all(0 <= value <= 1 for value in report.values())
    natural = run.read("metrics.json")["natural_accuracy"]["value"]
    assert (report["accuracy_protected"] + report["accuracy_unprotected"]) / 2 == pytest.approx(natural)


def test_detection_of_strangers_is_measured_on_the_public_images(tmp_path: Path) -> None:
    run = target(tmp_path)
    people = artifacts.open_dataset(run.inputs["dataset"])
    model = ENGINE.place(artifacts.load_classifier(run, people))
    own, others = (predict(model, split.images, ENGINE)[0].softmax(1) for split in (people.heldout, people.public))
    assert run.read("metrics.json")["side_effects"]["ood"] == detection(own, others)._asdict()


def test_evaluation_models_get_no_public_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def watch(*args: Any, **named: Any) -> Any:
        given.append((len(args[1]), named.get("public")))
        return converge(*args, **named)

    converge = train_target.converge
    monkeypatch.setattr(train_target, "converge", watch)
    target(tmp_path)
    run = train_target.plan_evaluator(tmp_path, data(), "resnet", "fp32", {"epochs": 1, "batch": 8})
    train_target.work(run, ENGINE, Silent())
    (own, strangers), (both, none) = given
    assert own == 24 and len(strangers) == 40 and torch.equal(strangers.labels, torch.full((40,), -1))
    assert both == 24 + 8 and none is None


def test_fit_is_the_accuracy_on_freshly_augmented_and_defended_training_images(tmp_path: Path) -> None:
    run = target(tmp_path, registry.configure("defenses", "re", settings={"a_e": 0.4}))
    people = artifacts.open_dataset(run.inputs["dataset"])
    model = ENGINE.place(artifacts.load_classifier(run, people))
    recipe = resolve_settings(Training, "training", dict(run.spec["training"]))
    shown = as_trained(people.train, recipe, artifacts.defenses(run), ENGINE, run.spec["seed"], people.flip)
    right = predict(model, shown, ENGINE)[0].argmax(1) == people.train.labels
    found = run.read("metrics.json")["fit"]
    assert (found["value"], found["n"], found["clusters"]) == (float(right.double().mean()), 24, 4)


def test_images_as_trained_are_the_images_themselves_where_nothing_changes_them(tmp_path: Path) -> None:
    people = data().plugin.load()
    plain = Training(epochs=1, augment=False)
    assert torch.equal(as_trained(people.train, plain, [], ENGINE, 0), people.train.images)
    nothing = registry.configure("defenses", "re", settings={"a_e": 0.0, "a_min": 0.0}).plugin
    assert torch.equal(as_trained(people.train, plain, [nothing], ENGINE, 0), people.train.images)
    erased = registry.configure("defenses", "re", settings={"a_e": 0.4, "a_min": 0.4, "p": 1.0}).plugin
    changed = (as_trained(people.train, plain, [erased], ENGINE, 0) != people.train.images).any(dim=1)
    assert 0.2 < float(changed.double().mean()) <= 0.45  # a part of each image, some of it black before
    again = as_trained(people.train, Training(epochs=2, augment=False), [erased], ENGINE, 0)
    assert not torch.equal(again, as_trained(people.train, plain, [erased], ENGINE, 0))  # of the epoch that follows


def test_the_recipe_of_another_optimiser_is_not_muons() -> None:
    usual = train_target.recipe("training", {})
    assert usual["optimizer"] == "muon" and (usual["epochs"], usual["doublings"], usual["batch"]) == (30, 2, 96)
    assert train_target.recipe("training", {"optimizer": "muon"}) == usual
    other = train_target.recipe("training", {"optimizer": "adamw"})
    assert (other["lr"], other["schedule"], other["epochs"], other["doublings"]) == (3e-3, "onecycle", 30, 2)
    given = train_target.recipe("training", {"epochs": 7})
    assert (given["epochs"], given["doublings"], given["least_steps"]) == (7, 0, 0)
    assert train_target.recipe("training", {"epochs": 7, "doublings": 1})["doublings"] == 1
    assert train_target.recipe("evaluator", {})["optimizer"] == "adamw"


def test_a_target_says_by_what_its_training_ended(tmp_path: Path) -> None:
    run = target(tmp_path)
    metrics = run.read("metrics.json")
    (only,) = metrics["convergence"]["candidates"]
    assert only == {"epochs": 1, "fit": metrics["fit"]["value"], "loss": only["loss"]}
    ended = "fit" if only["fit"] >= 0.99 else "budget"
    assert metrics["convergence"] | {"candidates": []} == {"by": ended, "converged": ended == "fit", "candidates": []}
