"""Classifiers: images in [0, 1] to logits, with their penultimate features. One architecture family a file.

A family file has a literal `CARD`, a literal tuple `ARCHITECTURES` of the names it offers, and
`build(name, num_classes, image_shape, pretrained) -> Classifier`. `timm:NAME` is a network of timm; every other name
that no file claims is looked up among torchvision's classifiers. Listing reads the literals only: neither torch nor
torchvision is imported for it.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mibench.plugins import registry
from mibench.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    import mibench.models.base

__all__ = ["build", "family", "names", "own"]


FILES = (".pt2", ".ts", ".torchscript", ".onnx", ".pt", ".pth", ".ckpt", ".tar", ".safetensors")
"""Endings of files that hold programs (the first four) or weights."""


@cache
def _own() -> dict[str, str]:
    """Architecture name to the file that builds it, for the families written here."""
    cards = registry.cards("models").items()
    return {name: file for file, card in cards for name in card.get("architectures", ())}


def _torchvision() -> list[str]:
    from torchvision import models

    return sorted(models.list_models(module=models))


def own() -> tuple[str, ...]:
    """The architectures written here; neither torch nor torchvision is imported for it."""
    return tuple(_own())


def names() -> list[str]:
    """Every architecture that can be built: those written here first, then torchvision's classifiers."""
    return [*_own(), *_torchvision()]


def family(name: str) -> str:
    """The family of an architecture, to tell whether an evaluation model differs enough from the target.

    The file's name for families written here, torchvision's own module otherwise: `resnet18` and `wide_resnet50_2`
    are both `resnet`.

    An imported model tells its own (`imported:resnet`, `imported:unknown`); timm's is the module that defines it.

    Raises:
        UserError: No architecture has this name.
    """
    if name.startswith("imported:"):
        return name.removeprefix("imported:")
    if name.startswith("timm:"):
        return _in_timm(name.removeprefix("timm:"))
    if name in _own():
        return _own()[name]
    if Path(name).suffix in FILES:
        raise UserError(
            f"{name} is a file, and mibench trains the targets it names; to attack a model of your own: mibench audit "
            f"{'--model' if Path(name).suffix in FILES[:4] else '--model ARCHITECTURE --weights'} {name} --private DIR "
            "--public DIR"
        )
    if name not in _torchvision():
        raise unknown("architecture", name, names())
    from torchvision import models

    return str(models.get_model_builder(name).__module__.rsplit(".", 1)[-1])


def _in_timm(name: str) -> str:
    """The module of timm that defines a network; its name's beginning where timm is not installed."""
    try:
        from timm.models import model_entrypoint

        return str(model_entrypoint(name).__module__.rsplit(".", 1)[-1])
    except ImportError:
        return name.partition("_")[0].rstrip("0123456789")
    except (RuntimeError, KeyError):  # which one depends on timm's version
        raise UserError(f"timm has no network called {name}") from None


def build(
    name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False
) -> "mibench.models.base.Classifier":
    """A new classifier; its weights are drawn from torch's global generator, which the caller seeds.

    Args:
        name: One of `names()`, or `timm:NAME`.
        num_classes: How many logits; at least 2.
        image_shape: (channels, height, width) of the images it will get; 1 or 3 channels, at least 16 pixels a side.
        pretrained: Start from ImageNet weights (torchvision's and timm's architectures, and `vgg16_bn64`).

    Raises:
        UserError: Unknown name, impossible sizes, or weights that do not exist or cannot be had.
    """
    kind = family(name)
    channels, height, width = image_shape
    if num_classes < 2:
        raise UserError(f"a classifier needs at least 2 classes, got {num_classes}")
    if channels not in (1, 3) or min(height, width) < 16:
        raise UserError(
            f"no classifier for images of {channels} channel(s), {height} x {width}; allowed: 1 or 3 channels, at "
            "least 16 pixels a side"
        )
    file = kind if name in _own() else "timm_net" if name.startswith("timm:") else "torchvision_net"
    module = import_module(f"mibench.models.{file}")
    model: mibench.models.base.Classifier = module.build(name, num_classes, image_shape, pretrained)
    return model
