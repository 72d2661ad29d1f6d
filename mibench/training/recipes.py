"""The published training recipes by name: what the authors' own files set, each field with where that can be read.

A recipe is the settings of a `Training` and what the network starts from; mibench's own converged recipe is used where
none is named. What a recipe of theirs has and ours cannot have is said in `differs`.

References:
    | Plug & Play Attacks (Struppek et al., 2022), section 5 and the training configurations
    | https://arxiv.org/abs/2201.12179
    | Knowledge-Enriched Distributional Model Inversion Attacks (Chen et al., 2021), config/classify.json
    | https://arxiv.org/abs/2010.04092
    | Random Erasing vs. Model Inversion: A Promising Defense or a False Hope? (Tran et al., 2025)
    | https://arxiv.org/abs/2409.01062
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mibench import models
from mibench.runtime.errors import UserError, unknown

__all__ = ["RECIPES", "Field", "Recipe", "find"]

PPA = "https://github.com/LukasStruppek/Plug-and-Play-Attacks/blob/3087a4f/"
KEDMI = "https://github.com/SCccc21/Knowledge-Enriched-DMI/blob/1ec92f4/"
MIDRE = "https://github.com/ngoc-nguyen-0/MIDRE_TMLR/blob/eb1aba1/"
ROLSS = "https://github.com/Pillowkoh/RoLSS/blob/304b147/"
ERASED = MIDRE + "configs/training/targets/ResNet18_FaceScrub_midre_0.4.yaml"
ERASED_JUDGES = MIDRE + "configs/training/evaluation/"
TARGETS, JUDGES = PPA + "configs/training/targets/", PPA + "configs/training/evaluation/"


class Field(NamedTuple):
    """One published value.

    Args:
        value: As `Training` takes it.
        source: The file that sets it.
    """

    value: Any
    source: str


def _own(name: str) -> bool:
    return ":" not in name and name in models.own()


@dataclass(frozen=True)
class Recipe:
    """A published recipe.

    Args:
        title: Of the paper.
        link: To it.
        common: Of all its networks.
        each: What is another for one architecture, or for `architecture@` and the beginning of a data set's name.
        start: What its networks start from: `imagenet` or `none`; by architecture, `*` for all others.
        fits: Whether it was published for an architecture.
        published_for: The same in words.
        differs: What the authors do and mibench does not.
    """

    title: str
    link: str
    common: Mapping[str, Field]
    start: Mapping[str, Field]
    fits: Callable[[str], bool]
    published_for: str
    each: Mapping[str, Mapping[str, Field]] = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def fields(self, architecture: str, data: str = "") -> dict[str, Field]:
        """Every setting of a network's training, with its source.

        Args:
            architecture: The network.
            data: The data set's name.
        """
        known = dict(self.common)
        for key, own in self.each.items():
            name, at, beginning = key.partition("@")
            if name == architecture and (not at or data.startswith(beginning)):
                known |= own
        return known

    def settings(self, architecture: str, data: str = "") -> dict[str, Any]:
        """The same without sources, as settings of a `Training`."""
        return {name: one.value for name, one in self.fields(architecture, data).items()}

    def starts_from(self, architecture: str) -> Field:
        """`imagenet` or `none`."""
        return self.start.get(architecture, self.start["*"])


def find(name: str, architecture: str | None = None) -> Recipe:
    """A recipe by its name.

    Args:
        name: One of `RECIPES`.
        architecture: What is to be trained with it.

    Raises:
        UserError: There is no such recipe, or it was not published for this architecture.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    recipe = RECIPES[name]
    if architecture is not None and not recipe.fits(architecture):
        raise UserError(
            f"the recipe {name} is published for {recipe.published_for}, not for {architecture}: choose one of them "
            "with --model, or leave --recipe out for mibench's own recipe"
        )
    return recipe


_HIGH = {
    "optimizer": Field("adam", TARGETS + "ResNet152_FaceScrub.yaml"),
    "lr": Field(1e-3, TARGETS + "ResNet152_FaceScrub.yaml"),
    "weight_decay": Field(0.0, TARGETS + "ResNet152_FaceScrub.yaml"),
    "schedule": Field("steps", TARGETS + "ResNet152_FaceScrub.yaml"),
    "milestones": Field((0.75, 0.9), TARGETS + "ResNet152_FaceScrub.yaml"),
    "epochs": Field(100, TARGETS + "ResNet152_FaceScrub.yaml"),
    "batch": Field(128, TARGETS + "ResNet152_FaceScrub.yaml"),
    "augmentation": Field("ppa", TARGETS + "ResNet152_FaceScrub.yaml"),
}

_LOW = {
    "optimizer": Field("momentum", KEDMI + "train_classifier.py"),
    "lr": Field(1e-2, KEDMI + "config/classify.json"),
    "weight_decay": Field(1e-4, KEDMI + "config/classify.json"),
    "schedule": Field("constant", KEDMI + "engine.py"),
    "batch": Field(64, KEDMI + "config/classify.json"),
    "augmentation": Field("flip", KEDMI + "dataloader.py"),
    "epochs": Field(50, KEDMI + "config/classify.json"),
}

_LOW_EACH = {
    "ir152": {"epochs": Field(40, KEDMI + "config/classify.json")},
    "facenet112": {"epochs": Field(30, KEDMI + "config/classify.json")},
}

_LOW_NETS = ("vgg16_bn64", "facenet64", "ir152", "facenet112")

_LOW_START = {"vgg16_bn64": Field("imagenet", KEDMI + "classify.py"), "*": Field("none", KEDMI + "train_classifier.py")}

_LOW_DIFFERS = (
    "the improved-residual networks start from MS1M face weights, which no package ships; here from noise",
    "the epoch with the best test accuracy is kept; here the last one",
    "the schedules of config/classify.json are never applied there, and so not here either",
)

_HIGH_DIFFERS = (
    "images are normalised by .5 and .5; here by ImageNet's mean and std where the network starts from its weights",
    "boxes of the random crop have whole pixels; here they are continuous",
)

RECIPES: dict[str, Recipe] = {
    "ppa-2022": Recipe(
        "Plug & Play Attacks: Towards Robust and Flexible Model Inversion Attacks",
        "https://arxiv.org/abs/2201.12179",
        _HIGH,
        {"*": Field("imagenet", TARGETS + "ResNet152_FaceScrub.yaml")},
        lambda name: not _own(name),
        "torchvision's and timm's networks at 224 and 299 px",
        {
            "inception_v3": {"milestones": Field((0.8,), JUDGES + "Inception_V3_FaceScrub.yaml")},
            "inception_v3@celeba": {"milestones": Field((0.75, 0.9), JUDGES + "Inception_v3_CelebA.yaml")},
        },
        (*_HIGH_DIFFERS, "Inception-v3's second head keeps ImageNet's 1,000 outputs; here one for each class"),
    ),
    "kedmi-2021": Recipe(
        "Knowledge-Enriched Distributional Model Inversion Attacks",
        "https://arxiv.org/abs/2010.04092",
        _LOW,
        _LOW_START,
        lambda name: name in _LOW_NETS,
        ", ".join(_LOW_NETS),
        _LOW_EACH,
        _LOW_DIFFERS,
    ),
    "midre-2025": Recipe(
        "Random Erasing vs. Model Inversion: A Promising Defense or a False Hope?",
        "https://arxiv.org/abs/2409.01062",
        {name: Field(one.value, ERASED) for name, one in _HIGH.items()},
        {"*": Field("imagenet", ERASED), **{name: _LOW_START.get(name, _LOW_START["*"]) for name in _LOW_NETS}},
        lambda name: not _own(name) or name in _LOW_NETS,
        "torchvision's and timm's networks, and " + ", ".join(_LOW_NETS),
        {
            **{name: {**_LOW, **_LOW_EACH.get(name, {})} for name in _LOW_NETS},
            "maxvit_t": {"batch": Field(64, ROLSS + "configs/training/targets/FaceScrub/maxvit/full.yaml")},
            "inception_v3": {
                "milestones": Field((0.8,), MIDRE + "configs/training/evaluation/Inception_V3_FaceScrub.yaml")
            },
            "inception_v3@celeba": {
                "milestones": Field((0.75, 0.9), MIDRE + "configs/training/evaluation/Inception_v3_CelebA.yaml")
            },
        },
        (
            *_HIGH_DIFFERS,
            *_LOW_DIFFERS[:2],
            "random erasing is the defense, not the recipe: --defense re",
            "what is set for 64 px is KEDMI's, and MaxViT's batch RoLSS's: the release has neither",
        ),
    ),
}
"""By name: who, and when it was published."""
