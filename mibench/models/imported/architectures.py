"""Weights and the architecture that they belong to: torchvision's, timm's and mibench's own.

The head is read off the weights: as many outputs as its last layer has, behind a dropout or not.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mibench.models import published
from mibench.models.base import Classifier
from mibench.models.imported import weights
from mibench.models.imported.declared import Declared, first
from mibench.models.imported.opened import Opened, Plain, channels_of, family_of
from mibench.models.imported.sources import ModelSource
from mibench.runtime.errors import UserError, unknown

__all__ = ["Resizable", "fill", "open_weights"]


def open_weights(source: ModelSource) -> Opened:
    assert source.file is not None
    state = weights.read_state(source.file)
    tensors = weights.bare(state.tensors)
    if (theirs := published.mapped(tensors)) is not None:
        own = replace(source, model=published.named(source.model, theirs, str(source.file)))
        opened = _ours(own, theirs.tensors, state.classes)
        return replace(opened, declared=replace(opened.declared, size=theirs.side), notes=(theirs.told,))
    if source.model.startswith("timm:"):
        net, declared = _timm(source.model.removeprefix("timm:"), tensors, source)
    elif {"trunk", "head"} <= {name.split(".")[0] for name in tensors}:
        return _ours(source, tensors, state.classes)
    else:
        net, declared = _torchvision(source, tensors)
    fill(net, tensors, source)
    kinds = (type(one) for one in net.modules())
    return Opened(Plain(net), family_of(kinds), replace(declared, classes=state.classes))


def _torchvision(source: ModelSource, tensors: dict[str, Tensor]) -> tuple[nn.Module, Declared]:
    """torchvision's network with as many outputs as the weights have."""
    from torchvision import models as torchvision_models

    from mibench import models

    name = source.model
    if models.family(name) == name and name not in torchvision_models.list_models(module=torchvision_models):
        raise UserError(
            f"{source.file} has no weights of mibench's own {name} (names that begin with trunk. and head.); its "
            f"first is '{next(iter(tensors), 'none')}': name the network it belongs to with --model"
        )
    options = {"aux_logits": any(key.startswith("AuxLogits") or key.startswith("aux1") for key in tensors)}
    auxiliary = name in ("googlenet", "inception_v3")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inception and googlenet talk about initialisation
        net: nn.Module = torchvision_models.get_model(name, **({**options, "init_weights": False} if auxiliary else {}))
    path = _last_linear(net)
    net.set_submodule(path, _head(path, net.get_submodule(path), tensors, source))
    _match_stem(net, tensors)
    published = torchvision_models.get_model_weights(name).DEFAULT.transforms()
    side = int(published.crop_size[0])
    means = {"ImageNet's, as torchvision's": (tuple(published.mean), tuple(published.std))}
    return net.to_empty(device="cpu"), Declared(channels_of(net), usual=side, means=means)


def _timm(name: str, tensors: dict[str, Tensor], source: ModelSource) -> tuple[nn.Module, Declared]:
    timm = _timm_module()
    if name.partition(".")[0] not in timm.list_models():
        raise unknown("architecture of timm", name, timm.list_models())
    # Built with numbers that are then replaced: buffers that are not in a state dict cannot come from meta.
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = timm.create_model(name, pretrained=False)
    config: dict[str, Any] = vars(net)["pretrained_cfg"]
    named = config.get("classifier") or _last_linear(net)
    path = named if isinstance(named, str) else str(named[0])
    net.set_submodule(path, _head(path, net.get_submodule(path), tensors, source).to_empty(device="cpu"))
    _match_stem(net, tensors)
    side = int(config.get("input_size", (3, 224, 224))[-1])
    means = {f"timm's for {name}": (tuple(config["mean"]), tuple(config["std"]))}
    return net, Declared(channels_of(net), usual=side, means=means)


def _timm_module() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError("timm: networks come from timm, which is not installed: pip install 'mibench[timm]'") from None
    return timm


def _ours(source: ModelSource, tensors: Mapping[str, Tensor], classes: tuple[str, ...]) -> Opened:
    """A network of mibench's own, saved by mibench or by `state_dict`: it resizes and normalises by itself, so that it
    is built anew for whatever size is asked."""
    from mibench import models

    outputs = [value.shape[0] for name, value in tensors.items() if name.startswith("head.") and value.ndim == 2]
    if not outputs:
        raise UserError(f"{source.file} has no last layer (head.weight), so that its classes cannot be counted")
    stems = [value.shape[1] for name, value in tensors.items() if name.startswith("trunk.") and value.ndim == 4]
    channels = stems[0] if stems and stems[0] in (1, 3) else 3
    net = Resizable(source.model, outputs[-1], channels, tensors, str(source.file))
    declared = Declared(channels, None, classes=classes, means={"its own": ((0.0,) * channels, (1.0,) * channels)})
    return Opened(net, models.family(source.model), declared)


class Resizable(nn.Module):
    """A network of mibench's, whose image size is part of how it is built; the weights fit all sizes or say not."""

    def __init__(self, name: str, classes: int, channels: int, tensors: Mapping[str, Tensor], file: str) -> None:
        super().__init__()
        self.name, self.classes, self.channels, self.file = name, classes, channels, file
        self.tensors = dict(tensors)
        self.built = nn.ModuleDict()

    def at(self, size: int) -> Classifier:
        """The network for images of this side.

        Raises:
            UserError: The weights are those of another size, or of another network.
        """
        from mibench import models

        if str(size) not in self.built:
            with torch.random.fork_rng():
                net = models.build(self.name, self.classes, (self.channels, size, size))
            own = net.state_dict()
            lacking = [
                key for key, value in own.items() if key not in self.tensors or self.tensors[key].shape != value.shape
            ]
            if lacking or set(self.tensors) - set(own):
                odd = (lacking or sorted(set(self.tensors) - set(own)))[0]
                raise UserError(
                    f"{self.file} does not fit {self.name} at {size} px: {odd}; name its network with --model"
                )
            net.load_state_dict(self.tensors)
            self.built[str(size)] = net.eval().requires_grad_(False)
        built = self.built[str(size)]
        assert isinstance(built, Classifier)
        return built

    def halves(self, example: Tensor) -> tuple[nn.Module, nn.Module]:
        """The network before its last layer, and that layer."""
        net = self.at(example.shape[-1])
        return nn.Sequential(net.prepare, net.trunk), net.head

    def forward(self, x: Tensor) -> Tensor:
        return first(self.at(x.shape[-1])(x))


def _last_linear(net: nn.Module) -> str:
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            f"{type(net).__name__} ends in no linear layer, so that its classes cannot be read off the weights; give "
            "it as code with --model package.module:function"
        )
    return linear[-1]


def _head(path: str, usual: nn.Module, tensors: dict[str, Tensor], source: ModelSource) -> nn.Module:
    """The last layer as the weights have it: the usual one with as many outputs, or one behind layers without weights.

    Raises:
        UserError: There is none, or several layers between which nobody knows what stands.
    """
    own = {name.removeprefix(path).lstrip("."): value for name, value in tensors.items() if name.startswith(f"{path}.")}
    matrices = {name.removesuffix("weight").rstrip("."): value for name, value in own.items() if value.ndim == 2}
    if not matrices:
        raise UserError(
            f"{source.file} has no last layer '{path}' of {source.model}; its names go on like "
            f"'{next(reversed(tensors), 'nothing')}': name the network it belongs to with --model"
        )
    inside = getattr(usual, "in_features", None)
    if len(matrices) > 1 or len(own) > 2:
        raise UserError(
            f"{source.file} has a head of {len(own)} tensors under '{path}', and what stands between its layers is not "
            "in the file; give your code with --model package.module:function --weights FILE"
        )
    name, matrix = next(iter(matrices.items()))
    if inside is not None and matrix.shape[1] != inside:
        raise UserError(
            f"{source.file} does not fit {source.model}: the last layer '{path}' takes {matrix.shape[1]} features "
            f"there and {inside} in the network; name the network it belongs to with --model"
        )
    biased = any(key.endswith("bias") for key in own)
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=biased, device="meta")
    return _nested(name, layer) if name else layer


def _nested(path: str, layer: nn.Module) -> nn.Module:
    """`1` -> Sequential whose second module is the layer: dropout and such before it change nothing in eval mode."""
    outer, _, rest = path.partition(".")
    inner = _nested(rest, layer) if rest else layer
    whole = nn.Sequential()
    whole.add_module(outer, inner)
    return whole


def _match_stem(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the first convolution as many input channels as the weights have, as who trains on grey images does."""
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            given = tensors.get(f"{path}.weight")
            if (
                given is not None
                and given.ndim == 4
                and given.shape[1] in (1, 3)
                and given.shape != module.weight.shape
            ):
                kernel = (given.shape[2], given.shape[3])
                same = kernel == module.kernel_size
                stem = nn.Conv2d(
                    given.shape[1],
                    given.shape[0],
                    kernel,
                    stride=(module.stride[0], module.stride[1]) if same else 1,
                    padding=_sides(module) if same else kernel[0] // 2,
                    bias=module.bias is not None,
                    device=module.weight.device,
                )
                net.set_submodule(path, stem)
            return


def _sides(convolution: nn.Conv2d) -> tuple[int, int]:
    """What a convolution adds around an image, in rows and columns."""
    padding = convolution.padding
    assert not isinstance(padding, str)  # 'same' and 'valid' are words of stems that no library here has
    return padding[0], padding[1]


def fill(net: nn.Module, tensors: Mapping[str, Tensor], source: ModelSource) -> None:
    """Weights that must fit exactly; counters of batch norms may be absent.

    Raises:
        UserError: The first name or shape that does not fit.
    """
    try:
        said = net.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{source.file} does not fit {source.model}: {reason}; name its network with --model") from None
    missing = [name for name in said.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or said.unexpected_keys:
        lacks = f"the file lacks {len(missing)} of its tensors, the first is '{missing[0]}'" if missing else ""
        more = said.unexpected_keys
        has = f"the file has {len(more)} more, the first is '{more[0]}'" if more else ""
        told = "; ".join(part for part in (lacks, has) if part)
        raise UserError(
            f"{source.file} does not fit {source.model}: {told}; name the network it belongs to with --model"
        )
