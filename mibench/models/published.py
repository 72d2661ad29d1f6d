"""Checkpoints that other repositories published, read by their content: which network, and where each tensor goes.

A file of theirs holds the same numbers under other names. What is recognised, from names and shapes alone:

    feature.0.weight ... bn.* fc_layer.*                        VGG16-BN at 64 px (KEDMI, LOMMA, PLG-MI, TL-DMI)
    layer1.0.weight ... layer5.* bn.* fc_layer.*                the same, in the five blocks of BiDO
    feature.input_layer.* feature.body.* output_layer.*         FaceNet64 (24 units) and IR152 (50 units) at 64 px
    feature.input_layer.* feature.body.* feature.output_layer.* the evaluation model FaceNet at 112 px
    conv2d_1a.conv.weight ... last_bn.* logits.*                InceptionResnetV1 of facenet-pytorch
    torchvision's own names                                     Plug & Play, MIDRE, RoLSS: ResNet, DenseNet, ...
    timm's own names of ResNeSt and ViT                         Plug & Play's other targets

Wrappers around the weights and prefixes before their names are `imported.weights`' business.

References:
    | Knowledge-Enriched Distributional Model Inversion Attacks (Chen et al., 2021), classify.py and evolve.py
    | https://github.com/SCccc21/Knowledge-Enriched-DMI
    | Bilateral Dependency Optimization (Peng et al., 2022), BiDO/model.py
    | https://github.com/AlanPeng0897/Defend_MI
    | Plug & Play Attacks (Struppek et al., 2022), models/classifier.py
    | https://github.com/LukasStruppek/Plug-and-Play-Attacks
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mibench.runtime.errors import UserError

__all__ = ["Recognised", "mapped", "named", "recognise"]

UNITS = {"facenet64": (3, 4, 14, 3), "facenet112": (3, 4, 14, 3), "ir152": (3, 8, 36, 3)}
"""Units of each stage; theirs are one list."""

FLAT = {(24, 8192): "facenet64", (50, 8192): "ir152", (24, 25088): "facenet112"}
"""By the number of units, and the width of what the embedding reads: 512 channels of 4 x 4 or 7 x 7."""

BLOCKS = (0, 7, 14, 24, 34)
"""Where BiDO's five blocks begin among the layers of VGG16-BN."""

SIDES = {"facenet112": 112, "inception_resnet_v1": 160}
"""Side of the images that a network takes; 64 for all others."""

NORMALISED = {"inception_resnet_v1": (127.5 / 255, 128 / 255)}
"""Mean and std of the images that a network takes; (0, 1), as they are, for all others."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "layer1.0.conv1.weight": ("resnet",),
    "features.denseblock1.denselayer1.norm1.weight": ("densenet",),
    "Mixed_5b.branch1x1.conv.weight": ("inception",),
    "encoder.layers.encoder_layer_0.ln_1.weight": ("vision_transformer",),
    "blocks.0.layers.0.layers.MBconv.layers.pre_norm.weight": ("maxvit",),
    "features.0.0.weight": ("efficientnet", "convnext", "mobilenetv2", "mobilenetv3", "swin_transformer"),
    "features.0.weight": ("vgg", "alexnet"),
}
"""A name that a family of torchvision's has, to the modules that may have built the network."""

TIMM = {
    "layer1.0.conv2.bn0.weight": ("resnest50d", "resnest101e", "resnest200e", "resnest269e"),
    "blocks.0.attn.qkv.weight": (
        "vit_base_patch16_224",
        "vit_base_patch32_224",
        "vit_large_patch16_224",
        "vit_large_patch32_224",
        "vit_huge_patch14_224",
    ),
}
"""Likewise for timm's networks that Plug & Play attacks; the hub that it takes ResNeSt from uses timm's names."""


class Recognised(NamedTuple):
    """A published network.

    Args:
        architecture: mibench's name of it.
        layout: Whose names the file has.
        tensors: Under mibench's names where the architecture is mibench's own, else as they were.
        renamed: How many were mapped to mibench's names; 0 where they kept their own.
        left: Names in the file that have no place in the network.
        missing: What the network has besides, and the file has not.
        side: Of the images it takes; 0 where its own library says.
    """

    architecture: str
    layout: str
    tensors: dict[str, Tensor]
    renamed: int
    left: tuple[str, ...]
    missing: tuple[str, ...]
    side: int = 0

    @property
    def told(self) -> str:
        """What was recognised and mapped, in a line."""
        mapped = f"{self.renamed} tensors mapped" if self.renamed else f"{len(self.tensors)} tensors as they are"
        said = f"recognised by its names and shapes as {self.architecture} ({self.layout}): {mapped}"
        said += f"; {len(self.left)} left, the first is '{self.left[0]}'" if self.left else ""
        return said + (f"; {len(self.missing)} missing, the first is '{self.missing[0]}'" if self.missing else "")


@dataclass(frozen=True)
class _Layout:
    """Names of one repository.

    Args:
        words: Whose they are.
        fits: Whether a file has them.
        architecture: From the tensors.
        rename: A name of theirs to mibench's; None for one that has no place.
    """

    words: str
    fits: Callable[[Mapping[str, Tensor]], bool]
    architecture: Callable[[Mapping[str, Tensor]], str]
    rename: Callable[[str, str], str | None]


def _is_ir(tensors: Mapping[str, Tensor]) -> bool:
    return {"feature.input_layer.0.weight", "feature.body.0.res_layer.1.weight", "fc_layer.weight"} <= set(tensors)


def _which_ir(tensors: Mapping[str, Tensor]) -> str:
    units = {name.split(".")[2] for name in tensors if name.startswith("feature.body.")}
    flat = next((value.shape[1] for name, value in tensors.items() if name.endswith("output_layer.3.weight")), 0)
    if (len(units), flat) not in FLAT:
        raise UserError(
            f"an improved-residual network of {len(units)} units whose embedding reads {flat} numbers is none of those "
            "published: facenet64 (24 units, 8192), ir152 (50, 8192), facenet112 (24, 25088); give it as code with "
            "--model package.module:function"
        )
    return FLAT[len(units), flat]


def _ir_name(architecture: str, name: str) -> str | None:
    if (unit := re.fullmatch(r"feature\.body\.(\d+)\.(res_layer|shortcut_layer)\.(.+)", name)) is not None:
        place, part = int(unit[1]), {"res_layer": "body", "shortcut_layer": "shortcut"}[unit[2]]
        for stage, count in enumerate(UNITS[architecture], start=1):
            if place < count:
                return f"trunk.stage{stage}.{place}.{part}.{unit[3]}"
            place -= count
        return None
    for theirs, ours in (
        ("feature.input_layer.", "trunk.stem."),
        ("feature.output_layer.", "trunk.embed."),
        ("output_layer.", "trunk.embed."),
        ("fc_layer.", "head."),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


def _vgg_name(_: str, name: str) -> str | None:
    for theirs, ours in (("feature.", "trunk.convolutions."), ("bn.", "trunk.norm."), ("fc_layer.", "head.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


def _bido_name(architecture: str, name: str) -> str | None:
    block = re.fullmatch(r"layer([1-5])\.(\d+)\.(\w+)", name)
    if block is None:
        return _vgg_name(architecture, name)
    return f"trunk.convolutions.{BLOCKS[int(block[1]) - 1] + int(block[2])}.{block[3]}"


def _facenet_name(_: str, name: str) -> str | None:
    return f"head.{name.removeprefix('logits.')}" if name.startswith("logits.") else f"trunk.{name}"


_LAYOUTS = (
    _Layout("names of KEDMI, LOMMA, PLG-MI and TL-DMI", _is_ir, _which_ir, _ir_name),
    _Layout(
        "names of KEDMI, LOMMA, PLG-MI and TL-DMI",
        lambda one: {"feature.40.weight", "bn.weight", "fc_layer.weight"} <= set(one),
        lambda _: "vgg16_bn64",
        _vgg_name,
    ),
    _Layout(
        "names of BiDO",
        lambda one: {"layer1.0.weight", "layer5.6.weight", "bn.weight", "fc_layer.weight"} <= set(one),
        lambda _: "vgg16_bn64",
        _bido_name,
    ),
    _Layout(
        "names of facenet-pytorch",
        lambda one: {"conv2d_1a.conv.weight", "last_bn.weight"} <= set(one),
        lambda _: "inception_resnet_v1",
        _facenet_name,
    ),
)


def recognise(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """Whose network these weights are; None where nothing published fits, as for mibench's own files.

    Args:
        tensors: Of a file, without the prefixes of wrappers (`imported.weights.bare`).

    Raises:
        UserError: As `mapped`; it is a network of timm, which is not installed.
    """
    known = mapped(tensors)
    if known is not None:
        return known
    name = _of_torchvision(tensors) or _of_timm(tensors)
    if name is None:
        return None
    words = "timm's names" if name.startswith("timm:") else "torchvision's names"
    return Recognised(name, words, dict(tensors), 0, (), ())


def mapped(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """As `recognise`, of networks that mibench has under other names only; builds nothing where the names are others.

    Raises:
        UserError: It is a published network that mibench cannot run: a bottleneck of MID, a depth that was not
            published, a face recogniser without the classes of a target.
    """
    if "st_layer.weight" in tensors:
        raise UserError(
            "the file holds a target of the defense MID, whose bottleneck (st_layer) draws its features at random; "
            "train one here with --defense mid, or give it as code with --model package.module:function"
        )
    return next((_mapped(layout, tensors) for layout in _LAYOUTS if layout.fits(tensors)), None)


def _mapped(layout: _Layout, tensors: Mapping[str, Tensor]) -> Recognised:
    architecture = layout.architecture(tensors)
    whole = expected(architecture)
    placed: dict[str, Tensor] = {}
    left = []
    for name, value in tensors.items():
        ours = layout.rename(architecture, name)
        if ours is None or ours not in whole:
            left.append(name)
        else:
            placed[ours] = value
    renamed = len(placed)
    for name in whole - set(placed):  # torch before 0.4.1 kept no counters; evaluation reads none
        if name.endswith("num_batches_tracked"):
            placed[name] = torch.tensor(0)
    mean, std = NORMALISED.get(architecture, (0.0, 1.0))
    placed |= {"prepare.mean": torch.full((1, 3, 1, 1), mean), "prepare.std": torch.full((1, 3, 1, 1), std)}
    missing = tuple(name for name in whole if name not in placed)
    if not any(name.startswith("head.") for name in placed):
        raise UserError(
            f"the file holds {architecture} without its last layer: an embedder, which knows no private people; give "
            "the checkpoint of a classifier, or use it as code with --model package.module:function --output embeddings"
        )
    return Recognised(architecture, layout.words, placed, renamed, tuple(left), missing, SIDES.get(architecture, 64))


@cache
def expected(architecture: str) -> frozenset[str]:
    """Names of a network of mibench's own; nothing is computed."""
    from mibench import models

    with torch.device("meta"):
        return frozenset(models.build(architecture, 2, (3, 64, 64)).state_dict())


def named(given: str | None, known: Recognised | None, file: str) -> str:
    """The architecture to open a file with: the one it was recognised as, or the one that the user names.

    Raises:
        UserError: There is none, or the user names another than the file holds.
    """
    if known is None:
        if given is None:
            raise UserError(
                f"{file} is none of the published networks that are recognised by their names; name its network with "
                "--model: resnet18 or another of torchvision's, timm:NAME, or one of `mibench list models`"
            )
        return given
    if given not in (None, known.architecture):
        raise UserError(
            f"{file} holds {known.architecture} ({known.layout}), and --model says {given}: leave --model out, or give "
            f"the weights of a {given}"
        )
    return known.architecture


# --- torchvision and timm ---------------------------------------------------------------------------------------------


def _of_torchvision(tensors: Mapping[str, Tensor]) -> str | None:
    """The network of torchvision's with these shapes, but for the last layer; None if there is none or several."""
    families = next((modules for name, modules in FAMILIES.items() if name in tensors), ())
    shapes = _shapes(tensors)
    fits = [name for module in families for name in _built(module) if _same(_torchvision_shapes(name), shapes)]
    return fits[0] if len(fits) == 1 else None


@cache
def _built(module: str) -> tuple[str, ...]:
    from torchvision import models

    return tuple(
        name
        for name in models.list_models(module=models)
        if models.get_model_builder(name).__module__.rsplit(".", 1)[-1] == module
    )


@cache
def _torchvision_shapes(name: str) -> dict[str, tuple[int, ...]]:
    from torchvision import models

    options = {"aux_logits": False, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    with torch.device("meta"):
        return _shapes(models.get_model(name, **options).state_dict())


def _of_timm(tensors: Mapping[str, Tensor]) -> str | None:
    names = next((names for name, names in TIMM.items() if name in tensors), ())
    if not names:
        return None
    try:
        import timm
    except ImportError:
        raise UserError(
            "the file holds a network of timm, which is not installed: pip install 'mibench[timm]'"
        ) from None
    shapes = _shapes(tensors)
    for name in names:
        with torch.device("meta"):
            own = timm.create_model(name, pretrained=False).state_dict()
        if _same(_shapes(own), shapes):
            return f"timm:{name}"
    return None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Without counters and auxiliary heads, which files may lack."""
    return {
        name: tuple(value.shape)
        for name, value in tensors.items()
        if not name.endswith("num_batches_tracked") and not name.startswith("AuxLogits.")
    }


def _same(usual: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> bool:
    """Equal but for the last layer, which has as many outputs as there are people."""
    if usual.keys() != given.keys():
        return False
    odd = [name for name in usual if usual[name] != given[name]]
    last = list(usual)[-2:]
    return all(name in last and usual[name][1:] == given[name][1:] for name in odd)
