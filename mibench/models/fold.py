"""Freeze a trained classifier for inversion and scoring: no parameter gradients, batch norms folded away.

In eval mode a batch norm is affine, y = g (x - m) / sqrt(v + e) + b, so conv-then-BN is one convolution with weights
W g / sqrt(v + e) and bias (c - m) g / sqrt(v + e) + b. A BN *before* a zero-padded convolution is left alone: the
padding would have to become -b, so that no single convolution equals the pair.

References:
    | Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference (Jacob et al., 2017)
    | https://arxiv.org/abs/1712.05877, section 3.2
"""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mibench.models.base import Classifier

__all__ = ["fold"]


def fold(model: Classifier) -> Classifier:
    """A frozen copy in eval mode and channels_last, whose features and logits equal the model's up to rounding.

    Folds convolution-BN and flatten-linear-BN pairs where it is certain that nothing else reads the value between.
    Keep the copy in eval mode. The model itself is not touched.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    places: dict[nn.Module, list[str]] = {}
    for path, module in frozen.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(path)
    for layer, norm in [*_in_sequence(frozen), *_in_torchvision(frozen)]:
        _fold_pair(frozen, layer, norm, places)
    return frozen.to(memory_format=torch.channels_last)


def _in_sequence(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Neighbours within an `nn.Sequential`."""
    for chain in model.modules():
        if not isinstance(chain, nn.Sequential) or type(chain).forward is not nn.Sequential.forward:
            continue
        layers = list(chain)
        for before, layer, norm in zip([None, *layers], layers, layers[1:], strict=False):
            convolution = type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d
            flat = type(before) is nn.Flatten and type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d
            if convolution or flat:
                yield layer, norm


class _Tracer(fx.Tracer):
    """Looks into torchvision's modules only: any other may be type-checked, which symbols do not pass."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not (isinstance(m, nn.Sequential) or type(m).__module__.startswith("torchvision."))


def _in_torchvision(model: Classifier) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs that a torchvision net wires in its forward, from its symbolic trace; none if it cannot be traced."""
    trunk = model.trunk
    if not type(trunk).__module__.startswith("torchvision."):
        return
    try:
        graph = _Tracer().trace(trunk)
    except Exception:  # whatever a data-dependent forward raises: without a trace nothing is certain
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        if len(source.users) > 1 or calls[node.target] > 1 or calls[source.target] > 1:
            continue
        layer, norm = trunk.get_submodule(str(source.target)), trunk.get_submodule(str(node.target))
        if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            yield layer, norm


def _fold_pair(model: nn.Module, layer: nn.Module, norm: nn.Module, places: dict[nn.Module, list[str]]) -> None:
    """Put the fused layer in the layer's place and an identity in the norm's, if both are plain and used once;
    then they have no place any more."""
    if any(len(places.get(part, ())) != 1 for part in (layer, norm)) or _hooked(layer) or _hooked(norm):
        return
    if isinstance(norm, nn.BatchNorm2d) and isinstance(layer, nn.Conv2d) and norm.running_mean is not None:
        fused: nn.Module = fuse_conv_bn_eval(layer, norm)
    elif isinstance(norm, nn.BatchNorm1d) and isinstance(layer, nn.Linear) and norm.running_mean is not None:
        fused = fuse_linear_bn_eval(layer, norm)
    else:
        return
    model.set_submodule(places.pop(layer)[0], fused.requires_grad_(False))
    model.set_submodule(places.pop(norm)[0], nn.Identity())


def _hooked(module: nn.Module) -> bool:
    """Whether someone watches or changes what passes through the module."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
