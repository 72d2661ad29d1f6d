"""The published recipes: what the authors' files say, each with its source, and nothing changed where none is named."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from worlds import colours, small_net

from mibench import models
from mibench.core import augment
from mibench.experiments import options
from mibench.experiments.plan import plan
from mibench.plugins.settings import resolve_settings
from mibench.report.show import specified
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise
from mibench.stages import train_target
from mibench.training import Training, loss_of
from mibench.training.loop import _Taps
from mibench.training.recipes import RECIPES, find


@pytest.mark.parametrize(
    ("name", "architecture", "data", "published"),
    [
        ("ppa-2022", "resnet152", "facescrub", {"optimizer": "adam", "lr": 1e-3, "batch": 128, "epochs": 100}),
        ("ppa-2022", "resnet152", "celeba", {"milestones": (0.75, 0.9), "weight_decay": 0.0, "augmentation": "ppa"}),
        ("ppa-2022", "inception_v3", "facescrub", {"milestones": (0.8,), "epochs": 100}),
        ("ppa-2022", "inception_v3", "celeba", {"milestones": (0.75, 0.9)}),
        ("kedmi-2021", "vgg16_bn64", "celeba", {"optimizer": "momentum", "lr": 1e-2, "epochs": 50, "batch": 64}),
        ("kedmi-2021", "ir152", "celeba", {"epochs": 40, "schedule": "constant", "weight_decay": 1e-4}),
        ("kedmi-2021", "facenet112", "celeba", {"epochs": 30, "augmentation": "flip"}),
        ("midre-2025", "maxvit_t", "facescrub", {"batch": 64, "epochs": 100, "lr": 1e-3}),
        ("midre-2025", "ir152", "celeba", {"epochs": 40, "optimizer": "momentum"}),
    ],
)
def test_what_is_published(name: str, architecture: str, data: str, published: dict[str, Any]) -> None:
    settings = find(name, architecture).settings(architecture, data)
    assert published.items() <= settings.items()
    resolve_settings(Training, "training", settings)


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_has_a_source_at_a_commit_and_is_one_of_training(name: str) -> None:
    recipe, known = RECIPES[name], {item.name for item in fields(Training)}
    values = [*recipe.start.values()]
    for architecture in ("resnet18", "maxvit_t", "inception_v3", "vgg16_bn64", "ir152", "facenet112"):
        own = recipe.fields(architecture)
        assert own.keys() <= known
        values += own.values()
    assert all(one.source.startswith("https://github.com/") and "/blob/" in one.source for one in values)
    assert recipe.link.startswith("https://arxiv.org/abs/") and recipe.differs


def test_a_recipe_stands_in_the_specification_and_in_what_is_shown_of_a_run(tmp_path: Path) -> None:
    own, run = (
        plan(options.training("target", model="vgg16_bn64", recipe=name), tmp_path)[0] for name in (None, "kedmi-2021")
    )
    assert run.spec["recipe"] == "kedmi-2021" and run.spec["pretrained"] is True and run.id != own.id
    assert run.spec["training"] | {"lr": 0.01, "epochs": 50, "least_steps": 0, "doublings": 0} == run.spec["training"]
    assert train_target.changed_from_recipe(run) == {"recipe": "kedmi-2021"}
    assert "recipe kedmi-2021" in specified(run)
    changed = options.training("target", model="ir152", recipe="kedmi-2021", sets=["training.epochs=2"])
    (short,) = plan(changed, tmp_path)
    assert train_target.changed_from_recipe(short) == {"recipe": "kedmi-2021", "epochs": 2}
    assert short.spec["pretrained"] is False, "face weights that no package ships"


def test_without_a_name_a_specification_is_as_it_was(tmp_path: Path) -> None:
    (run,) = plan(options.training("target"), tmp_path)
    assert "recipe" not in run.spec and "augmentation" not in run.spec["training"], "or the zoo would not be found"


def test_evaluation_models_take_the_recipe_that_fits_them(tmp_path: Path) -> None:
    experiment = options.training(model="cnn", evaluators="inception_v3,ir")
    assert all("recipe" not in run.spec for run in plan(experiment, tmp_path))
    experiment = options.training(model="resnet18", recipe="ppa-2022", evaluators="inception_v3,ir")
    judges = {run.spec["model"]: run for run in plan(experiment, tmp_path) if run.kind == "evaluators"}
    assert judges["inception_v3"].spec["pretrained"] is True
    assert train_target.changed_from_recipe(judges["inception_v3"]) == {"recipe": "ppa-2022"}
    assert "recipe" not in judges["ir"].spec and judges["ir"].spec["pretrained"] is False


@pytest.mark.parametrize(
    ("recipe", "model", "said"),
    [
        ("kedmi-2012", "vgg16_bn64", "unknown recipe 'kedmi-2012'; did you mean 'kedmi-2021'"),
        ("kedmi-2021", "resnet18", "published for vgg16_bn64, .* not for resnet18: choose one of them with --model"),
        ("ppa-2022", "cnn", "not for cnn"),
    ],
)
def test_what_does_not_fit_is_refused(recipe: str, model: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.training("target", model=model, recipe=recipe)


# --- what the recipes' settings do ------------------------------------------------------------------------------------


def test_momentum_is_torchs_without_nesterov() -> None:
    (group,) = Training(optimizer="momentum", lr=0.1).optimizer_for(small_net()).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, False)


def test_augmentations_by_name() -> None:
    x = colours(6).at(torch.arange(6))
    noise = Noise(5, torch.arange(6))
    base, ppa, flip = (Training(augmentation=name).augmented(x, noise, True) for name in ("base", "ppa", "flip"))  # type: ignore[arg-type]
    assert torch.equal(base, augment.base(x, noise, True))
    assert torch.equal(ppa, augment.hue(base, noise.of("hue"), 0.1)) and not torch.equal(ppa, base)
    mirrored = [torch.equal(flip[place], x[place].flip(2)) for place in range(6)]
    assert all(one or torch.equal(flip[place], x[place]) for place, one in enumerate(mirrored))
    assert torch.equal(Training(augmentation="flip").augmented(x, noise, False), x), "digits are not mirrored"


def test_an_auxiliary_heads_loss_is_added_with_weight_one() -> None:
    from mibench.core import Batch

    class Two(models.base.Classifier):
        """A trunk with a second head, which runs in train mode only, as Inception's."""

    trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    net = Two(models.base.Prepare((3, 8, 8), [0.0], [1.0]), trunk, nn.Linear(3, 3), 3, "1")
    taps = _Taps(net, [])
    x, t = torch.rand(4, 3, 8, 8), torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    with taps.during():
        logits = net(x)
    (second,) = taps.of(0)
    batch = Batch(x, t, torch.ones(4), 4)
    assert taps.auxiliary and torch.equal(second, net.features(x))
    whole = loss_of(batch, logits) + loss_of(batch, second)
    assert whole > loss_of(batch, logits)
    taps.close()
    assert not _Taps(small_net(), []).auxiliary
